package vip

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// members is what a set has to hold and what it does hold in the kernel.
type members interface {
	// count changes by how many services e is wanted.
	count(e netfilter.Entry, by int)
	// dropAll makes nothing wanted.
	dropAll()
	// missing and surplus return where the two differ, sorted.
	missing() []netfilter.Entry
	surplus() []netfilter.Entry
	// added and removed note what was written.
	added(e netfilter.Entry)
	removed(e netfilter.Entry)
	// read takes over what the kernel is seen to hold, as list tells. After an error
	// of list it is not known.
	read(list func(each func(netfilter.Entry)) error) error
	held(e netfilter.Entry) bool
	wanted(e netfilter.Entry) bool
	// allHeld returns what the kernel holds, in no order.
	allHeld() []netfilter.Entry
	// holds returns how many entries the kernel holds.
	holds() int
	clone() members
}

// noEntries lists a set that is not there.
func noEntries(func(netfilter.Entry)) error { return nil }

// newMembers returns the members of a set of that type, none yet.
func newMembers(kind netfilter.SetType) members {
	switch kind {
	case netfilter.HashIPPortNet, netfilter.HashIPPortIP:
		return &packed[span]{newTally(compareSpans), packSpan, span.entry}
	}
	return &packed[point]{newTally(comparePoints), packPoint, point.entry}
}

// packed keeps entries in a form without pointers, a third of their size: there are
// as many as services, and backends.
type packed[E comparable] struct {
	tally  *tally[E]
	pack   func(netfilter.Entry) E
	unpack func(E) netfilter.Entry
}

func (p *packed[E]) count(e netfilter.Entry, by int) { p.tally.count(p.pack(e), by) }
func (p *packed[E]) dropAll()                        { p.tally.dropAll() }
func (p *packed[E]) missing() []netfilter.Entry      { return p.unpackAll(p.tally.missing()) }
func (p *packed[E]) surplus() []netfilter.Entry      { return p.unpackAll(p.tally.surplus()) }
func (p *packed[E]) added(e netfilter.Entry)         { p.tally.added(p.pack(e)) }
func (p *packed[E]) removed(e netfilter.Entry)       { p.tally.removed(p.pack(e)) }
func (p *packed[E]) held(e netfilter.Entry) bool     { return p.tally.held(p.pack(e)) }
func (p *packed[E]) wanted(e netfilter.Entry) bool   { return p.tally.wanted(p.pack(e)) }
func (p *packed[E]) allHeld() []netfilter.Entry {
	return p.unpackAll(slices.Collect(p.tally.allHeld()))
}
func (p *packed[E]) holds() int     { return p.tally.holds }
func (p *packed[E]) clone() members { return &packed[E]{p.tally.clone(), p.pack, p.unpack} }

func (p *packed[E]) read(list func(each func(netfilter.Entry)) error) (err error) {
	p.tally.read(func(yield func(E) bool) {
		err = list(func(e netfilter.Entry) { yield(p.pack(e)) })
	})
	return err
}

func (p *packed[E]) unpackAll(elements []E) []netfilter.Entry {
	if len(elements) == 0 {
		return nil
	}
	entries := make([]netfilter.Entry, len(elements))
	for i, e := range elements {
		entries[i] = p.unpack(e)
	}
	return entries
}

// point is an entry without a network. IPv4 addresses are mapped, which no
// address of an entry is otherwise.
type point struct {
	addr     [16]byte
	port     uint16
	protocol lb.Protocol
}

func packPoint(e netfilter.Entry) point { return point{e.Addr.As16(), e.Port, e.Protocol} }

func (p point) entry() netfilter.Entry {
	return netfilter.Entry{Addr: netip.AddrFrom16(p.addr).Unmap(), Port: p.port, Protocol: p.protocol}
}

func comparePoints(a, b point) int {
	return cmp.Or(bytes.Compare(a.addr[:], b.addr[:]), cmp.Compare(a.port, b.port), cmp.Compare(a.protocol, b.protocol))
}

// span is an entry with a network.
type span struct {
	addr, net [16]byte
	port      uint16
	protocol  lb.Protocol
	bits      uint8
}

func packSpan(e netfilter.Entry) span {
	return span{e.Addr.As16(), e.Net.Addr().As16(), e.Port, e.Protocol, uint8(e.Net.Bits())}
}

func (s span) entry() netfilter.Entry {
	return netfilter.Entry{
		Addr: netip.AddrFrom16(s.addr).Unmap(), Port: s.port, Protocol: s.protocol,
		Net: netip.PrefixFrom(netip.AddrFrom16(s.net).Unmap(), int(s.bits)),
	}
}

func compareSpans(a, b span) int {
	return cmp.Or(bytes.Compare(a.addr[:], b.addr[:]), cmp.Compare(a.port, b.port), cmp.Compare(a.protocol, b.protocol),
		bytes.Compare(a.net[:], b.net[:]), cmp.Compare(a.bits, b.bits))
}
