package reconciler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"time"

	"vipd/desired"
	"vipd/discovery"
	"vipd/lb"
	"vipd/proxier"
)

// runPass makes one pass and tells the throttle, Status and whoever waits.
func (r *Reconciler) runPass(ctx context.Context, now time.Time) {
	view := r.views.Get()
	r.drifts.Store(0)
	how := proxier.How{Fresh: r.throttle.begin(now), Prune: view.Spoken()}
	how.Fresh = how.Fresh || how.Prune && !r.pruned // what was left standing since the start goes now

	var result desired.Result
	var o outcome
	if err := r.guard("pass", func() { result, o = r.carryOut(ctx, view, how, now) }); err != nil {
		o.err = err
	}
	r.noteStands(now)
	if o.err != nil && ctx.Err() != nil {
		r.dismiss(ctx.Err())
		return
	}
	r.pruned = r.pruned || how.Prune && o.err == nil
	end := time.Now()
	due := earliest(result.Due, r.probation())
	if o.again {
		due = end
	}
	r.throttle.end(end, how.Fresh, o.err != nil, due)
	r.planCount(end.Add(countInterval))
	r.note(view, how, o, len(result.Touched), now, end)
	r.answer(view, o.err)
}

// carryOut decides, records what it decided and puts it in place.
func (r *Reconciler) carryOut(ctx context.Context, view *discovery.View, how proxier.How, now time.Time) (desired.Result, outcome) {
	result, entries := r.decide(view, now)
	r.record(result.Claims, entries)
	return result, r.apply(ctx, result, how, now)
}

// noteStands records what stands where that is not what was recorded as decided,
// however the pass ended.
func (r *Reconciler) noteStands(now time.Time) {
	r.mu.Lock()
	records := map[lb.Key][]byte{}
	for mode := range r.proxiers {
		maps.Copy(records, r.records(r.memo.Stand(mode, r.stages[mode].stands()), now))
	}
	r.mu.Unlock()
	if len(records) > 0 {
		r.record(nil, records)
	}
}

func (r *Reconciler) record(claims []desired.Claim, entries map[lb.Key][]byte) {
	err := r.recorder.Record(claims, entries)
	if err != nil {
		r.log.Error("the state cannot be written; serving goes on, a restart may know less", "error", err)
	}
	r.setStateError(err)
}

// guard runs f and turns a panic into an error: a pass that fails for a poisoned
// input is tried again, with back-off and in everybody's sight, while what is in
// place keeps serving. A crash would begin the same again at every restart.
func (r *Reconciler) guard(what string, f func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			r.log.Error("panic; this is a bug in vipd", "in", what, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("%s: panic, a bug in vipd: %v", what, p)
		}
	}()
	f()
	return nil
}

// facts are what a decision on this view rests on.
func (r *Reconciler) facts(view *discovery.View, s Settings, now time.Time) desired.Facts {
	f := desired.Facts{Now: now, Mode: s.Mode, Allowed: s.Allowed, Modes: r.modes, Lacks: r.lacks}
	for _, v := range view.Sources {
		source := desired.Source{Name: v.Name, Services: v.Services, Yields: map[lb.Key]time.Time{}}
		for k, h := range v.Held {
			if !h.Yields.IsZero() {
				source.Yields[k] = h.Yields
			}
		}
		f.Sources = append(f.Sources, source)
	}
	return f
}

// decide computes what is desired and the records of what changed.
func (r *Reconciler) decide(view *discovery.View, now time.Time) (desired.Result, map[lb.Key][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	facts := r.facts(view, r.settings, now)
	facts.Idle, r.counts.idle = r.counts.idle, nil
	result := desired.Compute(r.memo, facts)
	return result, r.records(result.Touched, now)
}

// records returns the lasting form of what is known of some services. r.mu is
// held.
func (r *Reconciler) records(keys []lb.Key, now time.Time) map[lb.Key][]byte {
	records := make(map[lb.Key][]byte, len(keys))
	for _, k := range keys {
		raw, err := r.memo.Record(k, now)
		if err != nil {
			r.log.Error("a decision cannot be recorded", "service", k, "error", err)
			continue
		}
		records[k] = raw
	}
	return records
}

// outcome is how a pass ended.
type outcome struct {
	err   error // it is to be made again
	again bool  // there is more to do at once
}

// apply drives the stages in their order. After an error of the door nothing
// further is touched: what stands keeps serving. An error of one mode does not
// stop the others; but since nobody knows then what the mode still serves, the
// door clears nothing away.
func (r *Reconciler) apply(ctx context.Context, d desired.Result, how proxier.How, now time.Time) outcome {
	var o outcome
	want := r.admitAll(d, now)
	err := r.door.Shut(ctx, want, how)
	r.forget(doorStage, want, how)
	refused, partial := proxier.FailedServices(err)
	if err != nil && !partial {
		o.err = fmt.Errorf("door: %w", err)
		return o
	}
	stayed := r.stages.stayers(d)
	for _, mode := range order(r.proxiers, d.Gained) {
		if err := r.sync(ctx, d, mode, refused, how, now); err != nil {
			o.err = errors.Join(o.err, fmt.Errorf("mode %s: %w", mode, err))
		}
	}
	how.Prune = how.Prune && o.err == nil
	opened := r.stages.toOpen(d, refused)
	err = r.door.Open(ctx, opened, how)
	more, partial := proxier.FailedServices(err)
	if err != nil && !partial {
		o.err = errors.Join(o.err, fmt.Errorf("door: %w", err))
		opened = r.stages[doorStage].applied
	}
	rejected := map[lb.Key]error{}
	maps.Copy(rejected, refused)
	maps.Copy(rejected, more)
	tried := opened.Edit()
	for k := range rejected {
		if svc := want.Get(k); svc != nil {
			tried.Put(svc)
		}
	}
	r.settle(doorStage, want, tried.Snapshot(), rejected, now)
	o.again = r.stages.stayers(d) < stayed // the door leads to the mode for which they stayed
	return o
}

// order puts the modes that gain services before those that lose them.
func order(proxiers map[lb.Mode]proxier.Proxier, gained map[lb.Mode]bool) []lb.Mode {
	modes := slices.Sorted(maps.Keys(proxiers))
	slices.SortStableFunc(modes, func(a, b lb.Mode) int {
		switch {
		case gained[a] == gained[b]:
			return 0
		case gained[a]:
			return -1
		}
		return 1
	})
	return modes
}

// sync has one mode serve its part. What the door refused is not served either,
// but what stands stays. It returns an error if the outcome is unknown.
func (r *Reconciler) sync(ctx context.Context, d desired.Result, mode lb.Mode, refused map[lb.Key]error,
	how proxier.How, now time.Time,
) error {
	admitted := r.admit(d, mode, refused, now)
	err := r.proxiers[mode].Sync(ctx, admitted, how)
	rejected, partial := proxier.FailedServices(err)
	if err != nil && !partial {
		r.forget(mode, admitted, how)
		return err
	}
	r.settle(mode, d.Place[mode], admitted, rejected, now)
	return nil
}

// admit returns what a mode is to be asked for.
func (r *Reconciler) admit(d desired.Result, mode lb.Mode, refused map[lb.Key]error, now time.Time) lb.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stages.admit(d, mode, refused, now)
}

// admitAll returns what the door is to expect.
func (r *Reconciler) admitAll(d desired.Result, now time.Time) lb.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stages.toShut(d, now)
}

// forget notes that what tried was to remove may be gone.
func (r *Reconciler) forget(stage lb.Mode, tried lb.Snapshot, how proxier.How) {
	if !how.Prune {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stages[stage].forget(tried)
}

// settle notes what a stage rejected, and logs what is new about it.
func (r *Reconciler) settle(stage lb.Mode, want, tried lb.Snapshot, rejected map[lb.Key]error, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := r.stages[stage]
	for _, k := range q.settle(want, tried, rejected, now) {
		if s, in := q.suspects[k]; in {
			r.log.Error("service quarantined; its last applied version stands, all others are in place", "service", k, "error", s.err)
		} else {
			r.log.Info("service out of quarantine", "service", k)
		}
	}
}

// probation returns when the next service in quarantine is tried again.
func (r *Reconciler) probation() time.Time {
	var due time.Time
	for _, q := range r.stages {
		due = earliest(due, q.due())
	}
	return due
}

// earliest returns the earlier of two times of which a zero one means never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
