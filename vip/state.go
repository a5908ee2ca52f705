package vip

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// state is what the door wants and what it believes the kernel to hold. The
// second is a cache: it advances after the kernel said yes, and what an error
// touched is read again.
type state struct {
	seen     lb.Snapshot // what the tallies want
	prefixes []netip.Prefix
	autos    int                     // services with masquerade auto
	refused  map[netip.Addr]struct{} // VIPs of services that this host must not take
	families [2]*family

	linksKnown bool
	host       host // as last read
	device     link // the zero link: there is none
	reserved   map[netip.Addr]error
	misshapen  map[netip.Addr]address // VIP-like addresses on the device whose shape is not ours
}

// family is the part of the state that stands once for each address family.
// The families fail apart.
type family struct {
	netfilter.Family
	addrs *tally[netip.Addr]         // on the device
	sets  [4]*tally[netfilter.Entry] // by the indices below

	known    bool // the sets were read
	present  bool // there are sets of ours in the kernel; they are made first and removed last
	standing bool // sets, chains and jumps are as they have to be
	held     bool // a set was in use by a rule of somebody else when it was to be removed
	err      error
}

// The sets of a family.
const (
	setVIP = iota
	setMasq
	setAuto
	setHair
)

// helpers are the sets that must be right before the rules that name them.
var helpers = [...]int{setMasq, setAuto, setHair}

var setKinds = [...]struct {
	name string
	kind netfilter.SetType
}{
	setVIP:  {netfilter.SetVIP, netfilter.HashIP},
	setMasq: {netfilter.SetMasq, netfilter.HashIPPort},
	setAuto: {netfilter.SetAuto, netfilter.HashIPPortNet},
	setHair: {netfilter.SetHair, netfilter.HashIPPortIP},
}

// set returns one of the sets of the family.
func (f *family) set(i int) netfilter.Set {
	return netfilter.Set{Name: netfilter.SetName(setKinds[i].name, f.Family), Type: setKinds[i].kind, Family: f.Family}
}

// wanted reports whether a service of the family is wanted.
func (f *family) wanted() bool { return len(f.addrs.want) > 0 }

// forget makes the next pass read all of the family.
func (f *family) forget() { f.known, f.standing = false, false }

func newState() *state {
	s := &state{}
	for i, f := range netfilter.Families {
		s.families[i] = &family{Family: f, addrs: newTally[netip.Addr]()}
		for j := range s.families[i].sets {
			s.families[i].sets[j] = newTally[netfilter.Entry]()
		}
	}
	return s
}

// clone returns a copy to plan on.
func (s *state) clone() *state {
	c := *s
	c.misshapen = maps.Clone(s.misshapen)
	for i, f := range s.families {
		g := *f
		g.addrs = f.addrs.clone()
		for j, t := range f.sets {
			g.sets[j] = t.clone()
		}
		c.families[i] = &g
	}
	return &c
}

// family returns the family of an address.
func (s *state) family(a netip.Addr) *family {
	if a.Is4() {
		return s.families[0]
	}
	return s.families[1]
}

// wanted reports whether any service is wanted.
func (s *state) wanted() bool { return s.families[0].wanted() || s.families[1].wanted() }

// want makes the tallies want what serves the snapshot. The cost follows the
// difference from the last one.
func (s *state) want(snapshot lb.Snapshot) {
	for before, after := range snapshot.Diff(s.seen) {
		if before != nil {
			s.count(before, -1)
		}
		if after != nil {
			s.count(after, +1)
		}
	}
	s.seen = snapshot
}

// connect takes over the connected subnets of this host, on which masquerade
// "auto" depends.
func (s *state) connect(prefixes []netip.Prefix) {
	if slices.Equal(prefixes, s.prefixes) {
		return
	}
	s.prefixes = prefixes
	for _, f := range s.families {
		f.sets[setAuto].dropAll()
	}
	for svc := range s.seen.All() {
		f := s.family(svc.Key.Addr)
		for e := range autoEntries(svc, prefixes) {
			f.sets[setAuto].count(e, +1)
		}
	}
}

// count counts all that a service wants, once more or once less.
func (s *state) count(svc *lb.Service, by int) {
	f := s.family(svc.Key.Addr)
	f.addrs.count(svc.Key.Addr, by)
	f.sets[setVIP].count(netfilter.Entry{Addr: svc.Key.Addr}, by)
	switch svc.Masquerade {
	case lb.MasqueradeAlways:
		f.sets[setMasq].count(netfilter.Entry{Addr: svc.Key.Addr, Protocol: svc.Key.Protocol, Port: svc.Key.Port}, by)
	case lb.MasqueradeAuto:
		s.autos += by
	}
	for e := range autoEntries(svc, s.prefixes) {
		f.sets[setAuto].count(e, by)
	}
	for e := range hairEntries(svc) {
		f.sets[setHair].count(e, by)
	}
}

// autoEntries yields, for a service with masquerade auto, its VIP:port with each
// connected subnet that holds one of its backends: clients there would get the
// backend's answer directly, past the translation.
func autoEntries(svc *lb.Service, prefixes []netip.Prefix) iter.Seq[netfilter.Entry] {
	return func(yield func(netfilter.Entry) bool) {
		if svc.Masquerade != lb.MasqueradeAuto {
			return
		}
		for _, p := range prefixes {
			if !slices.ContainsFunc(svc.Backends, func(b lb.Backend) bool { return p.Contains(b.Addr.Addr()) }) {
				continue
			}
			for _, part := range netfilter.SplitNet(p) {
				if !yield(netfilter.Entry{Addr: svc.Key.Addr, Protocol: svc.Key.Protocol, Port: svc.Key.Port, Net: part}) {
					return
				}
			}
		}
	}
}

// hairEntries yields, for a service that is not always masqueraded, each backend
// as the client of itself. Services share these entries.
func hairEntries(svc *lb.Service) iter.Seq[netfilter.Entry] {
	return func(yield func(netfilter.Entry) bool) {
		if svc.Masquerade == lb.MasqueradeAlways {
			return
		}
		for _, b := range svc.Backends {
			a := b.Addr.Addr()
			e := netfilter.Entry{Addr: a, Protocol: svc.Key.Protocol, Port: b.Addr.Port(), Net: netip.PrefixFrom(a, a.BitLen())}
			if !yield(e) {
				return
			}
		}
	}
}
