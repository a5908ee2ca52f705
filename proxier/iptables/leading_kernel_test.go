//go:build kernel

package iptables

import (
	"os/exec"
	"strings"
	"testing"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
)

// Somebody's chain leads to one of ours when the last service goes. What cannot go for
// that is told with the rule that keeps it; once that is gone, so is all that is ours.
func TestB66_WhatKeepsAChainOfOursIsNamed(t *testing.T) {
	for _, b := range []netfilter.Backend{netfilter.NFT, netfilter.Legacy} {
		for name, chain := range map[string]string{"the way in": chainService, "the tree": chainDispatch, "a service": serviceChain(svc("192.0.2.1:80").Key)} {
			t.Run(string(b)+", "+name, func(t *testing.T) {
				if kerneltest.Isolate(t) {
					keepChain(t, b, chain)
				}
			})
		}
	}
}

func keepChain(t *testing.T, b netfilter.Backend, chain string) {
	harnessWith(t, netfilter.ToolOptions{Backend: b, Log: quietLog}) // for the sets
	tools, err := netfilter.FindTools(t.Context(), netfilter.ToolOptions{Backend: b, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Options{Tools: tools, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Sync(t.Context(), lb.NewSnapshot(svc("192.0.2.1:80", "10.0.0.1:80")), prune); err != nil {
		t.Fatal(err)
	}
	iptables := "iptables-" + string(b)
	tool(t, iptables, "-t", "nat", "-N", "THEIRS")
	tool(t, iptables, "-t", "nat", "-A", "THEIRS", "-p", "tcp", "-m", "comment", "--comment", "a b", "-j", chain)
	tool(t, iptables, "-t", "nat", "-A", "THEIRS", "-p", "udp", "-j", "RETURN")
	err = p.Sync(t.Context(), lb.Snapshot{}, prune)
	left := tool(t, iptables+"-save", "-t", "nat")
	if strings.Contains(left, "-A PREROUTING") || strings.Contains(left, "-A "+chainService) {
		t.Errorf("the service is still served:\n%s", left)
	}
	if b == netfilter.NFT && chain == chainService { // over netlink all of it goes, and what leads to it
		if err != nil || strings.Contains(left, netfilter.ChainPrefix) || !strings.Contains(left, "-A THEIRS -p udp -j RETURN") {
			t.Errorf("%v; left:\n%s", err, left)
		}
		return
	}
	if err == nil {
		t.Fatalf("no error; left:\n%s", left)
	}
	t.Log(err)
	first, _, _ := strings.Cut(err.Error(), "\n")
	_, command, _ := strings.Cut(first, "remove what leads to it: ")
	if command == "" {
		t.Fatalf("the rule is not named: %v", err)
	}
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	if err := p.Sync(t.Context(), lb.Snapshot{}, fresh); err != nil {
		t.Error(err)
	}
	left = tool(t, iptables+"-save", "-t", "nat")
	if strings.Contains(left, netfilter.ChainPrefix) || !strings.Contains(left, "-A THEIRS -p udp -j RETURN") {
		t.Errorf("left:\n%s", left)
	}
}
