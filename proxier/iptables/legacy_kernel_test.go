//go:build kernel

package iptables

import (
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
)

var legacy = netfilter.ToolOptions{Backend: netfilter.Legacy}

//lane:vm
func TestContractWithTheLegacyBackend(t *testing.T) {
	if kerneltest.Isolate(t) {
		contract(t, legacy, "iptables-legacy", "ip6tables-legacy")
	}
}

func TestB54_B58_B60_B61_B64_RandomWalkWithTheLegacyBackend(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	for seed := range uint64(2) {
		walk(t, harnessWith(t, legacy), 2000+seed, 15)
	}
}

// TestLegacySpeed prints how long passes take with the legacy backend, and holds
// that a change is one commit.
func TestLegacySpeed(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	h := harnessWith(t, legacy)
	p := h.proxier()
	e := lb.Snapshot{}.Edit()
	for _, n := range []int{5000, 10000} {
		for i := range n {
			e.Put(many(vipSets["scattered"](i), 10, 1))
		}
		h.kernels[netfilter.IPv4].scripts = nil
		sync := func(what string, want lb.Snapshot) {
			t.Helper()
			start, commits := time.Now(), len(h.kernels[netfilter.IPv4].scripts)
			if err := p.Sync(t.Context(), want, prune); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d services, %s: %s, %d commits", n, what, time.Since(start).Round(time.Millisecond), len(h.kernels[netfilter.IPv4].scripts)-commits)
		}
		sync("load", e.Snapshot())
		for backends := range 3 {
			e.Put(many(vipSets["scattered"](7), 11+backends, 1))
			sync("one change", e.Snapshot())
			e.Put(many(vipSets["scattered"](7), 11+backends, 1, 2))
			sync("one change, of the same size", e.Snapshot())
		}
		if n := len(h.kernels[netfilter.IPv4].scripts); n > 9 {
			t.Errorf("%d commits", n)
		}
		sync("no change", e.Snapshot())
	}
}
