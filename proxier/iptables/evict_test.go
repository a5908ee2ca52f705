package iptables

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// ask syncs, and returns what the evictor was asked for.
func ask(t *testing.T, h *harness, p *Proxier, want lb.Snapshot, how proxier.How) string {
	t.Helper()
	*h.evictor = fakeEvictor{keep: h.evictor.keep}
	if err := p.Sync(t.Context(), want, how); err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, e := range h.evictor.evicted {
		words = append(words, "end "+e.Key.String()+">"+e.Backend.String())
	}
	for _, e := range h.evictor.cancelled {
		words = append(words, "keep "+e.Key.String()+">"+e.Backend.String())
	}
	slices.Sort(words)
	return strings.Join(words, "; ")
}

func TestFlowsEndWhenTheirBackendMayNotHaveThem(t *testing.T) {
	h := newFakeHarness()
	p := h.proxier()
	draining := svc("192.0.2.1:1", "10.0.0.1:1", "10.0.0.2:1")
	draining.Backends[1].Draining = true
	drainingUDP := svc("192.0.2.1:1/udp", "10.0.0.1:1", "10.0.0.2:1")
	drainingUDP.Backends[1].Draining = true
	for _, step := range []struct {
		name string
		svc  *lb.Service
		want string
	}{
		{"new TCP", svc("192.0.2.1:1", "10.0.0.1:1", "10.0.0.2:1"), "keep 192.0.2.1:1/tcp>10.0.0.1:1; keep 192.0.2.1:1/tcp>10.0.0.2:1"},
		{"TCP drains", draining, ""},
		{"TCP drain is over", svc("192.0.2.1:1", "10.0.0.1:1"), "end 192.0.2.1:1/tcp>10.0.0.2:1"},
		{"TCP target port changes", svc("192.0.2.1:1", "10.0.0.1:2"), "end 192.0.2.1:1/tcp>10.0.0.1:1; keep 192.0.2.1:1/tcp>10.0.0.1:2"},
		{"new UDP, TCP gone", svc("192.0.2.1:1/udp", "10.0.0.1:1", "10.0.0.2:1"),
			"end 192.0.2.1:1/tcp>10.0.0.1:2; end 192.0.2.1:1/udp>192.0.2.1:1; keep 192.0.2.1:1/udp>10.0.0.1:1; keep 192.0.2.1:1/udp>10.0.0.2:1"},
		{"UDP drains", drainingUDP, "end 192.0.2.1:1/udp>10.0.0.2:1"},
		{"UDP comes back", svc("192.0.2.1:1/udp", "10.0.0.1:1", "10.0.0.2:1"), "keep 192.0.2.1:1/udp>10.0.0.2:1"},
		{"UDP to no usable backend", svc("192.0.2.1:1/udp", "10.0.0.1:1*0", "10.0.0.2:1*0"), "end 192.0.2.1:1/udp>10.0.0.1:1; end 192.0.2.1:1/udp>10.0.0.2:1"},
		{"UDP usable again", svc("192.0.2.1:1/udp", "10.0.0.1:1"), "end 192.0.2.1:1/udp>192.0.2.1:1; keep 192.0.2.1:1/udp>10.0.0.1:1"},
	} {
		if got := ask(t, h, p, lb.NewSnapshot(step.svc), prune); got != step.want {
			t.Errorf("%s:\n got %s\nwant %s", step.name, got, step.want)
		}
		if got := ask(t, h, p, lb.NewSnapshot(step.svc), prune); got != "" {
			t.Errorf("%s, again: %s", step.name, got)
		}
	}
}

func TestB50_RestartEndsOnlyFlowsOfUnknownBackends(t *testing.T) {
	h := newFakeHarness()
	udp := svc("192.0.2.1:53/udp", "10.0.0.1:53", "10.0.0.2:53")
	udp.Backends[1].Draining = true
	tcp := svc("192.0.2.1:80", "10.0.0.1:80", "10.0.0.2:80")
	tcp.Backends[1].Draining = true
	idle := svc("192.0.2.2:53/udp")
	want := lb.NewSnapshot(udp, tcp, idle)
	ask(t, h, h.proxier(), want, prune)

	p := h.proxier()
	h.evictor.keep = nil
	if got := ask(t, h, p, want, proxier.How{}); strings.Contains(got, "end ") || h.evictor.keep != nil {
		t.Errorf("before the gate opens: %s, sweep %v", got, h.evictor.keep != nil)
	}
	if got := ask(t, h, p, want, prune); strings.Contains(got, "end ") || h.evictor.keep == nil {
		t.Fatalf("at the first pass that may remove: %s, sweep %v", got, h.evictor.keep != nil)
	}
	keep := h.evictor.keep
	for _, tc := range []struct {
		key, backend string
		want         bool
	}{
		{"192.0.2.1:53/udp", "10.0.0.1:53", true},
		{"192.0.2.1:53/udp", "10.0.0.2:53", false}, // draining
		{"192.0.2.1:53/udp", "10.0.0.1:54", false},
		{"192.0.2.1:53/udp", "192.0.2.1:53", false}, // went nowhere, and has a backend now
		{"192.0.2.2:53/udp", "192.0.2.2:53", true},  // goes nowhere still
		{"192.0.2.1:80", "10.0.0.2:80", true},       // draining
		{"192.0.2.1:80", "10.0.0.3:80", false},
		{"192.0.2.9:80", "10.0.0.1:80", false},
	} {
		if got := keep(svc(tc.key).Key, netip.MustParseAddrPort(tc.backend)); got != tc.want {
			t.Errorf("keep %s > %s: %v", tc.key, tc.backend, got)
		}
	}
	h.evictor.keep = nil
	ask(t, h, p, want, proxier.How{Prune: true, Fresh: true})
	if h.evictor.keep != nil {
		t.Error("swept twice")
	}
}

func TestRepairedWayInEndsFlowsThatWentNowhere(t *testing.T) {
	h := newFakeHarness()
	p := h.proxier()
	want := lb.NewSnapshot(svc("192.0.2.1:53/udp", "10.0.0.1:53"))
	ask(t, h, p, want, prune)
	fake := h.kernels[netfilter.IPv4].wholeKernel.(*fakeKernel)
	fake.base["PREROUTING"] = nil
	fake.harmed("PREROUTING")
	if got := ask(t, h, p, want, proxier.How{Prune: true, Fresh: true}); got != "end 192.0.2.1:53/udp>192.0.2.1:53" {
		t.Errorf("asked for %q", got)
	}
}

// After a restart the version that stands may be unknown, because the one that is
// wanted is refused: then its connections are kept, until it is known.
func TestB50_B59_RestartKeepsTheFlowsOfAVersionThatIsUnknown(t *testing.T) {
	h := newFakeHarness()
	old, other := svc("192.0.2.1:80", "10.0.0.1:80"), svc("192.0.2.2:80", "10.0.0.1:80")
	ask(t, h, h.proxier(), lb.NewSnapshot(old, other), prune)
	h.kernels[netfilter.IPv4].refuse = func(s string) bool { return strings.Contains(s, poison) }
	h.evictor.keep = nil
	p := h.proxier()
	bad := svc("192.0.2.1:80", "10.66.0.1:80")
	onlyFailed(t, "after a restart", p.Sync(t.Context(), lb.NewSnapshot(bad, other), prune), bad.Key)
	was := old.Backends[0].Addr
	if h.evictor.keep == nil || !h.evictor.keep(old.Key, was) {
		t.Error("the connections of the version that stands are not kept, or nothing is swept")
	}
	if h.evictor.keep(other.Key, netip.MustParseAddrPort("10.0.0.7:80")) {
		t.Error("the flows of others are not swept")
	}
	h.evictor.keep = nil
	onlyFailed(t, "again", p.Sync(t.Context(), lb.NewSnapshot(bad, other), prune), bad.Key)
	if h.evictor.keep != nil {
		t.Error("swept again, and nothing more is known")
	}
	ask(t, h, p, lb.NewSnapshot(svc("192.0.2.1:80", "10.0.0.2:80"), other), prune)
	if h.evictor.keep == nil || h.evictor.keep(old.Key, was) {
		t.Error("the flows to what the unknown version had are not swept once it is gone")
	}
}

// A commit takes effect, nobody knows, and what it wrote is not wanted any more:
// nobody but a sweep can find its flows.
func TestFlowsOfAnUnknownCommitAreSwept(t *testing.T) {
	h := newFakeHarness()
	p := h.proxier()
	first, second := svc("192.0.2.1:53/udp", "10.0.0.1:53"), svc("192.0.2.1:53/udp", "10.0.0.2:53")
	ask(t, h, p, lb.NewSnapshot(first), prune)
	k := h.kernels[netfilter.IPv4]
	k.after = func(string) error { return errKilled }
	if err := p.Sync(t.Context(), lb.NewSnapshot(second), prune); err == nil {
		t.Fatal("no error")
	}
	if !h.evictor.keep(first.Key, second.Backends[0].Addr) {
		t.Error("a sweep ends flows of rules that may stand")
	}
	k.after, h.evictor.keep = nil, nil
	ask(t, h, p, lb.NewSnapshot(first), prune)
	if h.evictor.keep == nil || h.evictor.keep(first.Key, second.Backends[0].Addr) || !h.evictor.keep(first.Key, first.Backends[0].Addr) {
		t.Error("the flows of a version that stood for a while are not swept, or those of the one that stands are")
	}
}

// A sweep may run beside a pass, and meet the first connection of a new backend.
func TestASweepBesideAPassKeepsNewConnections(t *testing.T) {
	h := newFakeHarness()
	p := h.proxier()
	first, second := svc("192.0.2.1:80", "10.0.0.1:80"), svc("192.0.2.1:80", "10.0.0.2:80")
	ask(t, h, p, lb.NewSnapshot(first), prune)
	keep, commits := h.evictor.keep, 0
	h.kernels[netfilter.IPv4].watch = func() {
		commits++
		if !keep(first.Key, second.Backends[0].Addr) || !keep(first.Key, first.Backends[0].Addr) {
			t.Error("a connection through a rule that was just written is not kept, or one of before")
		}
	}
	ask(t, h, p, lb.NewSnapshot(second), prune)
	if commits == 0 || keep(first.Key, first.Backends[0].Addr) {
		t.Error("no commit, or what went is kept afterwards")
	}
}
