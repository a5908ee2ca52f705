package iptables

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier/proxiertest"
)

// serviceOf gives a key a backend that no other service of the test has.
func serviceOf(k lb.Key, number int) *lb.Service {
	a := netip.AddrFrom4([4]byte{100, byte(number >> 16), byte(number >> 8), byte(number)})
	if k.Addr.Is6() {
		a = netip.AddrFrom16([16]byte{0xfd, 13: byte(number >> 16), 14: byte(number >> 8), 15: byte(number)})
	}
	return &lb.Service{Key: k, Scheduler: lb.WRR, Backends: []lb.Backend{{Addr: netip.AddrPortFrom(a, 80), Weight: 1}}}
}

// served drops the keys whose protocol this mode does not serve.
func served(keys []lb.Key) []lb.Key {
	return slices.DeleteFunc(keys, func(k lb.Key) bool { return validate(serviceOf(k, 0)) != nil })
}

func TestTreeIsTheSetOfItsKeys(t *testing.T) {
	for _, set := range keySets {
		rng := rand.New(rand.NewPCG(7, 7))
		pool := set.make(400, rng)
		var root *tree
		have := map[lb.Key]bool{}
		for range 200 {
			var in, out []lb.Key
			for range rng.IntN(12) {
				k := pool[rng.IntN(len(pool))]
				switch {
				case slices.Contains(in, k) || slices.Contains(out, k):
				case have[k]:
					out = append(out, k)
				default:
					in = append(in, k)
				}
			}
			if rng.IntN(40) == 0 {
				in, out = nil, slices.Collect(maps.Keys(have))
			}
			slices.SortFunc(in, compareKeys)
			slices.SortFunc(out, compareKeys)
			before := root
			root = root.update(in, out)
			for _, k := range in {
				have[k] = true
			}
			for _, k := range out {
				delete(have, k)
			}
			keys := root.all(nil)
			if !slices.IsSortedFunc(keys, compareKeys) || len(keys) != len(have) || slices.ContainsFunc(keys, func(k lb.Key) bool { return !have[k] || !root.has(k) }) {
				t.Fatalf("%s: the tree holds %d keys, want %d", set.name, len(keys), len(have))
			}
			for _, k := range pool {
				if root.has(k) != have[k] {
					t.Fatalf("%s: %s: has says %v", set.name, k, root.has(k))
				}
			}
			if len(in)+len(out) == 0 && before != root {
				t.Fatalf("%s: an update with nothing makes another tree", set.name)
			}
			sameChains(t, set.name, before, root)
		}
	}
}

// sameChains checks that what is written and removed between two trees leads to
// the chains of the new one, and that they are those of a tree made at once.
func sameChains(t *testing.T, name string, before, after *tree) {
	t.Helper()
	chains := map[string]string{}
	for _, n := range chainsOf(before) {
		chains[nodeName(n)] = fmt.Sprint(nodeChain(n).Rules)
	}
	write, gone := diffChains(before, after)
	for _, n := range write {
		if text := fmt.Sprint(nodeChain(n).Rules); chains[nodeName(n)] == text {
			t.Errorf("%s: a chain is written that stays what it was", name)
		} else {
			chains[nodeName(n)] = text
		}
	}
	for _, n := range gone {
		delete(chains, nodeName(n))
	}
	want := map[string]string{}
	for _, n := range chainsOf(treeOf(after.all(nil))) {
		want[nodeName(n)] = fmt.Sprint(nodeChain(n).Rules)
	}
	if !maps.Equal(chains, want) {
		t.Fatalf("%s: %d chains, want %d, or others", name, len(chains), len(want))
	}
}

func TestTreeFindsEveryServiceAndNothingElse(t *testing.T) {
	for _, set := range keySets {
		keys := served(treeOf(set.make(3000, rand.New(rand.NewPCG(3, 3)))).all(nil))
		var services []*lb.Service
		for i, k := range keys {
			services = append(services, serviceOf(k, i))
		}
		tr := newTracer(layoutOf(t, services...))
		for _, s := range services {
			if got := tr.to(s.Key); !sameShares(got, proxiertest.Shares(s)) {
				t.Fatalf("%s: %s goes to %v", set.name, s.Key, got)
			}
			for _, miss := range neighbours(s.Key) {
				_, found := slices.BinarySearchFunc(keys, miss, compareKeys)
				if got := tr.to(miss); !found && len(got) > 0 {
					t.Fatalf("%s: %s, which is no service, goes to %v", set.name, miss, got)
				}
			}
		}
		if below := 3; tr.deep+below > 14 { // two levels of backends and one of affinity
			t.Errorf("%s: %d chains deep", set.name, tr.deep)
		}
	}
}

// neighbours returns keys that differ a little.
func neighbours(k lb.Key) (all []lb.Key) {
	for _, p := range []lb.Protocol{lb.TCP, lb.UDP, lb.SCTP} {
		for _, port := range []uint16{k.Port - 1, k.Port, k.Port + 1, k.Port ^ 0x100} {
			for _, a := range []netip.Addr{k.Addr, k.Addr.Next()} {
				if n := (lb.Key{Addr: a, Port: port, Protocol: p}); n != k && a.IsValid() && port != 0 {
					all = append(all, n)
				}
			}
		}
	}
	return all
}

// TestEveryPrefixOfTheCommitsServes changes sets at random, a commit for each
// chain, and looks after each who gets the packets of what stays and what changes.
func TestEveryPrefixOfTheCommitsServes(t *testing.T) {
	for _, set := range keySets {
		rng := rand.New(rand.NewPCG(11, 11))
		pool := served(treeOf(set.make(260, rng)).all(nil))
		h := newFakeHarness()
		p := h.proxier()
		for _, f := range p.families {
			f.limit = 1
		}
		family := netfilter.FamilyOf(pool[0].Addr)
		now := lb.Snapshot{}
		for round := range 6 {
			e := now.Edit()
			for range 1 + rng.IntN(40) {
				k := pool[rng.IntN(len(pool))]
				if now.Get(k) != nil && rng.IntN(3) > 0 {
					e.Delete(k)
				} else {
					e.Put(serviceOf(k, rng.IntN(1<<20)))
				}
			}
			if round == 0 {
				for i, k := range pool[:150] {
					e.Put(serviceOf(k, i))
				}
			}
			was, next := now, e.Snapshot()
			h.kernels[family].watch = func() { checkBetween(t, h, pool, was, next) }
			if err := p.Sync(t.Context(), next, prune); err != nil {
				t.Fatalf("%s: %v", set.name, err)
			}
			h.kernels[family].watch = nil
			proxiertest.Expect(t, h, next)
			if now = next; t.Failed() {
				t.Fatalf("%s, round %d", set.name, round)
			}
		}
		quietly(t, h, p, now)
	}
}

// checkBetween checks that packets go where they went before or go afterwards.
func checkBetween(t *testing.T, h *harness, pool []lb.Key, was, next lb.Snapshot) {
	t.Helper()
	for _, k := range pool {
		got := h.Served(t, k)
		if before, after := was.Get(k), next.Get(k); !sameShares(got, proxiertest.Shares(before)) && !sameShares(got, proxiertest.Shares(after)) {
			t.Errorf("between two commits %s goes to %v", k, got)
		}
	}
}

// all appends the keys in order.
func (t *tree) all(keys []lb.Key) []lb.Key {
	switch {
	case t == nil:
		return keys
	case t.left == nil:
		return append(keys, t.key)
	}
	return t.right.all(t.left.all(keys))
}
