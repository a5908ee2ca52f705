package iptables

import (
	"strings"
	"testing"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// A plan has the tool check the lines that come, so that a reload with one that
// would be refused is refused before anything is written.
func TestB73_APlanWithARefusedLineIsAnError(t *testing.T) {
	h := newFakeHarness()
	p := h.proxier()
	good := svc("192.0.2.1:80", "10.0.0.1:80")
	if err := p.Sync(t.Context(), lb.NewSnapshot(good), prune); err != nil {
		t.Fatal(err)
	}
	k := h.kernels[netfilter.IPv4]
	k.refuse = func(script string) bool { return strings.Contains(script, "10.0.0.66") }
	before, commits := dump(t, k), len(k.scripts)
	changes, err := p.Plan(t.Context(), lb.NewSnapshot(good, svc("192.0.2.2:80", "10.0.0.66:80")), prune)
	if _, partial := proxier.FailedServices(err); err == nil || partial || !strings.Contains(err.Error(), "would be refused") {
		t.Errorf("plan says %v, %v", changes, err)
	}
	changes, err = p.Plan(t.Context(), lb.NewSnapshot(good, svc("192.0.2.2:80", "10.0.0.7:80")), prune)
	if err != nil || len(changes) == 0 {
		t.Errorf("a good plan says %v, %v", changes, err)
	}
	if dump(t, k) != before || len(k.scripts) != commits {
		t.Error("a plan wrote something")
	}
}
