package ipvs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	vs "vipd/internal/ipvs"
	"vipd/lb"
)

// readServer returns what stands under a key, ours or not.
func (p *pass) readServer(ctx context.Context, k lb.Key) (*standing, error) {
	server, found, err := p.kernel.Server(ctx, k)
	if err != nil || !found {
		return nil, err
	}
	return p.readDestinations(ctx, server)
}

// readDestinations returns what stands of a virtual server: nil if it is gone by now.
func (p *pass) readDestinations(ctx context.Context, server vs.Server) (*standing, error) {
	s := &standing{server: server}
	err := p.kernel.Destinations(ctx, server.Key, func(e vs.Entry) error {
		s.to = append(s.to, e.Destination)
		return nil
	})
	if errors.Is(err, vs.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(s.to, compareDestinations)
	s.to = slices.CompactFunc(s.to, func(a, b vs.Destination) bool { return a.Addr == b.Addr }) // a torn dump
	return s, nil
}

// read reads all that is ours: the virtual servers in one dump, the destinations of
// each in another. Strangers' are not looked at. Afterwards the wanted snapshot counts
// as applied, and all that stands otherwise is odd. One of ours that the dump missed is
// found by tidy if nobody wants it, and else when it is made (refused).
func (p *pass) read(ctx context.Context) error {
	ours, others, err := p.readServers(ctx)
	if err != nil {
		return err
	}
	m := p.memory
	m.odd, m.strangers = map[lb.Key]*standing{}, map[lb.Key]bool{}
	seen := make(map[lb.Key]bool, len(ours))
	for _, server := range ours {
		stands, err := p.readDestinations(ctx, server)
		if err != nil {
			return err
		}
		seen[server.Key] = true
		if !stands.equal(render(p.want.Get(server.Key))) {
			m.odd[server.Key] = stands
		}
	}
	for svc := range p.want.All() {
		if !seen[svc.Key] && (render(svc) != nil || p.validate(svc) != nil) {
			m.odd[svc.Key] = nil
		}
	}
	for _, server := range others {
		m.strangers[server.Key] = true
	}
	if err := p.tidy(ctx, seen); err != nil {
		return err
	}
	m.applied, m.known, p.fresh = p.want, true, true
	return nil
}

// readServers returns the virtual servers that are ours, and the others.
func (p *pass) readServers(ctx context.Context) (ours, others []vs.Server, err error) {
	p.owned = map[lb.Key]bool{}
	for k := range p.journal.Owned() {
		p.owned[k] = true
	}
	var all []vs.Server
	err = p.kernel.Servers(ctx, func(s vs.Server) error {
		all = append(all, s)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	ours, others = divide(all, p.owned)
	if !p.memory.witnessed && p.witness != nil && len(others) > 0 {
		witnessed, err := p.witness(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("which of them are vipd's: %w", err)
		}
		more, rest := divide(others, witnessed)
		p.adopt(more)
		ours, others = append(ours, more...), rest
	}
	p.memory.witnessed = true
	return ours, others, nil
}

// divide returns the servers whose keys are in a set, and the rest.
func divide(servers []vs.Server, set map[lb.Key]bool) (in, out []vs.Server) {
	for _, s := range servers {
		if set[s.Key] {
			in = append(in, s)
		} else {
			out = append(out, s)
		}
	}
	return in, out
}

// adopt notes virtual servers that the journal does not know and the witness does.
func (p *pass) adopt(servers []vs.Server) {
	if len(servers) == 0 {
		return
	}
	keys := make([]lb.Key, 0, len(servers))
	for _, s := range servers {
		keys = append(keys, s.Key)
	}
	p.log.Warn("virtual servers that the journal does not know are taken for vipd's, for their VIP:port is open", "count", len(keys), "first", keys[0])
	p.note("noted", p.journal.Own, keys)
}

// tidy takes out of the journal what neither stands nor is going to be made: a virtual
// server that never was, or that somebody else deleted. One that does stand is odd.
func (p *pass) tidy(ctx context.Context, seen map[lb.Key]bool) error {
	if !p.how.Prune {
		return nil
	}
	var keys []lb.Key
	for k := range p.owned {
		svc := p.want.Get(k)
		if made := render(svc) != nil && p.validate(svc) == nil; made || seen[k] {
			continue
		}
		stands, err := p.readServer(ctx, k)
		switch {
		case err != nil:
			return err
		case stands != nil:
			p.memory.odd[k] = stands
		default:
			keys = append(keys, k)
		}
	}
	p.note("taken out", p.journal.Disown, keys)
	return nil
}
