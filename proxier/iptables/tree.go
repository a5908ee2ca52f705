package iptables

import (
	"cmp"
	"math/bits"
	"slices"
	"sort"

	"vipd/lb"
)

// leafSize is how many services one chain tells apart by a rule each; fanout is
// by how much a level of the tree above is larger. With both, 131,072 services
// take 8 levels, whatever their addresses are.
const (
	leafSize = 8
	fanout   = 4
)

// tree finds the node of a service by the bits of its address, protocol and port.
//
// The keys are thought of as a binary trie: a node of it is a run of sorted keys,
// divided where the first bit differs. A part is such a run without the runs that
// were cut out of it. divide cuts a part into parts of at most some size, from
// the bottom up: of two siblings that are too much together those which hold at
// least half of it (after Kundu and Misra, 1977). So a part of 4 times the size
// becomes at most 8, and what one key changes stays near it.
//
// The result depends on the set of keys alone, not on how it came about: a
// restart finds the tree it left.
type tree struct{ keys []lb.Key }

// compareKeys orders keys by the bits that the tree looks at.
func compareKeys(a, b lb.Key) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

// part is the run keys[lo:hi] without the holes, which are sorted and disjoint.
type part struct {
	lo, hi int
	holes  []span
	size   int // keys that are left
}

type span struct{ lo, hi int }

func (t tree) whole() part { return part{hi: len(t.keys), size: len(t.keys)} }

// divide returns parts of at most limit keys that together are p. A part that
// lies inside another one comes before it.
func (t tree) divide(p part, limit int) []part {
	var cut []part
	if rest := t.fold(p, limit, &cut); rest.size > 0 {
		cut = append(cut, rest)
	}
	return cut
}

// fold returns what is left of p after cutting parts off until it fits.
func (t tree) fold(p part, limit int, cut *[]part) part {
	if p.size <= limit {
		return p
	}
	left, right := t.split(p)
	left, right = t.fold(left, limit, cut), t.fold(right, limit, cut)
	if left.size+right.size > limit {
		for _, half := range []*part{&left, &right} {
			if 2*half.size >= limit {
				*cut = append(*cut, *half)
				*half = part{lo: half.lo, hi: half.hi, holes: []span{{half.lo, half.hi}}}
			}
		}
	}
	return part{lo: p.lo, hi: p.hi, holes: slices.Concat(left.holes, right.holes), size: left.size + right.size}
}

// split divides p where its keys first differ. A hole lies in one half, for both
// are nodes of one trie.
func (t tree) split(p part) (left, right part) {
	bit := commonBits(t.keys[p.lo], t.keys[p.hi-1])
	middle := p.lo + sort.Search(p.hi-p.lo, func(i int) bool { return hasBit(t.keys[p.lo+i], bit) })
	h := sort.Search(len(p.holes), func(i int) bool { return p.holes[i].lo >= middle })
	return newPart(p.lo, middle, p.holes[:h:h]), newPart(middle, p.hi, p.holes[h:])
}

func newPart(lo, hi int, holes []span) part {
	p := part{lo: lo, hi: hi, holes: holes, size: hi - lo}
	for _, h := range holes {
		p.size -= h.hi - h.lo
	}
	return p
}

// left returns the keys of p.
func (t tree) left(p part) []lb.Key {
	keys := make([]lb.Key, 0, p.size)
	at := p.lo
	for _, h := range p.holes {
		keys = append(keys, t.keys[at:h.lo]...)
		at = h.hi
	}
	return append(keys, t.keys[at:p.hi]...)
}

// prefix is a node of the trie: the keys which begin with the same bits as key.
type prefix struct {
	key  lb.Key
	bits int
}

// prefix returns the node of the trie that the run is.
func (t tree) prefix(s span) prefix {
	return prefix{t.keys[s.lo], commonBits(t.keys[s.lo], t.keys[s.hi-1])}
}

// The bits of a key, in order: the address, one for the protocol, 16 of the port.
const portBits = 16

// keyBits returns how many bits a key of that family has.
func keyBits(k lb.Key) int { return k.Addr.BitLen() + 1 + portBits }

// commonBits returns how many bits at the start of two keys are the same.
func commonBits(a, b lb.Key) int {
	n := a.Addr.BitLen()
	if a.Addr != b.Addr {
		x, y := a.Addr.AsSlice(), b.Addr.AsSlice()
		for i := range x {
			if d := x[i] ^ y[i]; d != 0 {
				return i*8 + bits.LeadingZeros8(d)
			}
		}
	}
	if a.Protocol != b.Protocol {
		return n
	}
	return n + 1 + bits.LeadingZeros16(a.Port^b.Port)
}

// hasBit returns bit i of a key.
func hasBit(k lb.Key, i int) bool {
	n := k.Addr.BitLen()
	switch {
	case i < n:
		return k.Addr.AsSlice()[i/8]&(0x80>>(i%8)) != 0
	case i == n:
		return k.Protocol == lb.UDP
	}
	return k.Port&(0x8000>>(i-n-1)) != 0
}
