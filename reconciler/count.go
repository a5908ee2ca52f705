package reconciler

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"vipd/desired"
	"vipd/lb"
	"vipd/proxier"
)

const (
	// countInterval is how often the connections of what drains are counted, unless
	// that takes more than a tenth of the time.
	countInterval = time.Second
	countShare    = 10
	// countAtOnce is how many services of a mode are counted at a time, in turn: each may
	// cost a question to the kernel.
	countAtOnce = 200
)

// counts are the connections of what drains, in the modes that can count them. They
// make a drain end with its last connection, before its deadline. One count at a time
// runs beside passes; the loop starts it and takes what comes of it.
type counts struct {
	done chan tally
	work sync.WaitGroup

	// Owned by the goroutine of Run.
	next   time.Time                 // when to count again; zero: nothing drains
	busy   bool                      // a count is under way
	turn   map[lb.Mode]lb.Key        // the service that was counted last
	idle   map[desired.Drain]bool    // for the next pass
	failed bool                      // the last time
	last   map[desired.Drain]counted // replaced at each count, under Reconciler.mu
}

// counted are the connections of one drain, which its deadline tells from an earlier
// or a later one of the same backend.
type counted struct {
	proxier.Count
	until time.Time
}

// tally is what came of a count.
type tally struct {
	asked  map[desired.Drain]time.Time // what drained in place when it began
	counts map[desired.Drain]proxier.Count
	err    error
	took   time.Duration
}

// planCount says when to count next, if something drains.
func (r *Reconciler) planCount(at time.Time) {
	if r.counts.busy || !r.counts.next.IsZero() { // or else many passes would put it off for ever
		return
	}
	for mode, p := range r.proxiers {
		if _, can := p.(proxier.Counter); can && len(r.memo.Draining(mode)) > 0 {
			r.counts.next = at
			return
		}
	}
	r.setCounts(nil)
}

// count begins to count the connections of what drains in place. Only of that it is
// certain that nothing new comes to it.
func (r *Reconciler) count(ctx context.Context) {
	t := tally{asked: map[desired.Drain]time.Time{}, counts: map[desired.Drain]proxier.Count{}}
	services := map[lb.Mode][]lb.Key{}
	for mode, p := range r.proxiers {
		if _, can := p.(proxier.Counter); can {
			drains := r.inPlace(mode)
			maps.Copy(t.asked, drains)
			services[mode] = r.inTurn(mode, drains)
		}
	}
	r.counts.busy, r.counts.next = true, time.Time{}
	r.counts.work.Go(func() {
		began := time.Now()
		if err := r.guard("count", func() { t.ask(ctx, r.proxiers, services) }); err != nil {
			t.err = err
		}
		t.took = time.Since(began)
		r.counts.done <- t // has room
	})
}

// ask asks the modes.
func (t *tally) ask(ctx context.Context, proxiers map[lb.Mode]proxier.Proxier, services map[lb.Mode][]lb.Key) {
	for mode, keys := range services {
		if len(keys) == 0 {
			continue
		}
		counts, err := proxiers[mode].(proxier.Counter).Counters(ctx, keys)
		if err != nil {
			t.err = err
		}
		for _, c := range counts {
			t.counts[desired.Drain{Mode: mode, Key: c.Service, Backend: c.Backend}] = c
		}
	}
}

// take takes what came of a count, and asks for a pass if some drain is over: twice in
// a row its mode knew of it and counted, so that what was on its way when it began has
// arrived, and now there is no connection.
func (r *Reconciler) take(ctx context.Context, t tally) {
	last, idle := map[desired.Drain]counted{}, map[desired.Drain]bool{}
	for mode := range r.proxiers {
		for d, until := range r.inPlace(mode) {
			before, again := r.counts.last[d]
			again = again && before.until.Equal(until)
			c, now := t.counts[d]
			switch {
			case now && t.asked[d].Equal(until):
				last[d] = counted{c, until}
				if again && c.Active == 0 && c.Inactive == 0 {
					idle[d] = true
				}
			case again:
				last[d] = before
			}
		}
	}
	r.tellCounting(ctx, t.err)
	r.setCounts(last)
	r.counts.busy = false
	now := time.Now()
	r.planCount(now.Add(max(countInterval, countShare*t.took)))
	if len(idle) > 0 {
		r.counts.idle = idle
		r.throttle.request(now, false)
	}
}

// inPlace returns the deadlines of what drains in a mode, as that has it in place.
func (r *Reconciler) inPlace(mode lb.Mode) map[desired.Drain]time.Time {
	drains := r.memo.Draining(mode)
	maps.DeleteFunc(drains, func(d desired.Drain, _ time.Time) bool {
		svc := r.stages[mode].applied.Get(d.Key)
		if svc == nil {
			return true
		}
		b, found := svc.Backend(d.Backend)
		return !found || !b.Draining
	})
	return drains
}

// inTurn returns the services of drains to be counted now.
func (r *Reconciler) inTurn(mode lb.Mode, drains map[desired.Drain]time.Time) []lb.Key {
	keys := make([]lb.Key, 0, len(drains))
	for d := range drains {
		keys = append(keys, d.Key)
	}
	slices.SortFunc(keys, lb.Key.Compare)
	if keys = slices.Compact(keys); len(keys) <= countAtOnce {
		return keys
	}
	begin, found := slices.BinarySearchFunc(keys, r.counts.turn[mode], lb.Key.Compare)
	if found {
		begin++
	}
	keys = slices.Concat(keys[begin:], keys[:begin])[:countAtOnce]
	if r.counts.turn == nil {
		r.counts.turn = map[lb.Mode]lb.Key{}
	}
	r.counts.turn[mode] = keys[countAtOnce-1]
	return keys
}

// tellCounting logs that counting fails, or does no more. Drains have a deadline all
// the same.
func (r *Reconciler) tellCounting(ctx context.Context, err error) {
	if ctx.Err() != nil || (err != nil) == r.counts.failed {
		return
	}
	if r.counts.failed = err != nil; r.counts.failed {
		r.log.Warn("connections cannot be counted; drains last until their deadline", "error", err)
	} else {
		r.log.Info("connections are counted again")
	}
}

func (r *Reconciler) setCounts(last map[desired.Drain]counted) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.last = last
}

// withCounts fills in the connections of what drains.
func withCounts(svc desired.Service, last map[desired.Drain]counted) desired.Service {
	for i, b := range svc.Backends {
		if c, is := last[desired.Drain{Mode: svc.Mode, Key: svc.Key, Backend: b.Addr}]; is && b.State == "draining" {
			svc.Backends[i].Connections = &desired.Connections{Active: c.Active, Inactive: c.Inactive}
		}
	}
	return svc
}
