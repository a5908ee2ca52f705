//go:build kernel

package iptables

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// TestB66_RulesMadeWithNftHinderNoRemoval: somebody put rules that iptables cannot show
// into all our chains and before our jumps. Services come and go, and after the last
// one nothing of ours is left, whether this vipd knows of the rules or a new one finds
// them.
func TestB66_RulesMadeWithNftHinderNoRemoval(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	nft := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "nft", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("nft %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	one, two := svc("192.0.2.10:80/tcp", "10.0.0.11:80"), svc("192.0.2.11:80/tcp", "10.0.0.11:80", "10.0.0.12:80")
	for name, restart := range map[string]bool{"known": false, "found": true} {
		h := realHarness(t)
		h.kernels[netfilter.IPv4].scripts = nil
		p := h.proxier()
		sync := func(services ...*lb.Service) {
			t.Helper()
			if err := p.Sync(t.Context(), lb.NewSnapshot(services...), proxier.How{Prune: true, Fresh: true}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		sync(one, two)
		for line := range strings.Lines(nft("list", "table", "ip", "nat")) {
			if chain, found := strings.CutPrefix(strings.TrimSpace(line), "chain "); found {
				chain = strings.TrimSuffix(chain, " {")
				if strings.HasPrefix(chain, netfilter.ChainPrefix) || chain == "PREROUTING" {
					nft("insert", "rule", "ip", "nat", chain, "ct", "state", "established", "counter", "accept")
				}
			}
		}
		if restart {
			p = h.proxier()
		} else {
			sync(one) // repairs what is to stay
			nft("insert", "rule", "ip", "nat", "VIPD-SVC", "ct", "state", "established", "counter", "accept")
		}
		sync()
		left := nft("list", "table", "ip", "nat")
		if strings.Contains(left, netfilter.ChainPrefix) || strings.Count(left, "ct state") != 1 {
			t.Errorf("%s: left:\n%s", name, left)
		}
		sync(two) // and again
		sync()
		nft("delete", "table", "ip", "nat")
	}
}
