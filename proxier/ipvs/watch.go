package ipvs

import (
	"context"
	"fmt"
	"slices"
	"time"

	vs "vipd/internal/ipvs"
	"vipd/lb"
	"vipd/proxier"
)

const (
	// watchInterval is how often virtual servers are looked at: the kernel tells nobody
	// when one is changed. So "ipvsadm -C" is found within a second.
	watchInterval = 500 * time.Millisecond
	// watchCount is how many are looked at each time, in turn: two messages each. That one
	// of many alone is gone may be found by the pass that compares everything first.
	watchCount = 50
	// watchDestinations is how many destinations are looked at each time. Those of a
	// virtual server that has more are compared by a pass alone.
	watchDestinations = 500
)

// Watch implements proxier.Watcher. It tells of one virtual server at a time: the pass
// that follows reads all.
func (p *Proxier) Watch(ctx context.Context, drift func(proxier.Drift)) error {
	ticks := time.NewTicker(watchInterval)
	defer ticks.Stop()
	var next lb.Key
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
		var all []*standing
		var pass uint64
		all, next, pass = p.toWatch(next)
		object, err := p.look(ctx, all)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("look at virtual servers: %w", err)
		case object != "" && p.tell(pass):
			drift(proxier.Drift{Object: object})
		}
	}
}

// toWatch returns the next virtual servers as they should be, where to go on, and the
// pass that left them so. While a pass is under way there is nothing to look at, nor
// until one has repaired what was told of.
func (p *Proxier) toWatch(from lb.Key) (all []*standing, next lb.Key, pass uint64) {
	if !p.mu.TryLock() {
		return nil, from, 0
	}
	defer p.mu.Unlock()
	if p.drifted || !p.memory.known {
		return nil, from, 0
	}
	destinations := 0
	for svc := range p.memory.applied.From(from) {
		stands := p.memory.stands(svc.Key)
		if stands == nil {
			continue
		}
		if stands.watchable() {
			destinations += len(stands.to)
		}
		if len(all) == watchCount || destinations > watchDestinations {
			return all, svc.Key, p.passes
		}
		all = append(all, stands)
	}
	return all, lb.Key{}, p.passes
}

// watchable reports whether its destinations are few enough to be looked at.
func (s *standing) watchable() bool { return len(s.to) <= watchDestinations }

// look returns the name of the first virtual server that is not as it should be.
func (p *Proxier) look(ctx context.Context, all []*standing) (object string, err error) {
	for _, s := range all {
		is, found, err := p.Kernel.Server(ctx, s.server.Key)
		same := found && is == s.server
		if err == nil && same && s.watchable() {
			same, err = p.sameDestinations(ctx, s)
		}
		if err != nil {
			return "", err
		}
		if !same {
			return "virtual server " + s.server.Key.String(), nil
		}
	}
	return "", nil
}

// sameDestinations reports whether a virtual server has the destinations it should.
func (p *Proxier) sameDestinations(ctx context.Context, s *standing) (bool, error) {
	has := make(map[vs.Destination]bool, len(s.to))
	err := p.Kernel.Destinations(ctx, s.server.Key, func(e vs.Entry) error {
		has[e.Destination] = true
		return nil
	})
	same := len(has) == len(s.to) && !slices.ContainsFunc(s.to, func(d vs.Destination) bool { return !has[d] })
	return same, err
}

// tell reports whether what was found is worth telling: nothing of ours was written
// since the virtual servers were noted, and nobody was told since a pass read them.
func (p *Proxier) tell(pass uint64) bool {
	if !p.mu.TryLock() {
		return false
	}
	defer p.mu.Unlock()
	if p.passes != pass || p.drifted {
		return false
	}
	p.drifted = true
	return true
}
