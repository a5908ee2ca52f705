package iptables

import (
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"vipd/lb"
)

func treeOf(keys []lb.Key) *tree {
	keys = slices.Clone(keys)
	slices.SortFunc(keys, compareKeys)
	return (*tree)(nil).update(slices.Compact(keys), nil)
}

// chainsOf returns the nodes of a tree that have a chain, but for the root.
func chainsOf(t *tree) []*tree {
	write, _ := diffChains(nil, t)
	return write
}

func key4(addr uint32, port int, p lb.Protocol) lb.Key {
	a := netip.AddrFrom4([4]byte{byte(addr >> 24), byte(addr >> 16), byte(addr >> 8), byte(addr)})
	return lb.Key{Addr: a, Port: uint16(port), Protocol: p}
}

// keySets are sets of about n keys, kind ones and cruel ones.
var keySets = []struct {
	name string
	make func(n int, rng *rand.Rand) []lb.Key
}{
	{"in a row", func(n int, _ *rand.Rand) (keys []lb.Key) {
		for i := range n {
			keys = append(keys, key4(10<<24+uint32(i), 80, lb.TCP))
		}
		return keys
	}},
	{"random", func(n int, rng *rand.Rand) (keys []lb.Key) {
		for range n {
			keys = append(keys, key4(10<<24+rng.Uint32N(1<<24), 80, lb.TCP))
		}
		return keys
	}},
	{"two ports", func(n int, rng *rand.Rand) (keys []lb.Key) {
		for i := range n / 2 {
			keys = append(keys, key4(10<<24+uint32(i), 80, lb.TCP), key4(10<<24+uint32(i), 443, lb.TCP))
		}
		return keys
	}},
	{"three protocols", func(n int, rng *rand.Rand) (keys []lb.Key) {
		for i := range n / 3 {
			for _, p := range []lb.Protocol{lb.TCP, lb.UDP, lb.SCTP} {
				keys = append(keys, key4(10<<24+uint32(i)*7, 53, p))
			}
		}
		return keys
	}},
	{"1,000 ports", func(n int, rng *rand.Rand) (keys []lb.Key) {
		for i := range n {
			keys = append(keys, key4(10<<24+uint32(i/1000), 1+rng.IntN(65535), lb.TCP))
		}
		return keys
	}},
	{"ipv6 random", func(n int, rng *rand.Rand) (keys []lb.Key) {
		for range n {
			a := [16]byte{0xfd}
			for i := 8; i < 16; i++ {
				a[i] = byte(rng.Uint32())
			}
			keys = append(keys, lb.Key{Addr: netip.AddrFrom16(a), Port: 443, Protocol: lb.UDP})
		}
		return keys
	}},
	{"few bits", func(n int, _ *rand.Rand) (keys []lb.Key) { // an address with at most 4 bits
		for _, a := range sparse(32, 4, n) {
			keys = append(keys, key4(uint32(a[0]), 80, lb.TCP))
		}
		return keys
	}},
	{"few bits of 6", func(n int, _ *rand.Rand) (keys []lb.Key) {
		for _, a := range sparse(128, 3, n) {
			var b [16]byte
			for i := range 8 {
				b[7-i], b[15-i] = byte(a[1]>>(8*i)), byte(a[0]>>(8*i))
			}
			keys = append(keys, lb.Key{Addr: netip.AddrFrom16(b), Port: 80, Protocol: lb.TCP})
		}
		return keys
	}},
	{"staircase", func(n int, _ *rand.Rand) (keys []lb.Key) {
		for i := range n {
			keys = append(keys, key4(uint32(1)<<(i%32)|uint32(i/32), 1+i/32%65535, lb.TCP))
		}
		return keys
	}},
}

// sparse returns n numbers of some bits, of which at most a few are set.
func sparse(width, most, n int) (all [][2]uint64) {
	var add func(v [2]uint64, from, left int)
	add = func(v [2]uint64, from, left int) {
		if len(all) == n {
			return
		}
		all = append(all, v)
		for i := from; i < width && left > 0; i++ {
			w := v
			w[i/64] |= 1 << (i % 64)
			add(w, i+1, left-1)
		}
	}
	add([2]uint64{}, 0, most)
	return all
}

// shape is what a packet and the kernel see of a tree.
type shape struct {
	chains, rules, depth, worst int
	sum                         int // of the rules to each key
}

func (s *shape) walk(t *tree, at, depth int) {
	s.chains++
	s.depth = max(s.depth, depth)
	for i, n := range t.items(nil) {
		s.rules++
		if n.size > 1 {
			s.walk(n, at+i+1, depth+1)
			continue
		}
		s.worst = max(s.worst, at+i+1)
		s.sum += at + i + 1
	}
}

// TestTreeIsShallowAndShort prints how many rules there are from the first one of
// the root to the one that goes to a service.
func TestTreeIsShallowAndShort(t *testing.T) {
	t.Logf("%-16s %7s %6s %5s %5s %7s", "VIPs", "keys", "avg", "worst", "depth", "chains")
	for _, set := range keySets {
		for _, n := range []int{1000, 10000, 65000, 131072} {
			root := treeOf(set.make(n, rand.New(rand.NewPCG(uint64(n), 1))))
			var s shape
			s.walk(root, 0, 1)
			keys := int(root.size)
			t.Logf("%-16s %7d %6.1f %5d %5d %7d", set.name, keys, float64(s.sum)/float64(keys), s.worst, s.depth, s.chains)
			if s.depth > deepestTree {
				t.Errorf("%s, %d keys: chains nest %d deep", set.name, keys, s.depth)
			}
			if bound := worstRules(set.name, keys); s.worst > bound || s.chains > 1+keys/3 {
				t.Errorf("%s, %d keys: %d rules, want at most %d; %d chains", set.name, keys, s.worst, bound, s.chains)
			}
		}
	}
}

// worstRules is what sets as people have them must stay below, and the cruel ones.
func worstRules(name string, keys int) int {
	switch name {
	case "in a row", "random", "two ports", "1,000 ports", "ipv6 random":
		if keys <= 65536 {
			return 24
		}
		return 28
	}
	return 10 * bits.Len(uint(keys))
}

// TestTreeChangesNearWhatChanges prints how many chains are written and removed
// when one key comes or goes.
func TestTreeChangesNearWhatChanges(t *testing.T) {
	t.Logf("%-16s %6s  chains touched by one key: %5s %4s %4s %5s %5s", "VIPs", "keys", "avg", "p50", "p90", "p99", "most")
	for _, set := range keySets {
		for _, n := range []int{10000, 50000} {
			rng := rand.New(rand.NewPCG(uint64(n), 2))
			keys := set.make(n, rng)
			spare := keys[:500]
			root := treeOf(keys[500:])
			var touched []int
			for i := range 300 {
				k := spare[rng.IntN(len(spare))]
				in, out := []lb.Key{k}, []lb.Key(nil)
				if i%2 == 1 || root.has(k) {
					in, out = nil, []lb.Key{keys[500+rng.IntN(len(keys)-500)]}
					if !root.has(out[0]) {
						in, out = out, nil
					}
				}
				next := root.update(in, out)
				write, gone := diffChains(root, next)
				touched = append(touched, 1+len(write)+len(gone))
				root = next
			}
			slices.Sort(touched)
			sum := 0
			for _, n := range touched {
				sum += n
			}
			at := func(share float64) int { return touched[int(share*float64(len(touched)-1))] }
			avg := float64(sum) / float64(len(touched))
			t.Logf("%-16s %6d  %32.1f %4d %4d %5d %5d", set.name, n, avg, at(.5), at(.9), at(.99), at(1))
			if avg > 20 || touched[len(touched)-1] > 150 {
				t.Errorf("%s, %d keys: one key touches %.1f chains, and up to %d", set.name, n, avg, touched[len(touched)-1])
			}
		}
	}
}
