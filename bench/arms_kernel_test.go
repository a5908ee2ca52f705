//go:build kernel

package main

import (
	"context"
	"io"
	"testing"
	"time"

	"vipd/internal/kerneltest"
)

// TestArmsOnTheKernel asks each arm of each backend everything that the benchmark
// asks, at a small size: a benchmark that broke is found here and not on the day
// when its figures are needed.
func TestArmsOnTheKernel(t *testing.T) {
	for _, backend := range []string{nft, legacy} {
		t.Run(backend, func(t *testing.T) {
			for name, requests := range map[string][]request{
				armLinear: {
					{Op: "change", Kind: kindReplace, Count: 1}, {Op: "change", Kind: kindAdd, Count: 1}, {Op: "change", Kind: kindRemove, Count: 1},
					{Op: "connect", Count: 50}, {Op: "shape"},
				},
				armTree: {
					{Op: "change", Kind: kindReplace, Count: 2}, {Op: "change", Kind: kindAdd, Count: 1}, {Op: "change", Kind: kindRemove, Count: 1},
					{Op: "change", Kind: kindNone, Count: 1}, {Op: "count", Kind: kindReplace, Count: 1}, {Op: "resync", Count: 1},
					{Op: "trace", Kind: kindReplace, Count: 1}, {Op: "trace", Kind: kindNone, Count: 1}, {Op: "connect", Count: 50}, {Op: "shape"},
					{Op: "stale", Count: 2 * canaryEvery, Period: time.Millisecond, Limit: quickest},
				},
			} {
				t.Run(name, func(t *testing.T) { tryArm(t, name, backend, requests) })
			}
		})
	}
}

// TestTheWorldForwards is the arm without balancing; the others need nothing of the
// virtual machine that this one would not miss.
//
//lane:vm
func TestTheWorldForwards(t *testing.T) {
	tryArm(t, armDirect, nft, []request{{Op: "connect", Count: 50}})
}

// tryArm serves an arm in namespaces of its own and asks it one thing after another.
func tryArm(t *testing.T, name, backend string, requests []request) {
	if !kerneltest.Isolate(t) {
		return
	}
	in, toArm := io.Pipe()
	fromArm, out := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		err := serveArm(ctx, name, in, out)
		_, _ = in.CloseWithError(err), out.CloseWithError(err)
		served <- err
	}()
	a := newArm(name, toArm, fromArm)
	for _, r := range append([]request{{Op: "load", Pieces: backend == nft, Limit: time.Minute}}, requests...) {
		r.Size, r.Backend = 20, backend
		if r.Limit == 0 {
			r.Limit = time.Minute
		}
		answer, err := a.ask(ctx, r)
		if err != nil || answer.Over {
			t.Fatalf("%+v: %v, over: %t", r, err, answer.Over)
		}
		t.Logf("%s %s: %v", r.Op, r.Kind, answer.Samples)
		check(t, name, r, answer)
	}
	cancel()
	if err := toArm.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// check holds what does not depend on the machine.
func check(t *testing.T, name string, r request, answer reply) {
	t.Helper()
	want := map[string]float64{}
	switch {
	case r.Op == "trace" && r.Kind == kindReplace:
		want["execs"] = 1
	case r.Op == "trace":
		want["execs"], want["netlink_writes"], want["tool_bytes"] = 0, 0, 0
	case r.Op == "shape" && name == armLinear:
		if got := median(answer.Samples["way"]); got != 10.5 {
			t.Errorf("%g rules are on the way in the linear list, want 10.5", got)
		}
	case r.Op == "stale":
		if got := len(answer.Samples["stale"]); got != 2 {
			t.Errorf("%d changes of the canary were seen, want 2", got)
		}
	}
	for metric, n := range want {
		for _, got := range answer.Samples[metric] {
			if got != n {
				t.Errorf("%s %s: %s is %g, want %g", r.Op, r.Kind, metric, got, n)
			}
		}
	}
}
