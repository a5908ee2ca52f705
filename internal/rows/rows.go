// Package rows tells which of the behaviours and failures that vipd has to show are
// proved by tests.
//
// A test proves a row by its name: TestB12_Something, or a subtest named
// B12_something at any depth. A row has passed if at least one such test passed and
// none failed, in any lane; a skipped test proves nothing. A test whose name bears a
// row that is not in the list is an error, since it would prove nothing unseen.
package rows

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"vipd/internal/testrun"
)

//go:embed rows.txt
var list string

// Row is one behaviour (B1) or failure (F1).
type Row struct {
	ID     string
	Title  string
	Reason string // why it does not apply; empty if it does
}

// Load returns all rows in their order.
func Load() ([]Row, error) { return parse(list) }

func parse(text string) ([]Row, error) {
	var all []Row
	seen := map[string]bool{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) < 2 || len(f) > 3 || !rowID.MatchString(f[0]) || f[1] == "" || seen[f[0]] {
			return nil, fmt.Errorf("rows.txt:%d: want a new row, a tab, a title and at most a tab and a reason: %q", n, line)
		}
		seen[f[0]] = true
		r := Row{ID: f[0], Title: f[1]}
		if len(f) == 3 {
			r.Reason = f[2]
		}
		all = append(all, r)
	}
	return all, nil
}

var (
	rowID = regexp.MustCompile(`^[BF][1-9][0-9]*$`)
	// A name may bear several rows: TestB1_B2_ServesBoth.
	rowsInName = regexp.MustCompile(`^(?:Test)?((?:[BF][1-9][0-9]*_)+)`)
)

// rowsOf returns the rows that the name of a test bears, those of its last element:
// what it proves by being a subtest of TestB1_... its parent proves already.
func rowsOf(test string) []string {
	m := rowsInName.FindStringSubmatch(test[strings.LastIndexByte(test, '/')+1:])
	if m == nil {
		return nil
	}
	return strings.Split(strings.TrimSuffix(m[1], "_"), "_")
}

// ResultsDir is where the lanes leave their events, below the root of the repository.
const ResultsDir = ".cache/results"

// ErrNoResults says that no lane has run yet.
var ErrNoResults = errors.New("no results yet; run `make test` or one of its lanes first")

// Read judges every row by the results that the lanes left in a folder.
func Read(dir string) (Table, error) {
	all, err := Load()
	if err != nil {
		return Table{}, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return Table{}, err
	}
	if len(files) == 0 {
		return Table{}, ErrNoResults
	}
	tests, err := ReadResults(files)
	if err != nil {
		return Table{}, err
	}
	return Judge(all, tests), nil
}

// ReadResults reads files of test events.
func ReadResults(files []string) ([]*testrun.Test, error) {
	var tests []*testrun.Test
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read results: %w", err)
		}
		var run testrun.Run
		if err := errors.Join(run.Read(f, nil), f.Close()); err != nil {
			return nil, fmt.Errorf("read results %s: %w", name, err)
		}
		tests = append(tests, run.Tests()...)
	}
	return tests, nil
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

// Judged is a row with its state and the number of tests that prove it.
type Judged struct {
	Row
	State State
	Tests int
}

// Table is every row, judged, and the names that bear rows nobody knows.
type Table struct {
	Rows    []Judged
	Unknown []string
}

// Judge judges the rows by the tests.
func Judge(all []Row, tests []*testrun.Test) Table {
	passed, failed := map[string]int{}, map[string]int{}
	known := map[string]bool{}
	for _, r := range all {
		known[r.ID] = true
	}
	var t Table
	for _, test := range tests {
		for _, id := range rowsOf(test.Name) {
			switch {
			case !known[id]:
				t.Unknown = append(t.Unknown, fmt.Sprintf("%s %s: there is no row %s", test.Package, test.Name, id))
			case test.Verdict == testrun.Pass:
				passed[id]++
			case test.Verdict != testrun.Skip:
				failed[id]++
			}
		}
	}
	for _, r := range all {
		j := Judged{Row: r, State: NotYet, Tests: passed[r.ID] + failed[r.ID]}
		switch {
		case failed[r.ID] > 0:
			j.State = Failed
		case passed[r.ID] > 0:
			j.State = Passed
		case r.Reason != "":
			j.State = NotApplicable
		}
		t.Rows = append(t.Rows, j)
	}
	return t
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
		fmt.Fprintf(&b, "%-5s %-14s %s", r.ID, r.State, r.Title)
		switch {
		case r.State == NotApplicable:
			fmt.Fprintf(&b, " (%s)", r.Reason)
		case r.Tests > 0:
			fmt.Fprintf(&b, " [%d]", r.Tests)
		}
		b.WriteByte('\n')
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
