package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// vmDir is where the test binaries and the outputs of the virtual machines lie.
const vmDir = ".cache/vm-tests"

// machine is one virtual machine: it runs the tests of one mode. Emulation has one
// processor a machine, so two of them at once make use of two.
type machine struct {
	mode     string   // "": that which a test takes by itself
	dir      string   // its script and what it leaves
	binaries []string // by package; empty: nothing of it runs here
}

// runVM builds the kernel tests outside, boots a machine a mode, runs the tests that are
// marked for it inside, and turns what they printed into events.
func runVM(ctx context.Context, to *reporter) ([]string, error) {
	found, err := kernelTests(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(vmDir)
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	machines, err := prepareVMs(ctx, dir, found)
	if err != nil {
		return nil, err
	}
	booted := make([]error, len(machines))
	var running sync.WaitGroup
	for i, m := range machines {
		running.Go(func() { booted[i] = m.boot(ctx) })
	}
	running.Wait()
	var labels []string
	errs := booted
	for _, m := range machines {
		for i, p := range found {
			if m.binaries[i] == "" {
				continue
			}
			labels = append(labels, m.label(p))
			errs = append(errs, convert(ctx, to, m.label(p), filepath.Join(m.dir, fmt.Sprint(i))))
		}
	}
	return labels, errors.Join(errs...)
}

// prepareVMs builds the test binaries and writes a script a machine, which runs them.
func prepareVMs(ctx context.Context, dir string, found []pkg) ([]*machine, error) {
	programs, err := buildPrograms(ctx, "plain")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var machines []*machine
	for i, p := range found {
		binary := filepath.Join(dir, fmt.Sprintf("%d.test", i))
		build := exec.CommandContext(ctx, "go", "test", "-c", "-tags=kernel", "-o", binary, p.path)
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			return nil, fmt.Errorf("build the tests of %s: %w", p.path, err)
		}
		for mode := range p.vm {
			at := slices.IndexFunc(machines, func(m *machine) bool { return m.mode == mode })
			if at < 0 {
				at = len(machines)
				machines = append(machines, &machine{mode: mode, dir: filepath.Join(dir, "out"+mode), binaries: make([]string, len(found))})
			}
			machines[at].binaries[i] = binary
		}
	}
	for _, m := range machines {
		if err := m.write(programs, found); err != nil {
			return nil, err
		}
	}
	return machines, nil
}

// label is what a package is called in the events of a machine: the mode is part of it,
// for a test may run in several.
func (m *machine) label(p pkg) string {
	if m.mode == "" {
		return p.path
	}
	return p.path + "@" + m.mode
}

// script is the path of the script that runs the tests.
func (m *machine) script() string { return filepath.Join(m.dir, "run.sh") }

// write writes the script: for package number i it leaves the output in i.out and the
// exit status in i.status.
func (m *machine) write(programs string, found []pkg) error {
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "export VIPD_LANE=vm VIPD_MODE=%s %s\n", m.mode, programs)
	for i, p := range found {
		if m.binaries[i] == "" {
			continue
		}
		fmt.Fprintf(&b, "cd '%s'; SECONDS=0\n", p.dir)
		fmt.Fprintf(&b, "'%s' -test.v=test2json -test.timeout=13m -test.run='%s' >$VM_OUT/%d.out 2>&1; echo $? >$VM_OUT/%d.status\n",
			m.binaries[i], pattern(p.vm[m.mode]), i, i)
		fmt.Fprintf(&b, "echo 'in the machine: %s,' $SECONDS s\n", m.label(p))
	}
	return os.WriteFile(m.script(), []byte(b.String()), 0o644)
}

// boot runs the machine to its end.
func (m *machine) boot(ctx context.Context) error {
	cmd := command(ctx, "vm", "hack/vm", "run", "bash", m.script())
	cmd.Env = append(cmd.Env, "VM_OUT="+m.dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// convert reads what one test binary printed and how it exited. A binary that has not
// exited, since the machine was stopped, has failed.
func convert(ctx context.Context, to *reporter, label, base string) error {
	return to.command(command(ctx, "vm", "go", "tool", "test2json", "-t", "-p", label,
		"sh", "-c", `cat "$0.out"; exit "$(cat "$0.status" 2>/dev/null || echo 1)"`, base))
}
