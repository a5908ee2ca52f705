package main

import (
	"encoding/json"
	"fmt"
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

// join reads results that runs left as JSON and puts them together: sizes that take
// hours need not be measured in one go. What two runs measured is of the later file.
func join(files []string) (all results, err error) {
	for _, file := range files {
		text, err := os.ReadFile(file) //nolint:gosec // the user names it
		if err != nil {
			return all, err
		}
		var one results
		if err := json.Unmarshal(text, &one); err != nil {
			return all, fmt.Errorf("%s: %w; give the .json files that runs of the benchmark left", file, err)
		}
		if all.Machine.Commit != "" && all.Machine.Commit != one.Machine.Commit {
			return all, fmt.Errorf("%s is of commit %s, those before of %s; measure all of one commit", file, one.Machine.Commit, all.Machine.Commit)
		}
		one.Machine.Busy = max(one.Machine.Busy, all.Machine.Busy)
		all.Machine = one.Machine
		for _, s := range one.Rows {
			*all.find(s.Part, cell{s.Backend, s.Size}, s.Arm, s.Name) = s
		}
	}
	return all, nil
}

// save writes the results as JSON.
func (r *results) save(file string) error {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644) //nolint:gosec // results are for everybody
}
