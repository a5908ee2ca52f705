package loss

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// maxExamples bounds the kinds of fault that a Tally describes.
const maxExamples = 12

// Report is the account of a Load. Its JSON form has these names; times are in
// nanoseconds.
type Report struct {
	Elapsed     time.Duration `json:"elapsed_ns"`
	Stalled     time.Duration `json:"stalled_ns"`  // how long this process stood still; deadlines were longer by that
	Connections Tally         `json:"connections"` // made by Connect
	Held        Tally         `json:"held"`        // made by Hold, each counted once
	Datagrams   Tally         `json:"datagrams"`   // made by Send
}

// Tally counts one kind of traffic.
type Tally struct {
	Total    int            `json:"total"`
	Classes  map[Class]int  `json:"classes"`    // they add up to Total
	Backends map[string]int `json:"backends"`   // answers by backend
	Longest  time.Duration  `json:"longest_ns"` // from beginning to end; of held connections: how long one was held
	Behind   time.Duration  `json:"behind_ns"`  // how late the schedule was at worst: the generator's own fault
	Examples []Example      `json:"examples,omitempty"`
}

// Example is one kind of fault.
type Example struct {
	Class  Class         `json:"class"`
	Reason string        `json:"reason"`
	Count  int           `json:"count"`
	First  time.Duration `json:"first_ns"` // since the start of the Load
	Last   time.Duration `json:"last_ns"`
}

// Lost returns how many connections and datagrams did not go as they should.
func (r Report) Lost() int { return r.Connections.Lost() + r.Held.Lost() + r.Datagrams.Lost() }

// Total returns how many there were of all kinds.
func (r Report) Total() int { return r.Connections.Total + r.Held.Total + r.Datagrams.Total }

// Lost returns the number of all that are not OK.
func (t Tally) Lost() int { return t.Total - t.Classes[OK] }

// String returns the report as a table for people.
func (r Report) String() string {
	var b strings.Builder
	_ = r.Write(&b)
	return b.String()
}

// Write writes the table of String.
func (r Report) Write(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	kinds := []struct {
		name  string
		tally Tally
	}{{"connections", r.Connections}, {"held connections", r.Held}, {"datagrams", r.Datagrams}}
	for _, k := range kinds {
		if k.tally.Total > 0 {
			fmt.Fprintf(w, "%s\t%s\n", k.name, k.tally.summary())
			fmt.Fprintf(w, "  by backend\t%s\n", k.tally.byBackend())
		}
	}
	fmt.Fprintf(w, "lost\t%d of %d in %s\n", r.Lost(), r.Total(), r.Elapsed.Round(10*time.Millisecond))
	if r.Stalled > 0 {
		fmt.Fprintf(w, "stalled\tthis process stood still for %s; deadlines were longer by that\n", r.Stalled.Round(time.Millisecond))
	}
	for _, k := range kinds {
		for _, e := range k.tally.Examples {
			fmt.Fprintf(w, "  %d %s\t%s, from %s to %s\n", e.Count, k.name, e.Reason, e.First.Round(time.Millisecond), e.Last.Round(time.Millisecond))
		}
	}
	return w.Flush()
}

func (t Tally) summary() string {
	parts := []string{fmt.Sprintf("%d ok", t.Classes[OK])}
	for _, c := range Classes()[1:] {
		if n := t.Classes[c]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, c))
		}
	}
	return strings.Join(parts, ", ") + fmt.Sprintf(" (longest %s)", t.Longest.Round(10*time.Microsecond))
}

func (t Tally) byBackend() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(t.Backends)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, t.Backends[name]))
	}
	if parts == nil {
		return "none answered"
	}
	return strings.Join(parts, ", ")
}
