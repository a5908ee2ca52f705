package ipvs

import (
	"context"
	"net/netip"

	vs "vipd/internal/ipvs"
	"vipd/internal/netfilter"
	"vipd/lb"
)

// Evictor ends flows in the background: conntrack keeps what IPVS made of a
// connection, and an idle client is told by nobody else. *netfilter.Evictor is one.
type Evictor interface {
	// Note remembers the connections that evictions name, which will be gone when they
	// are asked for, so that their ends can be told all the same.
	Note(ctx context.Context, evictions ...netfilter.Eviction) error
	// Evict asks for the end of flows. The destinations that had them are gone.
	Evict(evictions ...netfilter.Eviction)
	// Cancel takes back evictions whose backend serves again.
	Cancel(evictions ...netfilter.Eviction)
	// Sweep asks for the end of every flow of ours that keep refuses.
	Sweep(keep netfilter.Keep)
}

// noteFlows has the connections of destinations noted that are about to go: the kernel
// forgets them with their destination, and their conntrack entries, too
// (expire_nodest_conn). An error costs idle ends the news, and nothing else.
func (p *pass) noteFlows(ctx context.Context, jobs []*job) error {
	if p.evict == nil {
		return nil
	}
	var going []netfilter.Eviction
	for _, j := range jobs {
		if j.err != nil || j.key.Protocol != lb.TCP || len(j.todo.leave) == 0 {
			continue
		}
		for _, d := range j.now.destinations() {
			if d.Forward == vs.Masquerade && !j.goal.has(d.Addr) {
				going = append(going, netfilter.Eviction{Key: j.key, Backend: d.Addr})
			}
		}
	}
	if len(going) == 0 {
		return nil
	}
	err := p.evict.Note(ctx, going...)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		p.log.Warn("idle connections of removed backends will hear of it at their next packet only", "error", err)
	}
	return nil
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
