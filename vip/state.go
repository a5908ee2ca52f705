package vip

import (
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
	invalid  bool                    // invalid packets of backends are dropped
	input    bool                    // a mode takes packets at INPUT
	refused  map[netip.Addr]struct{} // VIPs of services that this host must not take
	families [2]*family

	opened     map[netip.Addr]struct{} // VIPs that stand since the last Open, or were bare; nil: none
	linksKnown bool
	host       host // as last read, see reading
	uplinks    []string
	device     link // the zero link: there is none
	reserved   map[netip.Addr]error
	misshapen  map[netip.Addr]address // VIP-like addresses on the device whose shape is not ours
}

// family is the part of the state that stands once for each address family.
// The families fail apart.
type family struct {
	netfilter.Family
	addrs *tally[netip.Addr] // on the device
	sets  [len(setKinds)]members

	known    bool // the sets were read
	present  bool // there are sets of ours in the kernel; they are made first and removed last
	standing bool // sets, chains and jumps are as they have to be
	held     bool // a set was in use by a rule of somebody else when it was to be removed
	err      error
}

// set returns one of the sets of the family.
func (f *family) set(i int) netfilter.Set {
	return netfilter.Set{Name: netfilter.SetName(setKinds[i].name, f.Family), Type: setKinds[i].kind, Family: f.Family}
}

// wanted reports whether a service of the family is wanted.
func (f *family) wanted() bool { return f.addrs.wants > 0 }

// forget makes the next pass read all of the family.
func (f *family) forget() { f.known, f.standing = false, false }

func newState(o Options) *state {
	s := &state{invalid: o.DropInvalid, input: o.Input}
	for i, f := range netfilter.Families {
		s.families[i] = &family{Family: f, addrs: newTally(netip.Addr.Compare)}
		for j, kind := range setKinds {
			s.families[i].sets[j] = newMembers(kind.kind)
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
