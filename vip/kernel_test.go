//go:build kernel

package vip

import (
	"context"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
)

// realWorld is the network namespace of the test.
func realWorld() *world {
	return &world{raw: running(), shell: func(t *testing.T, words []string) {
		t.Helper()
		switch words[0] {
		case "iptables", "ip6tables":
			words = append([]string{words[0] + "-nft"}, words[1:]...)
		case "ip":
			if slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(w, "fd00") }) {
				words = append(words, "nodad")
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
		}
	}}
}

// TestKernelHost runs the scenarios of TestFakeHost on the real kernel, each in
// namespaces of its own.
func TestKernelHost(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(scenarios)) {
		t.Run(name, func(t *testing.T) {
			if kerneltest.Isolate(t) {
				scenarios[name](t, realWorld())
			}
		})
	}
}
