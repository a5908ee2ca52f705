package iptables

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

const (
	// countBudget is how long a count may take: its caller may be waited for by passes.
	countBudget = time.Second
	// countPause is how much longer than a count the pause after it is.
	countPause = 9
)

// CountFlows counts flows in conntrack, as netfilter.CountFlows does.
type CountFlows func(ctx context.Context, wanted ...netfilter.Eviction) (map[netfilter.Eviction]netfilter.FlowCount, error)

// pace keeps the counts in a large table of connections from taking more than a tenth
// of a processor.
type pace struct {
	mu   sync.Mutex // held while counting
	next time.Time  // when to count again
	err  error      // of the last count
}

// Counters implements proxier.Counter for the backends that get no new connections:
// those that take some change too fast to be worth a dump. It costs one dump of
// conntrack a service that has such a backend, or one in all if they are many, asks
// nothing of the tools, and waits for no pass. Within the pause after a count that took
// long it says nothing.
//
// Flows that IPVS sent to the same backend, before or after the service moved to
// another mode, do not count.
func (p *Proxier) Counters(ctx context.Context, services []lb.Key) ([]proxier.Count, error) {
	p.pace.mu.Lock()
	defer p.pace.mu.Unlock()
	wanted := p.draining(services)
	begin := time.Now()
	if len(wanted) == 0 || begin.Before(p.pace.next) {
		return nil, p.pace.err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, countBudget, fmt.Errorf("counting took more than %s: conntrack is too large", countBudget))
	defer cancel()
	var flows map[netfilter.Eviction]netfilter.FlowCount
	flows, p.pace.err = p.count(ctx, wanted...)
	if cause := context.Cause(ctx); p.pace.err != nil && cause != nil {
		p.pace.err = cause
	}
	p.pace.next = begin.Add((countPause + 1) * time.Since(begin))
	all := make([]proxier.Count, 0, len(wanted))
	for _, e := range wanted {
		if n, counted := flows[e]; counted && p.pace.err == nil {
			all = append(all, proxier.Count{Service: e.Key, Backend: e.Backend, Active: n.Active, Inactive: n.Inactive})
		}
	}
	return all, p.pace.err
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
