package iptables

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

func withAffinity(s *lb.Service, d time.Duration) *lb.Service {
	s.Affinity = d
	return s
}

// lists returns the service with only those of its backends.
func lists(s *lb.Service, backends ...int) *lb.Service {
	c := *s
	c.Backends = nil
	for i, b := range s.Backends {
		if slices.Contains(backends, i) {
			c.Backends = append(c.Backends, b)
		}
	}
	return &c
}

// TestB35_ClientThatMovedStays follows one client through versions of a service:
// it leaves a backend that gets nothing new, and only then.
func TestB35_ClientThatMovedStays(t *testing.T) {
	h := newFakeHarness()
	p := h.proxier()
	clients, rng := clientMemory{}, rand.New(rand.NewPCG(1, 1))
	s := withAffinity(many("192.0.2.1:80", 40, 1), time.Minute)
	all := make([]int, len(s.Backends))
	for i := range all {
		all[i] = i
	}
	version := func(draining []int, backends ...int) *lb.Service {
		v := lists(s, backends...)
		for i, b := range v.Backends {
			v.Backends[i].Draining = slices.ContainsFunc(draining, func(d int) bool { return s.Backends[d].Addr == b.Addr })
		}
		return v
	}
	var at netip.AddrPort
	step := func(version *lb.Service) {
		t.Helper()
		if err := p.Sync(t.Context(), lb.NewSnapshot(version), prune); err != nil {
			t.Fatal(err)
		}
		now := h.tracer(t, netfilter.IPv4).connect(s.Key, "client", clients, rng)
		b, found := version.Backend(now)
		if !found || !b.Usable() {
			t.Fatalf("the client is sent to %s", now)
		}
		if b, found := version.Backend(at); found && b.Usable() && now != at {
			t.Fatalf("the client goes from %s to %s", at, now)
		}
		at = now
	}
	step(version([]int{0, 1, 2}, 0, 1, 2, 3))
	step(version([]int{0}, 0, 1)) // the slot that it leaves is not asked any more
	step(version([]int{0, 1, 2}, 0, 1, 2, 3))
	step(version([]int{0, 2}, 0, 1, 2, 3))
	for range 200 {
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		n := 1 + rng.IntN(len(all))
		step(version(all[1:1+rng.IntN(n)], all[:n]...))
		if rng.IntN(10) == 0 {
			p = h.proxier()
		}
	}
	if n := len(clients); n == 0 || n > 80 {
		t.Errorf("the client is in %d sets", n)
	}
}

func TestB33_RulesSayForHowLong(t *testing.T) {
	for _, d := range []time.Duration{time.Second, 3 * time.Hour, netfilter.MaxTimeout * time.Second} {
		s := withAffinity(many("192.0.2.1:80", 20, 1), d)
		tr := newTracer(layoutOf(t, s))
		clients := clientMemory{}
		for i := range 50 {
			tr.connect(s.Key, fmt.Sprint(i), clients, rand.New(rand.NewPCG(uint64(i), 1)))
		}
		for e, stay := range clients {
			if want := fmt.Sprint(int(d.Seconds())); stay != want {
				t.Errorf("%s of %s stays %s s, want %s", e.client, e.set, stay, want)
			}
		}
		if len(clients) < 50 {
			t.Errorf("50 clients have %d entries", len(clients))
		}
	}
}

// TestAffinityIsNeverTooDeep holds the whole way to 14 chains, with the deepest
// tree.
func TestAffinityIsNeverTooDeep(t *testing.T) {
	const tree = deepestTree
	for _, n := range []int{1, 16, 17, 128, 129, 500, 2000} {
		for _, scheduler := range []lb.Scheduler{lb.WRR, lb.RR} {
			s := withAffinity(many("192.0.2.1:80", n, 1, 3), time.Minute)
			s.Scheduler = scheduler
			tr := newTracer(layoutOf(t, s))
			tr.to(s.Key)
			if deep := tr.deep - 2 + tree; deep > 14 { // of these two: VIPD-2-DISP and PREROUTING's jump
				t.Errorf("%d backends: %d chains deep", n, deep)
			}
		}
	}
}

// TestAffinityCostsAPacketLittle counts the rules on the way of clients, new and
// known, from the chain of the service on.
func TestAffinityCostsAPacketLittle(t *testing.T) {
	for _, n := range []int{2, 10, 16, 17, 100, 500, 2000} {
		s := withAffinity(many("192.0.2.1:80", n, 1), time.Minute)
		tr := newTracer(layoutOf(t, s))
		clients, rng := clientMemory{}, rand.New(rand.NewPCG(1, 1))
		var visits [2]int
		for round := range visits {
			for i := range 200 {
				was := tr.visits
				tr.connect(s.Key, fmt.Sprint(i), clients, rng)
				visits[round] += tr.visits - was
			}
		}
		t.Logf("%5d backends: %3d rules for a new client, %3d for a known one", n, visits[0]/200, visits[1]/200)
		if most := 40 + n/groupSize + 2*max(spreadSize, n/spreadSize); visits[0]/200 > most || visits[1]/200 > most {
			t.Errorf("%d backends: more than %d rules", n, most)
		}
	}
}

func TestSlotsAreKeptAndUsedAgain(t *testing.T) {
	s := withAffinity(many("192.0.2.1:80", 6, 1), time.Minute)
	numbers := func(all slots) map[netip.AddrPort]int {
		m := map[netip.AddrPort]int{}
		for _, s := range all {
			m[s.addr] = s.n
		}
		return m
	}
	first := assign(lists(s, 0, 1, 2), nil, nil)
	second := assign(lists(s, 0, 2, 5), first, nil) // 1 goes, 5 comes
	a, b := numbers(first), numbers(second)
	for _, kept := range []int{0, 2} {
		if addr := s.Backends[kept].Addr; a[addr] != b[addr] {
			t.Errorf("%s goes from slot %d to %d", addr, a[addr], b[addr])
		}
	}
	if n := b[s.Backends[5].Addr]; n != 3 {
		t.Errorf("the slot of the one that goes is given away at once: %d", n)
	}
	third := assign(lists(s, 0, 2, 4, 5), second, nil)
	if n := numbers(third)[s.Backends[4].Addr]; n != 1 {
		t.Errorf("a free slot is not used: %d", n)
	}
	found := map[string]int{}
	for _, x := range third {
		hash, n, ok := slotOf(backendChain(x.n, s.Key, x.addr))
		if !ok {
			t.Fatalf("the name of slot %d cannot be read", x.n)
		}
		found[hash] = n
	}
	if !maps.Equal(numbers(assign(lists(s, 0, 2, 4, 5), nil, found)), numbers(third)) {
		t.Error("a restart gives other slots")
	}
	clash := map[string]int{backendHash(s.Key, s.Backends[0].Addr): 1, backendHash(s.Key, s.Backends[1].Addr): 1}
	if n := numbers(assign(lists(s, 0, 1), nil, clash)); n[s.Backends[0].Addr] == n[s.Backends[1].Addr] {
		t.Error("two backends have one slot")
	}
}

func TestSlotsOfServicesAreSpreadOverTheSets(t *testing.T) {
	used := map[string]int{}
	const services = 1600
	for i := range services {
		s := withAffinity(many(fmt.Sprintf("10.96.%d.%d:80", i/250, i%250), 2, 1), time.Minute)
		for _, set := range newSticky(s, assign(s, nil, nil)).sets() {
			used[set.name]++
		}
	}
	for set, n := range used {
		if n < 100 || n > 320 {
			t.Errorf("%d of %d services with two backends use %s", n, services, set)
		}
	}
	if len(used) != groupSize {
		t.Errorf("%d sets are in use, want %d", len(used), groupSize)
	}
}

// TestSetsComeBeforeRulesAndGoAfterThem has a strict kernel: a rule that names no
// set is refused, a set that a rule names is not removed.
func TestSetsComeBeforeRulesAndGoAfterThem(t *testing.T) {
	h := newFakeHarness()
	p := h.proxier()
	a := withAffinity(many("192.0.2.1:80", 3, 1), time.Minute)
	b := withAffinity(many("192.0.2.2:80", 20, 1), time.Minute)
	for i, tc := range []struct {
		want []*lb.Service
		sets bool
	}{
		{[]*lb.Service{a}, true},
		{[]*lb.Service{a, b}, true},
		{[]*lb.Service{b}, true},
		{[]*lb.Service{many("192.0.2.2:80", 20, 1)}, false},
		{[]*lb.Service{a}, true},
		{[]*lb.Service{withAffinity(many("192.0.2.1:80", 3, 0), time.Minute)}, true}, // keeps the slots
		{nil, false},
		{[]*lb.Service{a}, true},
		{[]*lb.Service{many("192.0.2.1:80", 3, 1)}, false}, // after a restart
	} {
		if i%2 == 0 {
			p = h.proxier()
		}
		if err := p.Sync(t.Context(), lb.NewSnapshot(tc.want...), prune); err != nil {
			t.Fatal(err)
		}
		if got := len(h.clientSets(t)) > 0; got != tc.sets {
			t.Errorf("step %d: sets %v, want any: %v", i, h.clientSets(t), tc.sets)
		}
	}
}

func TestServiceWhoseSetsCannotBeMadeFailsAlone(t *testing.T) {
	h := newFakeHarness()
	sets := h.sets.(*netfilter.FakeSets)
	sets.Fail = func(op, set string) error {
		if op == "create" {
			return netfilter.ErrSetType
		}
		return nil
	}
	bad, good := withAffinity(many("192.0.2.1:80", 3, 1), time.Minute), many("192.0.2.2:80", 3, 1)
	p := h.proxier()
	err := p.Sync(t.Context(), lb.NewSnapshot(bad, good), prune)
	failed, only := proxier.FailedServices(err)
	if !only || len(failed) != 1 || failed[bad.Key] == nil {
		t.Fatal(err)
	}
	if len(h.Served(t, good.Key)) != 3 || len(h.Served(t, bad.Key)) != 0 {
		t.Error("the other service is not served, or this one is")
	}
}
