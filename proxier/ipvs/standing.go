package ipvs

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	vs "vipd/internal/ipvs"
	"vipd/lb"
)

// standing is a virtual server with its destinations, as it stands or is to stand.
// It is immutable; nil is none.
type standing struct {
	server vs.Server
	to     []vs.Destination // sorted by address
}

func (s *standing) equal(o *standing) bool {
	if s == nil || o == nil {
		return s == o
	}
	return s.server == o.server && slices.Equal(s.to, o.to)
}

// destinations returns those of s, none of nil.
func (s *standing) destinations() []vs.Destination {
	if s == nil {
		return nil
	}
	return s.to
}

// has reports whether there is a destination of an address.
func (s *standing) has(addr netip.AddrPort) bool {
	_, found := slices.BinarySearchFunc(s.destinations(), addr, func(d vs.Destination, a netip.AddrPort) int { return d.Addr.Compare(a) })
	return found
}

// usable reports whether new connections have somewhere to go.
func (s *standing) usable() bool {
	return slices.ContainsFunc(s.destinations(), func(d vs.Destination) bool { return d.Weight > 0 })
}

// render returns what a service is in the kernel: nil if nothing.
func render(s *lb.Service) *standing {
	if s == nil {
		return nil
	}
	to, weight := make([]vs.Destination, 0, len(s.Backends)), weights(s)
	for _, b := range s.Backends {
		if listed(s, b) {
			to = append(to, destinationOf(s, b, weight))
		}
	}
	if len(to) == 0 {
		return nil
	}
	return &standing{serverOf(s), to}
}

// listed reports whether a backend is a destination. One that may get nothing new
// keeps its TCP connections, and nothing else.
func listed(s *lb.Service, b lb.Backend) bool { return s.Key.Protocol == lb.TCP || b.Usable() }

// serverOf returns the virtual server of a service.
func serverOf(s *lb.Service) vs.Server {
	v := vs.Server{Key: s.Key, Scheduler: string(s.Scheduler)}
	if s.Affinity > 0 {
		v.Flags |= vs.FlagPersistent
		v.Timeout = s.Affinity
	}
	if s.Flags&lb.FlagFallback != 0 {
		v.Flags |= vs.FlagFallback
	}
	if s.Flags&lb.FlagPort != 0 {
		v.Flags |= vs.FlagPort
	}
	return v
}

// destinationOf returns the destination that a backend is.
func destinationOf(s *lb.Service, b lb.Backend, weight func(uint16) uint32) vs.Destination {
	d := vs.Destination{Addr: b.Addr, Forward: vs.Masquerade}
	if b.Usable() {
		d.Weight = weight(b.Weight)
	}
	switch s.Forward {
	case lb.ForwardDR:
		d.Forward = vs.DirectRoute
	case lb.ForwardTunnel:
		d.Forward = vs.Tunnel
		if s.Tunnel.Type == lb.TunnelGUE {
			d.Tunnel, d.TunnelPort = vs.GUE, s.Tunnel.Port
		}
	case lb.ForwardNAT:
	}
	return d
}

// validate says what IPVS, or that of this kernel, cannot do of a service.
func (p *pass) validate(s *lb.Service) error {
	var errs []error
	if p.noGUE && s.Forward == lb.ForwardTunnel && s.Tunnel.Type == lb.TunnelGUE {
		errs = append(errs, errors.New(`this kernel has no tunnels of type gue (Linux 5.2 is the first); use tunnel = "ipip"`))
	}
	if p := s.Key.Protocol; p != lb.TCP && p != lb.UDP && p != lb.SCTP {
		errs = append(errs, fmt.Errorf("%s is not served by ipvs mode; use tcp, udp or sctp", p))
	}
	if s.Affinity%time.Second != 0 {
		errs = append(errs, fmt.Errorf("affinity of %s: use whole seconds", s.Affinity))
	}
	for _, b := range s.Backends {
		if b.Addr.Addr().Is4() != s.Key.Addr.Is4() {
			errs = append(errs, fmt.Errorf("backend %s is not of the family of the VIP; ipvs mode does not translate between IPv4 and IPv6", b.Addr))
		}
		if s.Forward != lb.ForwardNAT && b.Addr.Port() != s.Key.Port {
			errs = append(errs, fmt.Errorf("backend %s: with forward %q the port is not changed; use port %d", b.Addr, s.Forward, s.Key.Port))
		}
	}
	return errors.Join(errs...)
}

// goalOf returns what is to stand after a pass: what is wanted, and while nothing may
// be removed, what else stands. A destination that would go gets nothing new then,
// since the service no longer lists it.
func goalOf(have *standing, svc *lb.Service, prune bool) *standing {
	want := render(svc)
	if prune || have == nil {
		return want
	}
	if svc == nil {
		return have
	}
	goal := &standing{server: serverOf(svc), to: slices.Clone(want.destinations())}
	for _, d := range have.to {
		if !want.has(d.Addr) {
			d.Weight = 0
			goal.to = append(goal.to, d)
		}
	}
	slices.SortFunc(goal.to, compareDestinations)
	return goal
}

func compareDestinations(a, b vs.Destination) int { return a.Addr.Compare(b.Addr) }

// steps is what makes a virtual server another one, in the order in which it is done.
type steps struct {
	server []vs.Command // the virtual server is made or changed: one at most
	to     []vs.Command // destinations come and change
	leave  []vs.Command // destinations go, or the virtual server with all of them
}

// stepsTo returns what makes one standing another: a command for each object that
// differs.
func stepsTo(from, goal *standing) (s steps) {
	switch {
	case from == nil && goal == nil:
		return s
	case goal == nil:
		s.leave = []vs.Command{{Op: vs.DeleteServer, Server: from.server}}
		return s
	case from == nil:
		s.server = []vs.Command{{Op: vs.AddServer, Server: goal.server}}
	case from.server != goal.server:
		s.server = []vs.Command{{Op: vs.EditServer, Server: goal.server}}
	}
	old, to := from.destinations(), goal.to
	for len(old) > 0 || len(to) > 0 {
		order := 0
		switch {
		case len(old) == 0:
			order = 1
		case len(to) == 0:
			order = -1
		default:
			order = compareDestinations(old[0], to[0])
		}
		switch {
		case order < 0:
			s.leave = append(s.leave, vs.Command{Op: vs.DeleteDestination, Server: goal.server, Destination: old[0]})
		case order > 0:
			s.to = append(s.to, vs.Command{Op: vs.AddDestination, Server: goal.server, Destination: to[0]})
		case old[0] != to[0]:
			s.to = append(s.to, vs.Command{Op: vs.EditDestination, Server: goal.server, Destination: to[0]})
		}
		if order <= 0 {
			old = old[1:]
		}
		if order >= 0 {
			to = to[1:]
		}
	}
	return s
}
