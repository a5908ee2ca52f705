package reconciler

import (
	"context"
	"time"

	"vipd/desired"
	"vipd/lb"
	"vipd/proxier"
)

const (
	// countInterval is how often the connections of what drains are counted.
	countInterval = time.Second
	// countAtOnce is how many services are counted at a time, in turn: each may cost a
	// question to the kernel, which passes wait for.
	countAtOnce = 200
)

// counts are the connections of what drains, by the modes that can count them. They
// make a drain end with its last connection, before its deadline.
type counts struct {
	// Owned by the goroutine of Run.
	next   time.Time                       // when to count again; zero: nothing drains
	turn   map[lb.Mode]lb.Key              // the service that was counted last
	idle   map[desired.Drain]bool          // for the next pass
	failed bool                            // the last time
	last   map[desired.Drain]proxier.Count // replaced at each count, under Reconciler.mu
}

// planCount says when to count next, if something drains.
func (r *Reconciler) planCount(now time.Time) {
	for mode, p := range r.proxiers {
		if _, can := p.(proxier.Counter); can && len(r.memo.Draining(mode)) > 0 {
			if r.counts.next.IsZero() { // else many passes would put it off for ever
				r.counts.next = now.Add(countInterval)
			}
			return
		}
	}
	r.counts.next = time.Time{}
	r.setCounts(nil)
}

// count counts the connections of what drains, and asks for a pass if some backend has
// none any more.
func (r *Reconciler) count(ctx context.Context) {
	last, idle := map[desired.Drain]proxier.Count{}, map[desired.Drain]bool{}
	for mode, p := range r.proxiers {
		counter, can := p.(proxier.Counter)
		if !can {
			continue
		}
		draining := r.draining(mode)
		for d, c := range r.counts.last {
			if draining[d] {
				last[d] = c
			}
		}
		counted, err := counter.Counters(ctx, r.inTurn(mode))
		r.tellCounting(ctx, mode, err)
		for _, c := range counted {
			d := desired.Drain{Mode: mode, Key: c.Service, Backend: c.Backend}
			if !draining[d] {
				continue
			}
			if last[d] = c; c.Active == 0 && c.Inactive == 0 {
				idle[d] = true
			}
		}
	}
	r.setCounts(last)
	r.counts.next = time.Time{}
	r.planCount(time.Now())
	if len(idle) > 0 {
		r.counts.idle = idle
		r.throttle.request(time.Now(), false)
	}
}

// draining returns the backends that drain in a mode, as it has them in place. Only of
// those it is certain that nothing new comes to them.
func (r *Reconciler) draining(mode lb.Mode) map[desired.Drain]bool {
	all := map[desired.Drain]bool{}
	for _, k := range r.memo.Draining(mode) {
		svc := r.stages[mode].applied.Get(k)
		if svc == nil {
			continue
		}
		for _, b := range svc.Backends {
			if b.Draining {
				all[desired.Drain{Mode: mode, Key: k, Backend: b.Addr}] = true
			}
		}
	}
	return all
}

// inTurn returns the services of a mode to be counted now.
func (r *Reconciler) inTurn(mode lb.Mode) []lb.Key {
	keys := r.memo.Draining(mode)
	if len(keys) <= countAtOnce {
		return keys
	}
	begin := 0
	for begin < len(keys) && keys[begin].Compare(r.counts.turn[mode]) <= 0 {
		begin++
	}
	keys = append(keys[begin:], keys[:begin]...)[:countAtOnce]
	if r.counts.turn == nil {
		r.counts.turn = map[lb.Mode]lb.Key{}
	}
	r.counts.turn[mode] = keys[len(keys)-1]
	return keys
}

// tellCounting logs that counting fails, or does not any more. Drains have a deadline
// all the same.
func (r *Reconciler) tellCounting(ctx context.Context, mode lb.Mode, err error) {
	if ctx.Err() != nil || (err != nil) == r.counts.failed {
		return
	}
	if r.counts.failed = err != nil; r.counts.failed {
		r.log.Warn("connections cannot be counted; drains last until their deadline", "mode", mode, "error", err)
	} else {
		r.log.Info("connections are counted again", "mode", mode)
	}
}

func (r *Reconciler) setCounts(last map[desired.Drain]proxier.Count) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.last = last
}

// withCounts fills in the connections of what drains.
func withCounts(svc desired.Service, last map[desired.Drain]proxier.Count) desired.Service {
	for i, b := range svc.Backends {
		if c, counted := last[desired.Drain{Mode: svc.Mode, Key: svc.Key, Backend: b.Addr}]; counted && b.State == "draining" {
			svc.Backends[i].Connections = &desired.Connections{Active: c.Active, Inactive: c.Inactive}
		}
	}
	return svc
}
