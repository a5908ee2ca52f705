package iptables

import (
	"net/netip"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// Evictor ends flows in the background, because conntrack keeps sending them where
// the rules sent their first packet. *netfilter.Evictor is one.
type Evictor interface {
	// Evict asks for the end of flows. The rules that made them are gone.
	Evict(evictions ...netfilter.Eviction)
	// Cancel takes back evictions whose backend serves again.
	Cancel(evictions ...netfilter.Eviction)
	// Sweep asks for the end of every flow of ours that keep refuses.
	Sweep(keep netfilter.Keep)
}

// flows returns the evictions that follow from a change, and those that are to be
// taken back.
//
// A UDP flow or an SCTP association leaves its backend as soon as that gets no new
// ones: the one has no end of its own, and nothing to lose; the other cannot be
// told of its end, and its client begins anew. A TCP connection lives as long as its
// backend is listed, draining or not. The flows, but for TCP, that a client began
// while the service had no backend are stuck with the VIP itself, until they are
// deleted.
func flows(before, after *lb.Service) (evict, cancel []netfilter.Eviction) {
	if before != nil {
		for _, b := range before.Backends {
			if holds(before, b.Addr) && !holds(after, b.Addr) {
				evict = append(evict, netfilter.Eviction{Key: before.Key, Backend: b.Addr})
			}
		}
	}
	if after != nil {
		for _, b := range after.Backends {
			if holds(after, b.Addr) && !holds(before, b.Addr) {
				cancel = append(cancel, netfilter.Eviction{Key: after.Key, Backend: b.Addr})
			}
		}
	}
	return evict, cancel
}

// holds reports whether the flows from a service to a backend may go on.
func holds(s *lb.Service, backend netip.AddrPort) bool {
	if s == nil {
		return false
	}
	b, found := s.Backend(backend)
	return found && (s.Key.Protocol == lb.TCP || b.Usable())
}

// untranslated is the eviction of the flows to a VIP that went nowhere.
func untranslated(k lb.Key) netfilter.Eviction {
	return netfilter.Eviction{Key: k, Backend: k.AddrPort()}
}

// takesUp reports whether flows that went nowhere, and would stay so, have a
// backend now.
func takesUp(s *lb.Service) bool {
	return s != nil && s.Key.Protocol != lb.TCP && len(s.Usable()) > 0
}

// endFlows asks for the end of the flows whose backend is gone. It runs after the
// rules are in place, and never waits.
func (p *pass) endFlows(e Evictor) {
	asked := map[netfilter.Eviction]bool{}
	ask := func(evictions ...netfilter.Eviction) {
		for _, ev := range evictions {
			if !asked[ev] {
				asked[ev] = true
				e.Evict(ev)
			}
		}
	}
	for _, c := range p.applied {
		gone, back := flows(c.before, c.after)
		e.Cancel(back...)
		ask(gone...)
		if !p.fresh && takesUp(c.after) && !takesUp(c.before) {
			ask(untranslated(c.after.Key))
		}
	}
	if !p.fresh && !p.mended {
		return
	}
	// The kernel may have led nowhere for a while, whatever we believed.
	for s := range own(p.family, p.memory.applied) {
		if takesUp(s) && !p.linked[s.Key] {
			ask(untranslated(s.Key))
		}
	}
}

// sweep ends the flows to backends that nobody knows any more: after the start,
// what went while no vipd was running; after a pass of which nobody knows what it
// wrote; and when it is known of fewer services than before that they stand in a
// version that is unknown.
func (p *Proxier) sweep(how proxier.How) {
	if !how.Prune || p.evict == nil {
		return
	}
	spared := 0
	for _, f := range p.families {
		if f.missing == nil && f.memory.have == nil {
			return // a later pass will know
		}
		spared += len(f.memory.strays)
	}
	if !p.swept || spared < p.spared {
		p.evict.Sweep(p.keep)
	}
	p.swept, p.spared = true, spared
}

// serving is what a sweep has to know of a family. It is not changed any more.
type serving struct {
	versions []lb.Snapshot   // what stands, and what the pass under way makes of it
	unknown  map[lb.Key]bool // services that stand in a version that is unknown
}

// serves notes what a sweep has to keep from now on.
func (p *Proxier) serves(f *family, versions ...lb.Snapshot) {
	now := &serving{versions: versions, unknown: map[lb.Key]bool{}}
	for _, k := range f.memory.strays {
		now.unknown[k] = true
	}
	p.serving[f.Family].Store(now)
}

// begin notes that a pass begins: a flow may be made by any rule that it writes.
func (p *Proxier) begin(f *family, want lb.Snapshot) {
	if f.memory.have != nil {
		p.serves(f, f.memory.applied, want)
	}
}

// lose notes that nobody knows what the pass wrote, nor will if it is not wanted
// any more when it is found out.
func (p *Proxier) lose(f *family) {
	p.serving[f.Family].Store(nil)
	p.swept = false
}

// keep returns the answer to what a sweep asks. A family of which nothing is
// known keeps all its flows, and so does a service.
func (p *Proxier) keep(k lb.Key, backend netip.AddrPort) bool {
	serving := p.serving[netfilter.FamilyOf(k.Addr)].Load()
	if serving == nil || serving.unknown[k] {
		return true
	}
	for _, version := range serving.versions {
		s := version.Get(k)
		if backend == k.AddrPort() && !takesUp(s) || backend != k.AddrPort() && holds(s, backend) {
			return true
		}
	}
	return false
}
