package main

import (
	"encoding/json"
	"os"
	"slices"
	"time"
)

// results is everything that was measured.
type results struct {
	Machine machine  `json:"machine"`
	Rows    []series `json:"rows"`
	LeftOut []string `json:"left_out,omitempty"` // cells of the plan
}

// series is what was measured of one thing.
type series struct {
	Part    string        `json:"part"`
	Backend string        `json:"backend"`
	Size    int           `json:"services"`
	Arm     string        `json:"arm"`
	Name    string        `json:"name"` // times are in seconds, sizes in bytes
	Samples []float64     `json:"samples"`
	Over    time.Duration `json:"over_ns,omitempty"` // it did not end in this time
}

// find returns the series of a name, made if need be.
func (r *results) find(part string, c cell, arm, name string) *series {
	if i := r.index(part, c, arm, name); i >= 0 {
		return &r.Rows[i]
	}
	r.Rows = append(r.Rows, series{Part: part, Backend: c.backend, Size: c.size, Arm: arm, Name: name})
	return &r.Rows[len(r.Rows)-1]
}

func (r *results) index(part string, c cell, arm, name string) int {
	return slices.IndexFunc(r.Rows, func(s series) bool {
		return s.Part == part && s.Backend == c.backend && s.Size == c.size && s.Arm == arm && s.Name == name
	})
}

// take adds the samples of an answer.
func (r *results) take(part string, c cell, arm string, answer reply) {
	for name, samples := range answer.Samples {
		s := r.find(part, c, arm, name)
		s.Samples = append(s.Samples, samples...)
	}
}

// over notes what did not end within its limit.
func (r *results) over(part string, c cell, arm string, limit time.Duration) {
	r.find(part, c, arm, "total").Over = limit
}

// overtime returns the limit within which something did not end; 0 if it did.
func (r *results) overtime(part string, c cell, arm, name string) time.Duration {
	if i := r.index(part, c, arm, name); i >= 0 {
		return r.Rows[i].Over
	}
	return 0
}

// samples returns what was measured; none if nothing was.
func (r *results) samples(part string, c cell, arm, name string) []float64 {
	if i := r.index(part, c, arm, name); i >= 0 {
		return r.Rows[i].Samples
	}
	return nil
}

// save writes the results as JSON.
func (r *results) save(file string) error {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644) //nolint:gosec // results are for everybody
}
