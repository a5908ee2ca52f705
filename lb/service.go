package lb

import (
	"net/netip"
	"slices"
	"time"
)

// Backend is a real server of a Service, as a proxier must treat it.
type Backend struct {
	Addr     netip.AddrPort `json:"addr"`
	Weight   uint16         `json:"weight"`
	Draining bool           `json:"draining,omitempty"` // no new connections; the established ones live on
}

// Usable reports whether new connections may go to the backend.
func (b Backend) Usable() bool { return b.Weight > 0 && !b.Draining }

// Service is what a proxier puts in place. It is immutable once it stands in a
// Snapshot. Backends are sorted by address and none stands twice.
type Service struct {
	Key        Key            `json:"key"`
	Mode       Mode           `json:"mode"` // the one that serves it; never empty once it is placed
	Scheduler  Scheduler      `json:"scheduler"`
	Flags      SchedulerFlags `json:"scheduler_flags,omitempty"`
	Forward    Forward        `json:"forward,omitempty"`
	Tunnel     Tunnel         `json:"tunnel,omitzero"`
	Masquerade Masquerade     `json:"masquerade"`
	// Affinity is how long a client address comes back to the same backend after
	// its last new connection; in whole seconds, 0: not at all.
	Affinity time.Duration `json:"affinity_ns,omitempty"`
	// Clients are the ranges from which connections are taken; empty: all. See
	// NormalizeClients.
	Clients  []netip.Prefix `json:"clients,omitempty"`
	Backends []Backend      `json:"backends"`
}

// Equal reports whether two services are the same to a proxier.
func (s *Service) Equal(o *Service) bool {
	return s == o || s.Key == o.Key && s.Mode == o.Mode && s.Scheduler == o.Scheduler &&
		s.Flags == o.Flags && s.Forward == o.Forward && s.Tunnel == o.Tunnel &&
		s.Masquerade == o.Masquerade && s.Affinity == o.Affinity &&
		slices.Equal(s.Clients, o.Clients) && slices.Equal(s.Backends, o.Backends)
}

// Usable returns the backends that may get new connections, with their weight.
// Under RR every weight is 1.
func (s *Service) Usable() []Backend {
	usable := make([]Backend, 0, len(s.Backends))
	for _, b := range s.Backends {
		if !b.Usable() {
			continue
		}
		if s.Scheduler == RR {
			b.Weight = 1
		}
		usable = append(usable, b)
	}
	return usable
}

// Backend returns the backend at addr.
func (s *Service) Backend(addr netip.AddrPort) (Backend, bool) {
	i, found := slices.BinarySearchFunc(s.Backends, addr, func(b Backend, a netip.AddrPort) int {
		return b.Addr.Compare(a)
	})
	if !found {
		return Backend{}, false
	}
	return s.Backends[i], true
}
