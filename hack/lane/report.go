package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"vipd/internal/rows"
	"vipd/internal/testrun"
)

// reporter takes the events of a lane: it keeps them, writes them to the lane's file
// and prints a line a package.
type reporter struct {
	run  testrun.Run
	file *os.File
}

func newReporter(lane string) (*reporter, error) {
	if err := os.MkdirAll(rows.ResultsDir, 0o755); err != nil {
		return nil, err
	}
	file, err := os.Create(filepath.Join(rows.ResultsDir, lane+".json"))
	if err != nil {
		return nil, err
	}
	return &reporter{file: file}, nil
}

// command runs a command that prints test events, to its end. An exit status that
// only says that tests failed is no error: the events say it better.
func (r *reporter) command(cmd *exec.Cmd) error {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	// What go prints there is the like of "no such package".
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := r.run.Read(io.TeeReader(out, r.file), r.told)
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && r.run.Count(nil).Failed > 0 {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return errors.Join(readErr, err)
}

// told prints the line of a package that is through.
func (r *reporter) told(t *testrun.Test) {
	if t.Name != "" {
		return
	}
	count := r.run.Count(func(u *testrun.Test) bool { return u.Package == t.Package })
	if count == (testrun.Count{}) {
		return // no test files
	}
	fmt.Printf("%-5s %-34s %v, %.1fs\n", t.Verdict, t.Package, count, t.Elapsed)
}

// maxOutput bounds what is printed of one failed test, in lines from the end.
const maxOutput = 200

// printFailures prints everything about what failed.
func (r *reporter) printFailures() {
	failures := r.run.Failures()
	if len(failures) == 0 {
		return
	}
	fmt.Print(strings.Join(r.run.Build, ""))
	for _, t := range failures {
		lines := slices.DeleteFunc(slices.Clone(t.Output), func(l string) bool { return strings.HasPrefix(l, "=== ") })
		if len(lines) > maxOutput {
			lines = append([]string{"...\n"}, lines[len(lines)-maxOutput:]...)
		}
		fmt.Printf("\n%s %s: %s\n%s", t.Package, t.Name, describe(t), strings.Join(lines, ""))
	}
	fmt.Println()
}

func describe(t *testrun.Test) string {
	if t.Verdict == testrun.None {
		return "did not end"
	}
	return "failed"
}

func (r *reporter) close() error { return r.file.Close() }
