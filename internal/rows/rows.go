// Package rows tells which of the behaviours and failures that vipd has to show are
// proved by tests.
//
// A test proves a row by its name: TestB12_Something, or a subtest named
// B12_something at any depth. A row has passed if at least one such test passed in
// each mode that has to show it and none failed, in any lane; a skipped test proves
// nothing. A test whose name bears a row that is not in the list is an error, since it
// would prove nothing unseen.
//
// A test has shown the modes that its package names and those that it said it was in
// (see modesOf): what ran counts, not what somebody noted.
package rows

import (
	_ "embed"
	"errors"
	"fmt"
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
	Modes  []string // that have to show it; nil: the mode makes no difference
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
		if len(f) < 3 || len(f) > 4 || !rowID.MatchString(f[0]) || f[2] == "" || seen[f[0]] {
			return nil, fmt.Errorf("rows.txt:%d: want a new row, its modes, a title and at most a reason, with tabs: %q", n, line)
		}
		seen[f[0]] = true
		modes, err := parseModes(f[1])
		if err != nil {
			return nil, fmt.Errorf("rows.txt:%d: %w", n, err)
		}
		r := Row{ID: f[0], Modes: modes, Title: f[2]}
		if len(f) == 4 {
			r.Reason = f[3]
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
