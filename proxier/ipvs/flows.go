package ipvs

import (
	"net/netip"

	vs "vipd/internal/ipvs"
	"vipd/internal/netfilter"
	"vipd/lb"
)

// Evictor ends flows in the background: conntrack keeps what IPVS made of a
// connection, and an idle client is told by nobody else. *netfilter.Evictor is one.
type Evictor interface {
	// Evict asks for the end of flows. The destinations that had them are gone.
	Evict(evictions ...netfilter.Eviction)
	// Cancel takes back evictions whose backend serves again.
	Cancel(evictions ...netfilter.Eviction)
	// Sweep asks for the end of every flow of ours that keep refuses.
	Sweep(keep netfilter.Keep)
}

// endFlows asks for the end of the flows whose destination is gone. It runs after the
// kernel is in order, and never waits.
func (p *pass) endFlows(j *job) {
	if p.evict == nil {
		return
	}
	for _, d := range j.now.destinations() {
		if !j.was.has(d.Addr) {
			p.evict.Cancel(netfilter.Eviction{Key: j.key, Backend: d.Addr})
		}
	}
	asked := map[netip.AddrPort]bool{}
	ask := func(backend netip.AddrPort) {
		if !asked[backend] {
			asked[backend] = true
			p.evict.Evict(netfilter.Eviction{Key: j.key, Backend: backend})
		}
	}
	for _, d := range j.was.destinations() {
		if j.now.has(d.Addr) {
			continue
		}
		if d.Forward == vs.Masquerade {
			ask(d.Addr)
		} else if j.key.Protocol != lb.TCP {
			ask(j.key.AddrPort())
		}
	}
	if takesUp(j.key, j.now) && !takesUp(j.key, j.was) || p.lost(j) {
		ask(j.key.AddrPort())
	}
}

// lost reports whether somebody had removed the virtual server, which is there again
// now. Who called meanwhile met a host that is silent (package vip): conntrack would keep
// the next tries of a TCP client from being translated, too.
func (p *pass) lost(j *job) bool {
	return j.was == nil && p.owned[j.key] && translates(j.now)
}

// takesUp reports whether flows that went nowhere, and would stay so, have a backend
// now: those of the host itself, which conntrack knew before the guard refused them.
//
// Flows by dr and tunnel look the same to conntrack, which does not see where they
// go. So they are not told apart: those of UDP and SCTP are forgotten, all of the
// service, when a backend goes, which costs nothing, for nothing is translated; those
// of TCP find out at their next packet (docs/packet-paths.md).
func takesUp(k lb.Key, s *standing) bool { return k.Protocol != lb.TCP && translates(s) }

// translates reports whether new connections get the address of a backend.
func translates(s *standing) bool { return s.usable() && s.to[0].Forward == vs.Masquerade }
