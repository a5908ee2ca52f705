package desired

import (
	"fmt"
	"net/netip"

	"vipd/lb"
)

// refuseLoops refuses services that would balance to a VIP of ours: to
// themselves, or through another service. What is in place stays: of a VIP that
// comes and a service in place with a backend there, the VIP loses, whatever else
// changes with it or at a restart. Of those that come together the service with
// the backend loses, to the next source that claims its VIP:port if there is one.
func (m *Memo) refuseLoops(f Facts, keys []lb.Key, choices map[lb.Key]choice) {
	coming := map[netip.Addr]bool{} // VIPs that no service has yet
	for _, k := range keys {
		if choices[k].spec != nil && m.vips[k.Addr] == 0 {
			coming[k.Addr] = true
		}
	}
	for vip, k := range m.backedBy(keys, choices, coming) {
		delete(coming, vip)
		for _, newcomer := range keys {
			if newcomer.Addr == vip && choices[newcomer].spec != nil {
				m.refuse(newcomer, choices, fmt.Sprintf("VIP %s is a backend of service %s; use another VIP", vip, k))
			}
		}
	}
	isVIP := func(a netip.Addr) bool { return coming[a] || m.vips[a] > 0 }
	for _, k := range keys {
		m.refuseLoop(f, k, choices, isVIP)
	}
}

// refuseLoop refuses the claims to k, one after the other, that have a VIP as a
// backend.
func (m *Memo) refuseLoop(f Facts, k lb.Key, choices map[lb.Key]choice, isVIP func(netip.Addr) bool) {
	var refused []Problem
	for c := choices[k]; c.spec != nil; c = choices[k] {
		b := loop(c.spec, isVIP)
		if !b.IsValid() {
			return
		}
		refused = append(refused, Problem{c.owner, c.spec.Name, fmt.Sprintf(
			"backend %s is a VIP of this host: the service would balance to itself; give the address of a real server", b)})
		next, problems := choose(f, k, m.entries[k].ownerName(), refused)
		choices[k] = next
		m.setProblems(k, append(problems, refused...))
	}
}

// backedBy returns the coming VIPs that are a backend of a service in place, each
// with the first such service.
func (m *Memo) backedBy(keys []lb.Key, choices map[lb.Key]choice, coming map[netip.Addr]bool) map[netip.Addr]lb.Key {
	found := map[netip.Addr]lb.Key{}
	note := func(k lb.Key, spec *lb.Spec) {
		for _, b := range spec.Backends {
			a := b.Addr.Addr()
			if first, again := found[a]; coming[a] && b.State != lb.Disabled && (!again || k.Compare(first) < 0) {
				found[a] = k
			}
		}
	}
	for _, k := range keys {
		if e := m.entries[k]; e != nil && e.spec != nil && choices[k].spec != nil {
			note(k, choices[k].spec)
		}
	}
	backed := false
	for vip := range coming {
		backed = backed || m.backends.mayHave(vip)
	}
	if !backed {
		return found
	}
	for k, e := range m.entries { // rare: somebody balances to what is to be a VIP
		if _, again := choices[k]; !again && e.spec != nil {
			note(k, e.spec)
		}
	}
	return found
}

// loop returns the address of a backend that is a VIP.
func loop(s *lb.Spec, isVIP func(netip.Addr) bool) netip.Addr {
	for _, b := range s.Backends {
		if b.State != lb.Disabled && isVIP(b.Addr.Addr()) {
			return b.Addr.Addr()
		}
	}
	return netip.Addr{}
}

func (m *Memo) refuse(k lb.Key, choices map[lb.Key]choice, reason string) {
	c := choices[k]
	m.setProblems(k, append(m.problems[k], Problem{c.owner, c.spec.Name, reason}))
	choices[k] = choice{}
}
