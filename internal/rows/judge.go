package rows

import (
	"fmt"
	"io"
	"iter"
	"regexp"
	"slices"
	"strings"

	"vipd/internal/testrun"
)

// Modes are the modes that there are: a row of "each" mode has to be shown in all of them.
func Modes() []string { return []string{"iptables", "ipvs"} }

// parseModes reads the column of modes.
func parseModes(s string) ([]string, error) {
	switch {
	case s == "-":
		return nil, nil
	case s == "each":
		return Modes(), nil
	case slices.Contains(Modes(), s):
		return []string{s}, nil
	}
	return nil, fmt.Errorf("want -, each or one of %v and not %q", Modes(), s)
}

// saidMode is how a test says in its output what mode it is in: kerneltest.InMode.
var saidMode = regexp.MustCompile(`kerneltest: in mode (\w+)`)

// A family knows what the tests below and above a test say about it.
type family struct {
	said    map[testID][]string // the modes that it has said
	below   map[testID][]string // the modes that one below it, which was not skipped, has said
	skipped map[testID]bool     // all that is below it was skipped
}

// testID is a test's package and its name.
type testID [2]string

func familyOf(tests []*testrun.Test) family {
	f := family{said: map[testID][]string{}, below: map[testID][]string{}, skipped: map[testID]bool{}}
	parents := map[testID]bool{}
	for _, t := range tests {
		for a := range above(t) {
			parents[a], f.skipped[a] = true, true
		}
	}
	for _, t := range tests {
		id := testID{t.Package, t.Name}
		if t.Verdict == testrun.Skip {
			continue
		}
		for _, m := range saidMode.FindAllStringSubmatch(strings.Join(t.Output, ""), -1) {
			f.said[id] = append(f.said[id], m[1])
			for a := range above(t) {
				f.below[a] = append(f.below[a], m[1])
			}
		}
		if !parents[id] {
			for a := range above(t) {
				f.skipped[a] = false
			}
		}
	}
	return f
}

// above yields the tests that a test is part of.
func above(t *testrun.Test) iter.Seq[testID] {
	return func(yield func(testID) bool) {
		for i := strings.LastIndexByte(t.Name, '/'); i >= 0; i = strings.LastIndexByte(t.Name[:i], '/') {
			if !yield(testID{t.Package, t.Name[:i]}) {
				return
			}
		}
	}
}

// modesOf returns the modes that a test has shown: those that its package names, as
// vipd/proxier/ipvs does and vipd/e2e@ipvs, the label of a lane for a run in that mode,
// and those that the test, one that it is part of or one that is part of it has said.
func (f family) modesOf(t *testrun.Test) []string {
	var modes []string
	for _, word := range strings.FieldsFunc(t.Package, func(r rune) bool { return r == '/' || r == '@' }) {
		if slices.Contains(Modes(), word) {
			modes = append(modes, word)
		}
	}
	id := testID{t.Package, t.Name}
	modes = append(append(modes, f.said[id]...), f.below[id]...)
	for a := range above(t) {
		modes = append(modes, f.said[a]...)
	}
	slices.Sort(modes)
	return slices.Compact(modes)
}

// State is what the tests say about a row.
type State string

// The states of a row.
const (
	Passed        State = "passed"
	Failed        State = "FAILED"
	NotYet        State = "not yet"
	NotApplicable State = "not applicable"
)

// Judged is a row with its state and the number of tests that bear it.
type Judged struct {
	Row
	State State
	Tests int
	In    map[string]int // of them passed, by mode
}

// noMode counts the tests that are of no mode.
const noMode = ""

// Table is every row, judged, and the names that bear rows nobody knows.
type Table struct {
	Rows    []Judged
	Unknown []string
}

// Judge judges the rows by the tests.
func Judge(all []Row, tests []*testrun.Test) Table {
	judged := map[string]*Judged{}
	for _, r := range all {
		judged[r.ID] = &Judged{Row: r, State: NotYet, In: map[string]int{}}
	}
	var t Table
	failed := map[string]bool{}
	family := familyOf(tests)
	for _, test := range tests {
		for _, id := range rowsOf(test.Name) {
			j := judged[id]
			switch {
			case j == nil:
				t.Unknown = append(t.Unknown, fmt.Sprintf("%s %s: there is no row %s", test.Package, test.Name, id))
			case test.Verdict == testrun.Pass && !family.skipped[testID{test.Package, test.Name}]:
				j.Tests++
				modes := family.modesOf(test)
				if len(modes) == 0 {
					modes = []string{noMode}
				}
				for _, m := range modes {
					j.In[m]++
				}
			case test.Verdict != testrun.Skip && test.Verdict != testrun.Pass:
				j.Tests++
				failed[id] = true
			}
		}
	}
	for _, r := range all {
		j := judged[r.ID]
		switch {
		case failed[r.ID]:
			j.State = Failed
		case j.shown():
			j.State = Passed
		case r.Reason != "":
			j.State = NotApplicable
		}
		t.Rows = append(t.Rows, *j)
	}
	return t
}

// shown tells whether tests have passed wherever they have to. What is a matter of one
// mode alone a test shows that is of no mode, too.
func (j *Judged) shown() bool {
	switch len(j.Modes) {
	case 0:
		return j.Tests > 0
	case 1:
		return j.In[j.Modes[0]]+j.In[noMode] > 0
	}
	return !slices.ContainsFunc(j.Modes, func(m string) bool { return j.In[m] == 0 })
}

// proof says how many tests bear the row, and how many passed in each mode that has to
// show it.
func (j *Judged) proof() string {
	switch {
	case j.State == NotApplicable:
		return " (" + j.Reason + ")"
	case j.Tests == 0:
		return ""
	case len(j.Modes) < 2:
		return fmt.Sprintf(" [%d]", j.Tests)
	}
	words := []string{fmt.Sprint(j.Tests)}
	for _, m := range j.Modes {
		words = append(words, fmt.Sprintf("%s %d", m, j.In[m]))
	}
	return " [" + strings.Join(words, ", ") + "]"
}

// Count returns how many rows are in a state.
func (t Table) Count(s State) int {
	n := 0
	for _, r := range t.Rows {
		if r.State == s {
			n++
		}
	}
	return n
}

// Summary says how many rows are in which state.
func (t Table) Summary() string {
	return fmt.Sprintf("rows: %d passed, %d failed, %d not yet, %d not applicable",
		t.Count(Passed), t.Count(Failed), t.Count(NotYet), t.Count(NotApplicable))
}

// Write writes the whole table, a line a row, and the summary.
func (t Table) Write(w io.Writer) error {
	var b strings.Builder
	for _, r := range t.Rows {
		fmt.Fprintf(&b, "%-5s %-14s %s%s\n", r.ID, r.State, r.Title, r.proof())
	}
	for _, u := range t.Unknown {
		b.WriteString(u + "\n")
	}
	b.WriteString(t.Summary() + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// Err is not nil if a row failed or a test bears an unknown one.
func (t Table) Err() error {
	if n := t.Count(Failed) + len(t.Unknown); n > 0 {
		return fmt.Errorf("%d rows failed or are unknown", n)
	}
	return nil
}
