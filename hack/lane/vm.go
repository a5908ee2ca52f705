package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// vmDir is where the test binaries and the outputs of the virtual machine lie.
const vmDir = ".cache/vm-tests"

// runVM builds the kernel tests outside, boots once, runs the marked ones inside, and turns
// what they printed into events.
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
	out := filepath.Join(dir, "out")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, err
	}
	script, err := vmScript(ctx, dir, found)
	if err != nil {
		return nil, err
	}
	boot := command(ctx, "vm", "hack/vm", "run", "bash", script)
	boot.Env = append(boot.Env, "VM_OUT="+out)
	boot.Stdout, boot.Stderr = os.Stdout, os.Stderr
	bootErr := boot.Run()
	paths := make([]string, len(found))
	for i, p := range found {
		paths[i] = p.path
		bootErr = errors.Join(bootErr, convert(ctx, to, p.path, filepath.Join(out, fmt.Sprint(i))))
	}
	return paths, bootErr
}

// vmScript builds the test binaries and writes the script that runs them: for package
// number i it leaves the output in i.out and the exit status in i.status.
func vmScript(ctx context.Context, dir string, found []pkg) (string, error) {
	binaries, err := buildPrograms(ctx, "plain")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "export VIPD_LANE=vm %s\n", binaries)
	for i, p := range found {
		binary := filepath.Join(dir, fmt.Sprintf("%d.test", i))
		build := exec.CommandContext(ctx, "go", "test", "-c", "-tags=kernel", "-o", binary, p.path)
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			return "", fmt.Errorf("build the tests of %s: %w", p.path, err)
		}
		fmt.Fprintf(&b, "cd '%s'; SECONDS=0\n", p.dir)
		fmt.Fprintf(&b, "'%s' -test.v=test2json -test.timeout=10m -test.run='%s' >$VM_OUT/%d.out 2>&1; echo $? >$VM_OUT/%d.status\n",
			binary, pattern(p.vm), i, i)
		fmt.Fprintf(&b, "echo 'in the machine: %s,' $SECONDS s\n", p.path)
	}
	script := filepath.Join(dir, "run.sh")
	return script, os.WriteFile(script, []byte(b.String()), 0o644)
}

// convert reads what one test binary printed and how it exited. A binary that has not
// exited, since the machine was stopped, has failed.
func convert(ctx context.Context, to *reporter, path, base string) error {
	return to.command(command(ctx, "vm", "go", "tool", "test2json", "-t", "-p", path,
		"sh", "-c", `cat "$0.out"; exit "$(cat "$0.status" 2>/dev/null || echo 1)"`, base))
}
