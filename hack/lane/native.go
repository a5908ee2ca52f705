package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// packages is what the lanes run: everything, or what PKG says.
func packages() string { return cmp.Or(os.Getenv("PKG"), "./...") }

// runUnit runs all tests without the tag: race detector, shuffled. What leaks
// goroutines fails by itself (goleak in TestMain).
func runUnit(ctx context.Context, to *reporter) ([]string, error) {
	return nil, to.command(command(ctx, "unit", "go", "test", "-race", "-shuffle=on", "-timeout=10m", "-json", packages()))
}

// runKernel runs the tests with the tag kernel on the kernel of this machine, one
// package at a time, since they measure what the kernel does, and never from the cache.
func runKernel(ctx context.Context, to *reporter) ([]string, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root, to make network namespaces")
	}
	found, err := kernelTests(ctx)
	if err != nil {
		return nil, err
	}
	binaries, err := buildPrograms(ctx, "race", "-race")
	if err != nil {
		return nil, err
	}
	timeout := "20m"
	if os.Getenv("VIPD_SOAK") != "" {
		timeout = "6h"
	}
	var paths, names []string
	for _, p := range found {
		paths = append(paths, p.path)
		names = append(names, p.tests...)
	}
	cmd := command(ctx, "kernel", "go", append([]string{"test", "-tags=kernel", "-race", "-p=1", "-count=1", "-timeout=" + timeout,
		"-json", "-run=" + pattern(names)}, paths...)...)
	cmd.Env = append(cmd.Env, binaries)
	return paths, to.command(cmd)
}

// command returns a command of a lane: it is told the lane's name, and, when ctx ends,
// interrupted, so that it ends its children, and killed if it does not.
func command(ctx context.Context, lane, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "VIPD_LANE="+lane)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

// pattern returns the argument of -run that matches exactly the named tests.
func pattern(names []string) string {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	return "^(" + strings.Join(names, "|") + ")$"
}

// buildPrograms builds the programs of the repository into a directory of their own
// and returns the setting that tells the tests of it.
func buildPrograms(ctx context.Context, dir string, flags ...string) (string, error) {
	bin, err := filepath.Abs(filepath.Join(".cache", "bin", dir))
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	list := exec.CommandContext(ctx, "go", "list", "-f", `{{if eq .Name "main"}}{{.ImportPath}}{{end}}`, "./...")
	out, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("list programs: %w", err)
	}
	args := append(append([]string{"build", "-o", bin}, flags...), strings.Fields(string(out))...)
	build := exec.CommandContext(ctx, "go", args...)
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("build programs: %w", err)
	}
	return "VIPD_BIN_DIR=" + bin, nil
}
