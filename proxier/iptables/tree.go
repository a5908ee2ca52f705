package iptables

import (
	"cmp"
	"math/bits"
	"slices"
	"sort"

	"vipd/lb"
)

// tree is a set of keys as a binary trie over their bits: a node is a run of keys
// that begin with the same bits, divided where the first bit differs. nil is the
// empty set. From it follow the chains of the dispatch (chains.go).
//
// A tree is immutable. An update copies the way to what it changes and shares all
// else, so two trees are compared in proportion to what differs: the same pointer
// is the same set. What is in a node depends on its keys alone, not on how they
// came together: a restart finds the tree it left.
type tree struct {
	key         lb.Key // one of the keys
	left, right *tree  // nil for a single key
	size        int32  // how many keys
	cost        uint16 // of the chain of this node, see chains.go; 0 for a single key
	bits        uint8  // that all the keys have in common
	depth       uint8  // most chains on the way from here to a service; 0 for a single key
}

// compareKeys orders keys by the bits that the tree looks at.
func compareKeys(a, b lb.Key) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

// has reports whether k is in the set.
func (t *tree) has(k lb.Key) bool {
	for t != nil && t.left != nil {
		if hasBit(k, int(t.bits)) {
			t = t.right
		} else {
			t = t.left
		}
	}
	return t != nil && t.key == k
}

// update returns the set with the keys of in and without those of out, which are
// in it. Both are sorted by compareKeys, and no key is in both.
func (t *tree) update(in, out []lb.Key) *tree {
	switch {
	case len(in)+len(out) == 0:
		return t
	case t == nil && len(in) == 0:
		return nil
	case t == nil && in[0] == in[len(in)-1]:
		return &tree{key: in[0], bits: uint8(keyBits(in[0])), size: 1}
	}
	at := keyBits(t.any(in))
	if t != nil {
		at = int(t.bits)
	}
	if len(in) > 0 {
		at = min(at, commonBits(in[0], in[len(in)-1]), commonBits(in[0], t.any(in)))
	}
	if at == keyBits(t.any(in)) { // a single key, and nothing new
		if len(out) > 0 && slices.Contains(out, t.key) {
			return nil
		}
		return t
	}
	left, right := t.halves(at)
	i, o := splitKeys(in, at), splitKeys(out, at)
	l, r := left.update(in[:i], out[:o]), right.update(in[i:], out[o:])
	if t != nil && l == t.left && r == t.right {
		return t
	}
	return join(l, r)
}

// any returns a key of the set, or the first of keys if it is empty.
func (t *tree) any(keys []lb.Key) lb.Key {
	if t != nil {
		return t.key
	}
	return keys[0]
}

// halves returns the sets of the keys without and with a bit before which all of
// them are the same.
func (t *tree) halves(bit int) (left, right *tree) {
	switch {
	case t == nil:
		return nil, nil
	case bit == int(t.bits):
		return t.left, t.right
	case hasBit(t.key, bit):
		return nil, t
	}
	return t, nil
}

// splitKeys returns where those with the bit begin.
func splitKeys(keys []lb.Key, bit int) int {
	return sort.Search(len(keys), func(i int) bool { return hasBit(keys[i], bit) })
}

// join returns the set of the keys of both.
func join(l, r *tree) *tree {
	if l == nil {
		return r
	}
	if r == nil {
		return l
	}
	t := &tree{key: l.key, left: l, right: r, size: l.size + r.size, bits: uint8(commonBits(l.key, r.key))}
	t.settle()
	return t
}

// The bits of a key, in order: the address, the protocol, the port. TCP and UDP
// share the first bit of the protocol, so that "! -p sctp" tells them from SCTP.
const (
	protocolBits = 2
	portBits     = 16
	maxKeyBits   = 128 + protocolBits + portBits
)

// keyBits returns how many bits a key of that family has.
func keyBits(k lb.Key) int { return k.Addr.BitLen() + protocolBits + portBits }

// protocolCode returns the bits of the protocol, in the order of compareKeys.
func protocolCode(p lb.Protocol) uint8 {
	switch p {
	case lb.TCP:
		return 0b00
	case lb.UDP:
		return 0b01
	}
	return 0b10
}

// commonBits returns how many bits at the start of two keys are the same.
func commonBits(a, b lb.Key) int {
	n := a.Addr.BitLen()
	if a.Addr != b.Addr {
		x, y := a.Addr.As16(), b.Addr.As16()
		for i := (128 - n) / 8; i < 16; i++ {
			if d := x[i] ^ y[i]; d != 0 {
				return i*8 + bits.LeadingZeros8(d) - (128 - n)
			}
		}
	}
	if d := protocolCode(a.Protocol) ^ protocolCode(b.Protocol); d != 0 {
		return n + bits.LeadingZeros8(d) - (8 - protocolBits)
	}
	return n + protocolBits + bits.LeadingZeros16(a.Port^b.Port)
}

// hasBit returns bit i of a key.
func hasBit(k lb.Key, i int) bool {
	n := k.Addr.BitLen()
	switch {
	case i < n:
		a := k.Addr.As16() // an IPv4 address is at its end
		i += 128 - n
		return a[i/8]&(0x80>>(i%8)) != 0
	case i < n+protocolBits:
		return protocolCode(k.Protocol)&(0b10>>(i-n)) != 0
	}
	return k.Port&(0x8000>>(i-n-protocolBits)) != 0
}
