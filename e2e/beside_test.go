//go:build kernel

package e2e

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/coreos/go-iptables/iptables"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
)

// The rules that flannel keeps with go-iptables. Each of its rounds puts them before
// ours for a moment, as long as vipd needs to come to the front again.
var (
	flannelChain = []string{"-s", "10.244.0.0/16", "-j", "RETURN"}
	flannelJump  = []string{"-m", "comment", "--comment", "flanneld masq", "-j", "FLANNEL-POSTRTG"}
)

// flannel makes some rounds with the tool of one family, in the calling thread's
// namespace, and returns what it keeps there.
func flannel(tool *iptables.IPTables, rounds int) error {
	for range rounds {
		if err := errors.Join(
			tool.ClearChain("nat", "FLANNEL-POSTRTG"),
			tool.AppendUnique("nat", "FLANNEL-POSTRTG", flannelChain...),
			tool.DeleteIfExists("nat", "POSTROUTING", flannelJump...),
			tool.Insert("nat", "POSTROUTING", 1, flannelJump...),
			tool.AppendUnique("filter", "FORWARD", "-s", "10.244.0.0/16", "-j", "ACCEPT"),
		); err != nil {
			return err
		}
	}
	return nil
}

// TestB60_BesideAProgramThatKeepsItsRulesWithGoIPTables: nobody loses anything, and
// the rules of both stand, until clean-up takes away ours and nothing else.
func TestB60_BesideAProgramThatKeepsItsRulesWithGoIPTables(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	w.write(calm(config(service{name: "web", port: 80, backends: w.at(8080, 1, 2)})))
	w.start()
	whole := w.kernelState()
	load := w.load(w.Client)
	for _, target := range targets(80)[:1] { // the rules of flannel's IPv4
		load.Connect(loss.Connections{Target: target, Rate: 50})
		load.Hold(loss.Hold{Target: target, Count: 5, Every: 20 * time.Millisecond})
	}
	var kept []string
	if err := w.LB.Do(func() (err error) {
		tool, err := iptables.New()
		if err == nil {
			err = flannel(tool, 10)
		}
		if err == nil {
			kept, err = tool.List("nat", "FLANNEL-POSTRTG")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w.asBefore(t, whole)
	lossless(t, "connections beside flannel", load.Stop())
	w.stop()
	w.must(0, "cleanup")
	if err := w.LB.Do(func() error {
		tool, err := iptables.New()
		if err != nil {
			return err
		}
		left, err := tool.List("nat", "FLANNEL-POSTRTG")
		if err == nil && !slices.Equal(left, kept) {
			t.Errorf("flannel's chain was %q and is %q", kept, left)
		}
		chains, listed := tool.ListChains("nat")
		if slices.ContainsFunc(chains, func(c string) bool { return len(c) > 5 && c[:5] == "VIPD-" }) {
			t.Errorf("chains of ours are left: %q", chains)
		}
		jumps, exists := tool.Exists("nat", "POSTROUTING", flannelJump...)
		if !jumps {
			t.Error("flannel's jump is gone")
		}
		return errors.Join(err, listed, exists)
	}); err != nil {
		t.Fatal(err)
	}
}
