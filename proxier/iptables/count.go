package iptables

import (
	"context"
	"net/netip"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// CountFlows counts flows in conntrack, as netfilter.CountFlows does.
type CountFlows func(ctx context.Context, wanted ...netfilter.Eviction) (map[netfilter.Eviction]netfilter.FlowCount, error)

// Counters implements proxier.Counter for the backends that get no new connections:
// those that take some change too fast to be worth a dump. It costs one dump of
// conntrack a service that has such a backend, or one in all if they are many, asks
// nothing of the tools, and waits for no pass. How often it is asked is up to the caller: a walk
// over 100,000 connections takes some 50 ms.
//
// Flows that IPVS sent to the same backend, before or after the service moved to
// another mode, do not count.
func (p *Proxier) Counters(ctx context.Context, services []lb.Key) ([]proxier.Count, error) {
	wanted := p.draining(services)
	if len(wanted) == 0 {
		return nil, nil
	}
	flows, err := p.count(ctx, wanted...)
	if err != nil {
		return nil, err
	}
	all := make([]proxier.Count, 0, len(wanted))
	for _, e := range wanted {
		n := flows[e]
		all = append(all, proxier.Count{Service: e.Key, Backend: e.Backend, Active: n.Active, Inactive: n.Inactive})
	}
	return all, nil
}

// draining names the flows to the backends of services that get no new connections.
// Of a family or a service that is not known nothing is named.
func (p *Proxier) draining(services []lb.Key) (all []netfilter.Eviction) {
	for _, k := range services {
		serving := p.serving[netfilter.FamilyOf(k.Addr)].Load()
		if serving == nil || serving.unknown[k] {
			continue
		}
		s := serving.versions[0].Get(k)
		if s == nil {
			continue
		}
		for _, b := range s.Backends {
			if serving.drains(k, b.Addr) {
				all = append(all, netfilter.Eviction{Key: k, Backend: b.Addr, Way: netfilter.ByNAT})
			}
		}
	}
	return all
}

// drains reports whether no rule sends new connections to a backend that is listed.
// During a pass that has to be so before and after it: either may be in force.
func (s *serving) drains(k lb.Key, backend netip.AddrPort) bool {
	for _, version := range s.versions {
		service := version.Get(k)
		if service == nil {
			return false
		}
		if b, found := service.Backend(backend); !found || b.Usable() {
			return false
		}
	}
	return true
}
