// Command lane runs the test lanes, quietly: a line a package, and everything about
// what failed. It runs from the root of the repository, as make does.
//
//	go run ./hack/lane unit kernel vm
//	PKG=./vip/... go run ./hack/lane kernel
//
// Each lane leaves its events in .cache/results/LANE.json, for `make rows`. A lane
// fails if a test fails, if no test passed, if a package of it ran nothing, or if a
// test was skipped without proof that the kernel lacks what it needs; in the virtual
// machine nothing is ever skipped.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"vipd/internal/rows"
	"vipd/internal/testrun"
)

// A lane is one way to run tests.
type lane struct {
	name string
	// run starts the tests and writes their events to the file of results, by way of
	// the reporter. It returns the packages that have to run something.
	run func(ctx context.Context, to *reporter) (packages []string, err error)
	// skips is the proof in a skip's output that allows it; empty: none is allowed.
	skips string
}

var lanes = []lane{
	{name: "unit", run: runUnit},
	{name: "kernel", run: runKernel, skips: "kerneltest: this kernel has"},
	{name: "vm", run: runVM},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := runAll(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lane:", err)
		os.Exit(1)
	}
}

// runAll runs the named lanes one after the other, all of them in any case. With
// several lanes it ends with the sum of the rows and the sum of the tests.
func runAll(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return errors.New("name at least one lane: unit, kernel or vm")
	}
	var errs []error
	var sum testrun.Count
	for _, name := range names {
		i := slices.IndexFunc(lanes, func(l lane) bool { return l.name == name })
		if i < 0 {
			return fmt.Errorf("there is no lane %q; there are unit, kernel and vm", name)
		}
		count, err := runLane(ctx, lanes[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("lane %s: %w", name, err))
		}
		sum = sum.Add(count)
	}
	if len(names) > 1 {
		if err := printRows(); err != nil {
			errs = append(errs, err)
		}
		if len(errs) > 0 && sum.Failed == 0 {
			sum.Failed = len(errs) // a lane that is missing is a failure
		}
		fmt.Println(sum)
	}
	return errors.Join(errs...)
}

// runLane runs one lane and judges it.
func runLane(ctx context.Context, l lane) (testrun.Count, error) {
	start := time.Now()
	fmt.Printf("== lane %s\n", l.name)
	to, err := newReporter(l.name)
	if err != nil {
		return testrun.Count{}, err
	}
	packages, err := l.run(ctx, to)
	err = errors.Join(err, to.close())
	count := to.run.Count(nil)
	if err == nil {
		err = judge(l, &to.run, packages)
	}
	to.printFailures()
	fmt.Printf("lane %s: %v (%v)\n\n", l.name, count, time.Since(start).Round(time.Second))
	return count, err
}

// judge looks for what is wrong with a lane whose commands all succeeded.
func judge(l lane, run *testrun.Run, packages []string) error {
	var errs []error
	ran := map[string]int{}
	for _, t := range run.Tests() {
		switch t.Verdict {
		case testrun.Pass:
			ran[t.Package]++
		case testrun.Skip:
			ran[t.Package]++
			if l.skips == "" || !strings.Contains(strings.Join(t.Output, ""), l.skips) {
				errs = append(errs, fmt.Errorf("%s %s was skipped, which this lane does not allow: %s",
					t.Package, t.Name, strings.TrimSpace(strings.Join(t.Output, ""))))
			}
		}
	}
	for _, p := range packages {
		if ran[p] == 0 {
			errs = append(errs, fmt.Errorf("no test of %s ran", p))
		}
	}
	count := run.Count(nil)
	if count.Failed > 0 {
		errs = append(errs, fmt.Errorf("%d failed", count.Failed))
	}
	if count.Passed == 0 {
		errs = append(errs, errors.New("no test passed"))
	}
	return errors.Join(errs...)
}

// printRows prints how many rows the results prove.
func printRows() error {
	table, err := rows.Read(rows.ResultsDir)
	if err != nil {
		return err
	}
	fmt.Println(table.Summary())
	return table.Err()
}
