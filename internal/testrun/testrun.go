// Package testrun reads what `go test -json` reports and sums it up. The lanes and
// the table of rows share it.
//
// A test counts once it has a verdict of its own; one with subtests counts by its
// subtests alone. A test without a verdict (its process died) has failed.
package testrun

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Event is one line of `go test -json`; see `go doc test2json`.
type Event struct {
	Action     string  // run, output, pass, fail, skip, build-fail, ...
	Package    string  // empty for the output of a build
	Test       string  // empty if the event is about the package
	Output     string  // of action output
	Elapsed    float64 // seconds
	ImportPath string  // of build-output: the package that was built
}

// Verdict is how a test ended.
type Verdict string

// The verdicts. None is that of a test that began and did not end.
const (
	None Verdict = ""
	Pass Verdict = "pass"
	Fail Verdict = "fail"
	Skip Verdict = "skip"
)

// Test is a test, a subtest, or, with an empty name, a whole package.
type Test struct {
	Package string
	Name    string
	Verdict Verdict
	Elapsed float64 // seconds
	Output  []string

	parent bool // has subtests
}

// Run is all that one run of `go test -json` reported. The zero value is empty and
// ready.
type Run struct {
	Build []string // output of builds

	tests map[[2]string]*Test
	order []*Test
}

// Read adds the events of r to the run and calls each, if not nil, with every test
// or package that got its verdict. Lines that are no events are taken as output of a
// build: a tool that fails says so in plain text.
func (run *Run) Read(r io.Reader, each func(*Test)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			run.Build = append(run.Build, lines.Text()+"\n")
			continue
		}
		if t := run.add(e); t != nil && each != nil {
			each(t)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read test events: %w", err)
	}
	return nil
}

// add takes one event; it returns the test if the event is its verdict.
func (run *Run) add(e Event) *Test {
	switch Verdict(e.Action) {
	case Pass, Fail, Skip:
		t := run.test(e.Package, e.Test)
		t.Verdict, t.Elapsed = Verdict(e.Action), e.Elapsed
		return t
	}
	switch e.Action {
	case "build-output":
		run.Build = append(run.Build, e.Output)
	case "run":
		run.test(e.Package, e.Test)
	case "output":
		t := run.test(e.Package, e.Test)
		t.Output = append(t.Output, e.Output)
	}
	return nil
}

func (run *Run) test(pkg, name string) *Test {
	id := [2]string{pkg, name}
	if t := run.tests[id]; t != nil {
		return t
	}
	t := &Test{Package: pkg, Name: name}
	if run.tests == nil {
		run.tests = map[[2]string]*Test{}
	}
	run.tests[id] = t
	run.order = append(run.order, t)
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		run.test(pkg, name[:i]).parent = true
	}
	return t
}

// Tests returns the tests in the order in which they began, subtests and their
// parents, without packages.
func (run *Run) Tests() []*Test {
	return slices.DeleteFunc(slices.Clone(run.order), func(t *Test) bool { return t.Name == "" })
}

// Failures returns the tests that failed or have no verdict, and the packages that
// failed.
func (run *Run) Failures() []*Test {
	return slices.DeleteFunc(slices.Clone(run.order), func(t *Test) bool { return t.Verdict == Pass || t.Verdict == Skip })
}

// Count is how many tests ended how.
type Count struct{ Passed, Failed, Skipped int }

// Add returns the sum of two counts.
func (c Count) Add(d Count) Count {
	return Count{c.Passed + d.Passed, c.Failed + d.Failed, c.Skipped + d.Skipped}
}

// String returns "3 passed, 0 failed, 1 skipped".
func (c Count) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.Passed, c.Failed, c.Skipped)
}

// Count counts the tests that chosen accepts; nil accepts all. A package that failed
// without a failed test (it did not build, or leaked) counts as one failure.
func (run *Run) Count(chosen func(*Test) bool) Count {
	var c Count
	failed := map[string]bool{}
	for _, t := range run.Tests() {
		if chosen != nil && !chosen(t) {
			continue
		}
		switch {
		case t.Verdict == Fail || t.Verdict == None:
			failed[t.Package] = true
			if !t.parent || !run.childFailed(t) {
				c.Failed++
			}
		case t.parent:
		case t.Verdict == Skip:
			c.Skipped++
		default:
			c.Passed++
		}
	}
	for _, t := range run.order {
		if t.Name == "" && t.Verdict == Fail && !failed[t.Package] && (chosen == nil || chosen(t)) {
			c.Failed++
		}
	}
	return c
}

func (run *Run) childFailed(parent *Test) bool {
	return slices.ContainsFunc(run.order, func(t *Test) bool {
		return t.Package == parent.Package && strings.HasPrefix(t.Name, parent.Name+"/") && t.Verdict != Pass && t.Verdict != Skip
	})
}
