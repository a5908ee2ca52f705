//go:build kernel

package netfilter

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"testing"

	"vipd/internal/kerneltest"
)

var nftFamily = map[Family]string{IPv4: "ip", IPv6: "ip6"}

func nft(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "nft", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// Whatever somebody put into our chains, before our jumps, or in the way of both, with
// nft, our rules go, and theirs outside of our chains stay.
func TestB66_WhatOnlyNftCanShowHindersNoRemoval(t *testing.T) {
	const rule = "ct state established counter accept"
	for name, spoil := range map[string]string{
		"in a chain of ours":       "add rule %s nat VIPD-A " + rule,
		"before the jump":          "insert rule %s nat PREROUTING " + rule,
		"after the jump":           "add rule %s nat PREROUTING " + rule,
		"a way in of its own":      "add rule %s nat PREROUTING ct state new jump VIPD-A",
		"a way in from elsewhere":  "add rule %s nat ELSEWHERE ct state new goto VIPD-A",
		"a plain way in":           "add rule %s nat ELSEWHERE counter jump VIPD-A",
		"a base chain of its own":  "add chain %s nat mine { type nat hook prerouting priority 7; }",
		"nothing that is in ways":  "add rule %s nat ELSEWHERE " + rule,
		"in another chain of ours": "add rule %s nat VIPD-OTHER " + rule,
	} {
		t.Run(name, func(t *testing.T) {
			if !kerneltest.Isolate(t) {
				return
			}
			for _, f := range Families {
				var log bytes.Buffer
				tool, want := kernelTool(t, f), testSkeleton()
				tool.options.Log = slog.New(slog.NewTextHandler(&log, nil))
				if _, err := tool.ensure(t.Context(), want, NewBaseline()); err != nil {
					t.Fatal(err)
				}
				setOK(t, tool.Restore(t.Context(), []byte("*nat\n:ELSEWHERE -\n:VIPD-OTHER -\n-A ELSEWHERE -j RETURN\n-A VIPD-OTHER -j RETURN\nCOMMIT\n")))
				nft(t, strings.Fields(fmt.Sprintf(spoil, nftFamily[f]))...)
				if _, err := tool.takeAway(t.Context(), want, NewBaseline()); err != nil {
					t.Fatalf("%s: %v", f, err)
				}
				left := nft(t, "list", "table", nftFamily[f], "nat")
				for _, c := range want.Chains {
					if strings.Contains(left, c.Name) {
						t.Errorf("%s: left of the skeleton:\n%s", f, left)
					}
				}
				if _, err := tool.Read(t.Context(), "nat"); errors.Is(err, ErrIncompatible) {
					setOK(t, tool.RemoveOwn(t.Context(), "nat"))
					if left = nft(t, "list", "table", nftFamily[f], "nat"); strings.Contains(left, ChainPrefix) {
						t.Errorf("%s: left of what is ours:\n%s", f, left)
					}
				}
				stays := !strings.Contains(spoil, ChainPrefix)
				if stays != (strings.Contains(left, "ct state") || strings.Contains(left, "mine")) || !strings.Contains(left, "ELSEWHERE") {
					t.Errorf("%s: left of others:\n%s", f, left)
				}
				if told := strings.Contains(log.String(), "handle "); told == stays {
					t.Errorf("%s: log:\n%s", f, log.String())
				}
			}
		})
	}
}

// More chains than fit into one transaction.
func TestB66_ManyChainsGoOverNetlink(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	tool := kernelTool(t, IPv4)
	var b bytes.Buffer
	b.WriteString("*nat\n")
	const n = 2 * removeMessages
	for i := range n {
		fmt.Fprintf(&b, ":VIPD-2-%d -\n", i)
	}
	for i := range n - 1 {
		fmt.Fprintf(&b, "-A VIPD-2-%d -j VIPD-2-%d\n", i, n-1)
	}
	b.WriteString("-A PREROUTING -j VIPD-2-0\nCOMMIT\n")
	setOK(t, tool.Restore(t.Context(), b.Bytes()))
	nft(t, "add", "rule", "ip", "nat", "VIPD-2-7", "ct", "state", "new", "accept")
	before, err := tool.Since(t.Context(), 0, "nat")
	setOK(t, err)
	setOK(t, tool.RemoveOwn(t.Context(), "nat"))
	if left := nft(t, "list", "table", "ip", "nat"); strings.Contains(left, ChainPrefix) {
		t.Errorf("left:\n%.300s", left)
	}
	if since, err := tool.Since(t.Context(), before.Now, "nat"); err != nil || since.Unknown || len(since.Chains) > 0 {
		t.Errorf("it counts as a write of others: %+v, %v", since, err)
	}
}
