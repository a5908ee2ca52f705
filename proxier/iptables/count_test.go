package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// fakeFlows is a conntrack table by what its flows are named, and how often it was
// dumped.
type fakeFlows struct {
	flows map[netfilter.Eviction]netfilter.FlowCount
	dumps int
	err   error
}

func (f *fakeFlows) count(_ context.Context, wanted ...netfilter.Eviction) (map[netfilter.Eviction]netfilter.FlowCount, error) {
	f.dumps++
	found := map[netfilter.Eviction]netfilter.FlowCount{}
	for _, e := range wanted {
		found[e] = f.flows[e]
	}
	return found, f.err
}

// connect notes flows of a way, from a service to its second backend.
func (f *fakeFlows) connect(s *lb.Service, way netfilter.Way, active, inactive uint32) {
	f.flows[netfilter.Eviction{Key: s.Key, Backend: s.Backends[1].Addr, Way: way}] = netfilter.FlowCount{Active: active, Inactive: inactive}
}

func countsOf(t *testing.T, p proxier.Counter, keys ...lb.Key) string {
	t.Helper()
	counts, err := p.Counters(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, c := range counts {
		words = append(words, fmt.Sprintf("%s>%s %d+%d", c.Service, c.Backend, c.Active, c.Inactive))
	}
	slices.Sort(words)
	return strings.Join(words, "; ")
}

// Only backends that no rule leads to are counted: not before the pass that takes
// their rules away has ended, nor where it was refused, nor where nobody knows.
func TestCountersAreOfBackendsThatGetNothingNew(t *testing.T) {
	h := newFakeHarness()
	table := &fakeFlows{flows: map[netfilter.Eviction]netfilter.FlowCount{}}
	kernels := map[netfilter.Family]kernel{netfilter.IPv4: h.kernels[netfilter.IPv4], netfilter.IPv6: h.kernels[netfilter.IPv6]}
	p := newProxier(Options{Log: quietLog, Evict: h.evictor, Sets: h.sets, Count: table.count}, kernels, nil)
	serves := svc("192.0.2.1:80", "10.0.0.1:80", "10.0.0.2:80")
	drains := svc("192.0.2.1:80", "10.0.0.1:80", "10.0.0.2:80")
	drains.Backends[1].Draining = true
	six := svc("[2001:db8::1]:80", "[fd00::1]:80", "[fd00::2]:80*0")
	keys := []lb.Key{serves.Key, six.Key, svc("192.0.2.3:80").Key}
	table.connect(drains, netfilter.ByNAT, 3, 5)
	table.connect(drains, netfilter.ByIPVS, 7, 7)
	sync := func(want ...*lb.Service) error {
		return p.Sync(t.Context(), lb.NewSnapshot(append(want, six)...), prune)
	}
	expect := func(when, want string) {
		t.Helper()
		if got := countsOf(t, p, keys...); got != want {
			t.Errorf("%s: counts %q, want %q", when, got, want)
		}
	}
	const ofSix = "[2001:db8::1]:80/tcp>[fd00::2]:80 0+0"
	expect("before the first pass", "")
	if err := sync(serves); err != nil {
		t.Fatal(err)
	}
	expect("both serve", ofSix)
	k := h.kernels[netfilter.IPv4]
	k.watch = func() { expect("during the pass", ofSix) }
	if err := sync(drains); err != nil {
		t.Fatal(err)
	}
	k.watch = nil
	const both = "192.0.2.1:80/tcp>10.0.0.2:80 3+5; " + ofSix
	expect("one drains", both)
	dumps := table.dumps
	if got := countsOf(t, p, svc("192.0.2.3:80").Key); got != "" || table.dumps > dumps {
		t.Errorf("a service without a drain: %q, %d dumps", got, table.dumps-dumps)
	}
	table.connect(drains, netfilter.ByNAT, 0, 5)
	expect("the last connection ended", "192.0.2.1:80/tcp>10.0.0.2:80 0+5; "+ofSix)
	k.before = func(string) error { return errKilled }
	if err := sync(serves); err == nil {
		t.Fatal("no error")
	}
	expect("after a pass of which nobody knows what it wrote", ofSix)
	table.err = errors.New("refused by the test")
	if counts, err := p.Counters(t.Context(), keys); !errors.Is(err, table.err) || len(counts) > 0 {
		t.Errorf("a table that cannot be read: %v, %v", counts, err)
	}
}

// The version in which the backend drains is refused: it still gets connections.
func TestCountersLeaveOutADrainThatWasRefused(t *testing.T) {
	h := newFakeHarness()
	table := &fakeFlows{}
	p := h.proxier()
	p.count = table.count
	serves := svc("192.0.2.1:80", "10.0.0.1:80", "10.0.0.2:80")
	if err := p.Sync(t.Context(), lb.NewSnapshot(serves), prune); err != nil {
		t.Fatal(err)
	}
	drains := svc("192.0.2.1:80", "10.0.0.1:80", "10.0.0.2:80")
	drains.Backends[1].Draining = true
	h.kernels[netfilter.IPv4].refuse = func(s string) bool { return strings.Contains(s, "-A "+serviceChain(serves.Key)+" ") }
	onlyFailed(t, "the drain", p.Sync(t.Context(), lb.NewSnapshot(drains), prune), serves.Key)
	if got := countsOf(t, p, serves.Key); got != "" {
		t.Errorf("counts %q", got)
	}
}
