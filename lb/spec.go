package lb

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Mode names a proxier: the way in which a service is served.
type Mode string

// The modes. The empty Mode means the mode in force on this host, in a Spec; a
// Service that is placed has the one that serves it.
const (
	IPTables  Mode = "iptables"
	IPVS      Mode = "ipvs"
	Userspace Mode = "userspace"
)

// Masquerade says when the source address of a connection is replaced by one
// of this host's, so that the backend answers through it.
type Masquerade string

// The choices of Masquerade.
const (
	MasqueradeAlways Masquerade = "always"
	MasqueradeNever  Masquerade = "never" // backends route their answers through this host
	MasqueradeAuto   Masquerade = "auto"  // only clients on the connected subnet of a backend
)

// BackendSpec is a backend as a source describes it. There are many: it is small.
type BackendSpec struct {
	Addr   netip.AddrPort `json:"addr"`
	Weight uint16         `json:"weight"` // 0: keeps its connections, gets no new ones, without a deadline
	State  AdminState     `json:"state"`
}

// Spec is a service as a source wants it: one VIP, one port, one protocol. A
// [[service]] with several VIPs or ports is several Specs of one Name.
type Spec struct {
	Key        Key            `json:"key"`
	Name       string         `json:"name"`
	Mode       Mode           `json:"mode,omitempty"`
	Scheduler  Scheduler      `json:"scheduler"`
	Flags      SchedulerFlags `json:"scheduler_flags,omitempty"`
	Forward    Forward        `json:"forward,omitempty"`
	Tunnel     Tunnel         `json:"tunnel,omitzero"`
	Masquerade Masquerade     `json:"masquerade"` // MasqueradeNever unless ForwardNAT
	// Affinity is how long a client address comes back to the backend of its last
	// new connection; in whole seconds, 0: every connection is balanced by itself.
	Affinity time.Duration `json:"affinity_ns,omitempty"`
	// Clients are the ranges from which connections are taken, masked, sorted and
	// none inside another; empty: all. See NormalizeClients.
	Clients      []netip.Prefix `json:"clients,omitempty"`
	DrainTimeout time.Duration  `json:"drain_timeout_ns"`
	Backends     []BackendSpec  `json:"backends"` // sorted by address, no address twice: see Normalize
}

// Equal reports whether two specs say the same. Both must be normalized.
func (s *Spec) Equal(o *Spec) bool {
	return s == o || s.Key == o.Key && s.Name == o.Name && s.Mode == o.Mode &&
		s.Scheduler == o.Scheduler && s.Flags == o.Flags && s.Forward == o.Forward &&
		s.Tunnel == o.Tunnel && s.Masquerade == o.Masquerade &&
		s.Affinity == o.Affinity && slices.Equal(s.Clients, o.Clients) &&
		s.DrainTimeout == o.DrainTimeout && slices.Equal(s.Backends, o.Backends)
}

// Normalize sorts the backends and returns the addresses that stood more than
// once. Of those the one with the greatest weight stays, whatever the order
// was, so that a store that shuffles its answers causes no change. Words that have
// no meaning beside others are taken back, so that they make no difference.
func (s *Spec) Normalize() (duplicates []netip.AddrPort) {
	s.normalizeWords()
	slices.SortFunc(s.Backends, func(a, b BackendSpec) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(b.Weight, a.Weight), cmp.Compare(a.State, b.State))
	})
	s.Backends = slices.CompactFunc(s.Backends, func(a, b BackendSpec) bool {
		if a.Addr != b.Addr {
			return false
		}
		if n := len(duplicates); n == 0 || duplicates[n-1] != a.Addr {
			duplicates = append(duplicates, a.Addr)
		}
		return true
	})
	return duplicates
}

// normalizeWords takes back the words without a meaning.
func (s *Spec) normalizeWords() {
	if !s.Scheduler.Hashes() {
		s.Flags = 0
	}
	if s.Forward != ForwardNAT {
		s.Masquerade = MasqueradeNever
	}
	if s.Forward != ForwardTunnel {
		s.Tunnel = Tunnel{}
	}
	if s.Tunnel.Type != TunnelGUE {
		s.Tunnel.Port = 0
	}
}

// NormalizeClients masks and sorts ranges and leaves out those that lie inside
// another one. It returns nil for none, which means everybody.
func NormalizeClients(ranges []netip.Prefix) (clients []netip.Prefix) {
	sorted := make([]netip.Prefix, len(ranges))
	for i, r := range ranges {
		sorted[i] = r.Masked()
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, r := range sorted {
		if n := len(clients); n > 0 && clients[n-1].Overlaps(r) {
			continue // it begins later or is smaller, so it lies inside
		}
		clients = append(clients, r)
	}
	return clients
}

// SortSpecs sorts specs by Key, in place.
func SortSpecs(specs []*Spec) {
	slices.SortFunc(specs, func(a, b *Spec) int { return a.Key.Compare(b.Key) })
}
