package ipvs

import (
	"context"
	"errors"

	vs "vipd/internal/ipvs"
	"vipd/lb"
	"vipd/proxier"
)

// Counters implements proxier.Counter, at the cost of one dump a service. Connections
// in FIN_WAIT and TIME_WAIT are among the inactive.
func (p *Proxier) Counters(ctx context.Context, services []lb.Key) ([]proxier.Count, error) {
	var all []proxier.Count
	for _, k := range p.serving(services) {
		err := p.Kernel.Destinations(ctx, k, func(e vs.Entry) error {
			all = append(all, proxier.Count{Service: k, Backend: e.Addr, Active: e.Active, Inactive: e.Inactive})
			return nil
		})
		if err != nil && !errors.Is(err, vs.ErrNotFound) { // not found: somebody deleted it
			return nil, err
		}
	}
	return all, nil
}

// serving returns those of services that have a virtual server of ours. It waits for
// the end of a pass.
func (p *Proxier) serving(services []lb.Key) (ours []lb.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.memory.known {
		return nil
	}
	for _, k := range services {
		if p.memory.stands(k) != nil {
			ours = append(ours, k)
		}
	}
	return ours
}
