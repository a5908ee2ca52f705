package desired

import (
	"net/netip"
	"slices"
	"time"

	"vipd/lb"
)

// placed is a service in one mode, as that mode is to serve it, and what of it
// is on the way out. It is immutable.
type placed struct {
	Service *lb.Service
	// Drains holds the deadline of each backend that is leaving. A backend that
	// its source still lists as draining keeps its entry after the deadline.
	Drains map[netip.AddrPort]time.Time
	// Leaving: no source wants the service in this mode any more. It goes when
	// its backends have drained, and one pass after it refused.
	Leaving  bool
	Refusing bool
}

// decide computes the next entry of one Key.
func decide(before *entry, c choice, f Facts) *entry {
	after := &entry{due: c.due}
	if before != nil {
		after.owner, after.name, after.timeout = before.owner, before.name, before.timeout
	}
	if c.spec != nil {
		after.owner, after.name, after.spec, after.mode = c.owner, c.spec.Name, c.spec, c.mode
		after.timeout = c.spec.DrainTimeout
		after.place(c.mode, serve(before.placed(c.mode), c, f))
	}
	for _, p := range before.modes() {
		if _, can := f.Modes[p.mode]; !can {
			continue // the host has lost the mode since the last run, and what it served
		}
		if c.spec == nil || p.mode != c.mode {
			after.place(p.mode, leave(p.placed, after.timeout, f))
		}
	}
	for _, p := range after.modes() {
		after.wakeFor(p.placed, f.Now)
	}
	if after.empty() {
		return nil
	}
	return after
}

// drains reports whether flows of a protocol outlive the removal of their
// backend. UDP and SCTP flows move at once.
func drains(p lb.Protocol) bool { return p == lb.TCP }

// serve returns the service that was chosen, with the backends that have to drain.
// before is what the mode served until now, or nil.
func serve(before *placed, c choice, f Facts) *placed {
	spec, now := c.spec, f.Now
	p := &placed{Service: &lb.Service{
		Key: spec.Key, Mode: c.mode, Scheduler: c.scheduler, Flags: c.flags, Forward: spec.Forward, Tunnel: spec.Tunnel,
		Masquerade: spec.Masquerade, Affinity: spec.Affinity, Clients: spec.Clients,
	}}
	backends := make([]lb.Backend, 0, len(spec.Backends))
	listed := make(map[netip.AddrPort]bool, len(spec.Backends))
	for _, b := range spec.Backends {
		switch b.State {
		case lb.Active:
			listed[b.Addr] = true
			backends = append(backends, lb.Backend{Addr: b.Addr, Weight: b.Weight})
		case lb.Draining:
			listed[b.Addr] = true
			if drains(spec.Key.Protocol) {
				until := p.drain(before, b.Addr, now.Add(spec.DrainTimeout), f)
				if now.Before(until) {
					backends = append(backends, lb.Backend{Addr: b.Addr, Draining: true})
				}
			}
		}
	}
	if before != nil && drains(spec.Key.Protocol) {
		for _, b := range before.Service.Backends {
			if listed[b.Addr] {
				continue
			}
			if until := before.deadline(b.Addr, now.Add(spec.DrainTimeout), f); now.Before(until) {
				p.drain(before, b.Addr, until, f)
				backends = append(backends, lb.Backend{Addr: b.Addr, Draining: true})
			}
		}
	}
	slices.SortFunc(backends, func(a, b lb.Backend) int { return a.Addr.Compare(b.Addr) })
	p.Service.Backends = backends
	return p
}

// leave returns what is left, at this time, of a service that no source wants in
// this mode: first draining, then for one pass without backends, then nil.
func leave(before *placed, timeout time.Duration, f Facts) *placed {
	if before.Refusing {
		return nil
	}
	left := *before.Service
	left.Backends = nil
	p := &placed{Leaving: true, Service: &left}
	if drains(p.Service.Key.Protocol) {
		for _, b := range before.Service.Backends {
			until := before.deadline(b.Addr, f.Now.Add(timeout), f)
			if f.Now.Before(until) {
				p.drain(before, b.Addr, until, f)
				p.Service.Backends = append(p.Service.Backends, lb.Backend{Addr: b.Addr, Draining: true})
			}
		}
	}
	p.Refusing = len(p.Service.Backends) == 0
	return p
}

// deadline returns when a backend that leaves is cut off: what was said when it
// began to leave, or else fallback; and now, if its last connection has ended.
func (p *placed) deadline(b netip.AddrPort, fallback time.Time, f Facts) time.Time {
	if p == nil {
		return fallback
	}
	until, draining := p.Drains[b]
	switch {
	case !draining:
		return fallback
	case f.Idle[Drain{p.Service.Mode, p.Service.Key, b}] && f.Now.Before(until):
		return f.Now
	}
	return until
}

// drain notes that b leaves, and returns its deadline.
func (p *placed) drain(before *placed, b netip.AddrPort, fallback time.Time, f Facts) time.Time {
	if p.Drains == nil {
		p.Drains = map[netip.AddrPort]time.Time{}
	}
	p.Drains[b] = before.deadline(b, fallback, f)
	return p.Drains[b]
}

// Drain names a backend of a service that is leaving a mode.
type Drain struct {
	Mode    lb.Mode
	Key     lb.Key
	Backend netip.AddrPort
}

// Draining returns the deadlines, yet to come, of all that drains in a mode. It costs
// what is due, not what there is.
func (m *Memo) Draining(mode lb.Mode) map[Drain]time.Time {
	all := map[Drain]time.Time{}
	for k := range m.due {
		p := m.entries[k].placed(mode)
		if p == nil {
			continue
		}
		for _, b := range p.Service.Backends {
			if b.Draining {
				all[Drain{mode, k, b.Addr}] = p.Drains[b.Addr]
			}
		}
	}
	return all
}
