package iptables

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// loosen forgets the clients whose backend is to get nothing new, for they may go
// to another one from now on.
func (w *walker) loosen() {
	for k, clients := range w.last {
		maps.DeleteFunc(clients, func(_ string, a netip.AddrPort) bool {
			s := w.want.Get(k)
			if s == nil || s.Affinity == 0 {
				return true
			}
			b, listed := s.Backend(a)
			return !listed || !b.Usable()
		})
	}
}

// visit lets clients of all services with affinity connect: each comes back to the
// backend of the last time, if that still is to get any.
func (w *walker) visit(when string, trace map[netfilter.Family]*tracer) {
	for _, k := range slices.SortedFunc(maps.Keys(w.settled), lb.Key.Compare) {
		s := w.settled[k]
		if s.Affinity == 0 || len(s.Usable()) == 0 {
			continue
		}
		if w.last[k] == nil {
			w.last[k] = map[string]netip.AddrPort{}
		}
		for c := range 5 {
			client := fmt.Sprint("client ", c)
			was := w.last[k][client]
			now := trace[netfilter.FamilyOf(k.Addr)].connect(k, client, w.clients, w.rng)
			if b, listed := s.Backend(was); listed && b.Usable() && now != was {
				w.t.Errorf("%s: %s of %s moves from %s to %s", when, client, k, was, now)
			}
			if b, listed := s.Backend(now); !listed || !b.Usable() {
				w.t.Errorf("%s: %s of %s is sent to %s", when, client, k, now)
			}
			w.last[k][client] = now
		}
	}
}

// flip drains a backend of a service with affinity, or lets it come back.
func (w *walker) flip() {
	for s := range w.want.All() {
		if s.Affinity == 0 || len(s.Backends) == 0 || w.rng.IntN(4) > 0 {
			continue
		}
		flipped := *s
		flipped.Backends = slices.Clone(s.Backends)
		b := &flipped.Backends[w.rng.IntN(len(flipped.Backends))]
		b.Draining = !b.Draining
		w.want = with(w.want, &flipped)
		return
	}
}
