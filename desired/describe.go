package desired

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"vipd/lb"
)

// Service describes what was decided of one service in one mode.
type Service struct {
	Key        lb.Key            `json:"vip"`
	Name       string            `json:"name"`
	Source     string            `json:"source"`
	Mode       lb.Mode           `json:"mode"`
	Scheduler  lb.Scheduler      `json:"scheduler"`
	Flags      lb.SchedulerFlags `json:"scheduler_flags,omitempty"`
	Forward    lb.Forward        `json:"forward"`
	Tunnel     lb.Tunnel         `json:"tunnel,omitzero"` // zero unless Forward is ForwardTunnel
	Masquerade lb.Masquerade     `json:"masquerade"`
	Affinity   time.Duration     `json:"affinity_ns"`    // 0: none
	Clients    []netip.Prefix    `json:"clients"`        // empty: everybody
	Leaving    bool              `json:"leaving"`        // no source wants it (in this mode) any more
	Moving     bool              `json:"moving"`         // another mode serves it from now on
	Note       string            `json:"note,omitempty"` // what it lacks of what its source asks for
	Backends   []Backend         `json:"backends"`
}

// Usable reports whether some backend may get new connections.
func (s Service) Usable() bool {
	return slices.ContainsFunc(s.Backends, func(b Backend) bool { return b.State == "active" && b.Weight > 0 })
}

// Backend describes a backend: active, draining with the time that is left, or
// drained (its source lists it as draining and its time is over). The weight is the
// one in force: 0 unless it is active.
type Backend struct {
	Addr   netip.AddrPort `json:"addr"`
	Weight uint16         `json:"weight"`
	State  string         `json:"state"`
	Left   time.Duration  `json:"drain_left_ns,omitempty"`
	// Connections are those there were at the last count, while it drains in a mode that
	// can count them.
	Connections *Connections `json:"connections,omitempty"`
}

// Connections counts the connections to a backend.
type Connections struct {
	Active   uint32 `json:"active"`   // established
	Inactive uint32 `json:"inactive"` // beginning or ending
}

// Len returns how many services are known.
func (m *Memo) Len() int { return len(m.entries) }

// Services yields every service in every mode that serves it, in order.
func (m *Memo) Services(now time.Time) iter.Seq[Service] {
	return func(yield func(Service) bool) {
		for _, k := range slices.SortedFunc(maps.Keys(m.entries), lb.Key.Compare) {
			e := m.entries[k]
			for _, s := range e.served {
				if !yield(e.describe(s, m.facts.Mode, now)) {
					return
				}
			}
		}
	}
}

func (e *entry) describe(p placedIn, inForce lb.Mode, now time.Time) Service {
	svc := p.Service
	s := Service{
		Key: svc.Key, Name: e.name, Source: e.owner, Mode: p.mode, Scheduler: svc.Scheduler, Flags: svc.Flags,
		Forward: svc.Forward, Tunnel: svc.Tunnel, Masquerade: svc.Masquerade, Affinity: svc.Affinity, Clients: svc.Clients,
		Leaving: p.Leaving, Moving: p.Leaving && e.spec != nil, Backends: make([]Backend, 0, len(svc.Backends)),
	}
	if s.Clients == nil {
		s.Clients = []netip.Prefix{}
	}
	for _, b := range p.Service.Backends {
		d := Backend{Addr: b.Addr, Weight: b.Weight, State: "active"}
		if b.Draining {
			d.State, d.Left = "draining", max(0, p.Drains[b.Addr].Sub(now))
		}
		s.Backends = append(s.Backends, d)
	}
	if e.spec != nil && !p.Leaving {
		s.Note = degraded(svc, e.spec, inForce)
		for _, b := range e.spec.Backends {
			if _, served := p.Service.Backend(b.Addr); !served && b.State == lb.Draining {
				s.Backends = append(s.Backends, Backend{Addr: b.Addr, State: "drained"})
			}
		}
	}
	return s
}
