package ipvs

import (
	"context"
	"fmt"
	"time"

	vs "vipd/internal/ipvs"
	"vipd/lb"
	"vipd/proxier"
)

const (
	// watchInterval is how often virtual servers are looked at: the kernel tells nobody
	// when one is changed. So "ipvsadm -C" is found within a second.
	watchInterval = 500 * time.Millisecond
	// watchCount is how many are looked at each time, in turn: a message each. That one
	// of many alone is gone may be found by the pass that compares everything first.
	watchCount = 100
)

// Watch implements proxier.Watcher. It looks at virtual servers, not at their
// destinations, and tells of one of them at a time: the pass that follows reads all.
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
		var servers []vs.Server
		var pass uint64
		servers, next, pass = p.toWatch(next)
		object, err := p.look(ctx, servers)
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
func (p *Proxier) toWatch(from lb.Key) (servers []vs.Server, next lb.Key, pass uint64) {
	if !p.mu.TryLock() {
		return nil, from, 0
	}
	defer p.mu.Unlock()
	if p.drifted || !p.memory.known {
		return nil, from, 0
	}
	for svc := range p.memory.applied.From(from) {
		if len(servers) == watchCount {
			return servers, svc.Key, p.passes
		}
		if stands := p.memory.stands(svc.Key); stands != nil {
			servers = append(servers, stands.server)
		}
	}
	return servers, lb.Key{}, p.passes
}

// look returns the name of the first virtual server that is not as it should be.
func (p *Proxier) look(ctx context.Context, servers []vs.Server) (object string, err error) {
	for _, s := range servers {
		is, found, err := p.Kernel.Server(ctx, s.Key)
		if err != nil {
			return "", err
		}
		if !found || is != s {
			return "virtual server " + s.Key.String(), nil
		}
	}
	return "", nil
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
