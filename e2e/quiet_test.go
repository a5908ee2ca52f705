//go:build kernel

package e2e

import (
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
	"vipd/reconciler"
)

// calm makes resyncs so rare that nothing is repaired but what vipd is told of.
func calm(text string) string {
	return strings.Replace(text, `sync_period = "2s"`, `sync_period = "1h"`, 1)
}

// idle tells whether nothing is under way.
func idle(s reconciler.Status) bool { return s.Ready && !s.Pass.Pending }

// passes returns how many passes vipd has made once nothing is under way, and has not
// been for some time: a source that repeats its answer may be a pass more.
func (w *world) passes() uint64 {
	w.t.Helper()
	return w.await("rest", func(s reconciler.Status) bool {
		return idle(s) && time.Since(s.Pass.Started.Add(s.Pass.Duration)) > 500*time.Millisecond
	}).Pass.Count
}

// TestB54_OurOwnWritesCauseNoPass counts: a reload that changes something is one
// pass, and what that pass writes is not taken for somebody else's doing.
func TestB54_OurOwnWritesCauseNoPass(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	web := service{name: "web", port: 80, backends: w.at(8080, 1)}
	other := service{name: "other", vips: []string{"192.0.2.11", "2001:db8::11"}, port: 80, backends: w.at(8080, 1, 2)}
	w.write(calm(config(web, other)))
	w.start()
	const changes = 10
	before, generation := w.passes(), w.generation()
	for i := range changes {
		web.backends = w.at(8080, 2-i%2)
		w.reload(calm(config(web, other)))
	}
	if w.generation() == generation {
		t.Error("nothing was written")
	}
	time.Sleep(time.Second) // longer than any watch takes to tell
	n := w.passes() - before
	t.Logf("%d changes were %d passes", changes, n)
	if n < changes || n > changes+changes/4 { // a drain may end in a pass of its own
		t.Errorf("%d changes were %d passes", changes, n)
	}
}

// TestB60_WhatOthersDoToTheirOwnCausesNoPass has others go about their business: a
// firewall that adds and removes rules behind ours, chains and tables of others.
func TestB60_WhatOthersDoToTheirOwnCausesNoPass(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 1)
	w.serveAll(8080)
	w.write(calm(config(service{name: "web", port: 80, backends: w.at(8080, 1)})))
	w.start()
	before := w.passes()
	for _, tool := range []string{"iptables-nft", "ip6tables-nft"} {
		for _, args := range [][]string{
			{"-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP"},
			{"-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "9", "-j", "ACCEPT"},
			{"-N", "f2b-sshd"}, {"-A", "f2b-sshd", "-j", "RETURN"}, {"-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "f2b-sshd"},
			{"-I", "f2b-sshd", "1", "-p", "tcp", "--dport", "2222", "-j", "DROP"}, {"-D", "f2b-sshd", "1"},
			{"-D", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP"},
			{"-t", "mangle", "-A", "FORWARD", "-p", "tcp", "--dport", "9", "-j", "ACCEPT"},
		} {
			w.LB.Run(t, tool, args...)
		}
	}
	w.LB.Run(t, "nft", "add table inet other { chain input { type filter hook input priority 0; } ; }")
	w.LB.Run(t, "nft", "delete table inet other")
	w.LB.Run(t, "ipset", "create", "foreign", "hash:ip")
	w.LB.Run(t, "ipset", "add", "foreign", "198.51.100.1")
	time.Sleep(2 * time.Second) // twice as long as a poll of the sets waits
	if n := w.passes() - before; n != 0 {
		t.Errorf("%d passes, for nothing", n)
	}
}

// TestF82_AfterConntrackIsFlushedNewConnectionsAreFine: the translation of
// established connections is gone with their entries, which nobody can bring back.
// Their ends are told at once.
func TestF82_AfterConntrackIsFlushedNewConnectionsAreFine(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	w.write(calm(config(
		service{name: "web", port: 80, backends: w.at(8080, 1, 2)},
		service{name: "dns", port: 53, protocol: "udp", backends: w.at(8080, 1, 2)})))
	w.start()
	whole := w.kernelState()
	flows, held := w.load(w.Client), w.load(w.Client)
	for i, target := range targets(80) {
		held.Hold(loss.Hold{Target: target, Count: 5, Every: slower(20 * time.Millisecond)})
		flows.Send(loss.Flows{Target: targets(53)[i], Count: 5, Every: slower(20 * time.Millisecond)})
	}
	w.LB.Run(t, "conntrack", "-F")
	for i, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b1", "b2")
		w.answeredBy(w.Client, "udp", targets(53)[i], "b1", "b2")
	}
	before := flows.Report().Datagrams.Total
	w.eventually("the flows go on", func() bool { return flows.Report().Datagrams.Total > before+50 })
	if r := flows.Stop(); r.Lost() > 10 { // an answer on its way finds no entry: one a flow at most
		t.Errorf("UDP flows:\n%s", r)
	}
	if r := held.Stop(); r.Held.Classes[loss.Reset] != r.Held.Total {
		t.Errorf("the established connections were not all reset:\n%s", r)
	}
	if diff := differ(whole, w.kernelState()); diff != "" {
		t.Errorf("the rules changed:\n%s", diff)
	}
	if s := w.await("rest", idle); s.Pass.Error != "" {
		t.Errorf("the last pass says %q", s.Pass.Error)
	}
}
