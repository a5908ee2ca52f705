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
	how := proxier.How{Fresh: r.throttle.begin(now), Prune: view.Spoken()}
	how.Fresh = how.Fresh || how.Prune && !r.pruned // what was left standing since the start goes now

	var result desired.Result
	var o outcome
	if err := r.guard("pass", func() { result, o = r.carryOut(ctx, view, how, now) }); err != nil {
		o.err = err
	}
	if o.err != nil && ctx.Err() != nil {
		r.dismiss(ctx.Err())
		return
	}
	r.pruned = r.pruned || how.Prune && o.err == nil
	end := time.Now()
	r.throttle.end(end, how.Fresh, o.err != nil, earliest(result.Due, r.probation()))
	r.note(view, how, o, len(result.Touched), now, end)
	r.answer(view, o.err)
}

// carryOut decides, records what it decided and puts it in place.
func (r *Reconciler) carryOut(ctx context.Context, view *discovery.View, how proxier.How, now time.Time) (desired.Result, outcome) {
	result, entries := r.decide(view, now)
	err := r.recorder.Record(result.Claims, entries)
	o := r.apply(ctx, result, how, now)
	if len(o.quarantine) > 0 { // what stands in place of what was recorded
		err = errors.Join(err, r.recorder.Record(nil, r.records(o.quarantine, now)))
	}
	if err != nil {
		r.log.Error("the state cannot be written; serving goes on, a restart may know less", "error", err)
	}
	r.setStateError(err)
	return result, o
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
	f := desired.Facts{Now: now, Mode: s.Mode, Allowed: s.Allowed, Modes: slices.Sorted(maps.Keys(r.proxiers))}
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
	result := desired.Compute(r.memo, r.facts(view, r.settings, now))
	return result, r.recordsLocked(result.Touched, now)
}

// records returns the lasting form of what is known of some services.
func (r *Reconciler) records(keys []lb.Key, now time.Time) map[lb.Key][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.recordsLocked(keys, now)
}

func (r *Reconciler) recordsLocked(keys []lb.Key, now time.Time) map[lb.Key][]byte {
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

// outcome is how a pass ended: err if it is to be made again, quarantine the
// services whose standing in some mode changed.
type outcome struct {
	err        error
	quarantine []lb.Key
}

// apply drives the stages in their order. After an error of the door nothing
// further is touched: what stands keeps serving. An error of one mode does not
// stop the others; but since nobody knows then what the mode still serves, the
// door clears nothing away.
func (r *Reconciler) apply(ctx context.Context, d desired.Result, how proxier.How, now time.Time) outcome {
	var o outcome
	want := r.admitAll(d, now)
	err := r.door.Shut(ctx, want, how)
	refused, partial := proxier.FailedServices(err)
	if err != nil && !partial {
		o.err = fmt.Errorf("door: %w", err)
		return o
	}
	for _, mode := range order(r.proxiers, d.Gained) {
		if err := r.sync(ctx, mode, d.Place[mode], refused, how, now, &o); err != nil {
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
func (r *Reconciler) sync(ctx context.Context, mode lb.Mode, want lb.Snapshot, refused map[lb.Key]error,
	how proxier.How, now time.Time, o *outcome,
) error {
	admitted := r.admit(mode, want, refused, now)
	err := r.proxiers[mode].Sync(ctx, admitted, how)
	rejected, partial := proxier.FailedServices(err)
	if err != nil && !partial {
		return err
	}
	o.quarantine = append(o.quarantine, r.settle(mode, want, admitted, rejected, now)...)
	return nil
}

// admit returns what a mode is to be asked for.
func (r *Reconciler) admit(mode lb.Mode, want lb.Snapshot, refused map[lb.Key]error, now time.Time) lb.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stages[mode].admitBut(want, refused, now)
}

// admitAll returns what the door is to expect.
func (r *Reconciler) admitAll(d desired.Result, now time.Time) lb.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stages.toShut(d, now)
}

// settle notes what a stage rejected, and logs what is new about it. It returns
// the keys that came into quarantine or left it.
func (r *Reconciler) settle(stage lb.Mode, want, tried lb.Snapshot, rejected map[lb.Key]error, now time.Time) []lb.Key {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := r.stages[stage]
	changed := q.settle(want, tried, rejected, now)
	for _, k := range changed {
		s, in := q.suspects[k]
		if in {
			r.log.Error("service quarantined; its last applied version stands, all others are in place", "service", k, "error", s.err)
			r.memo.Rejected(k, stage, q.applied.Get(k))
		} else {
			r.log.Info("service out of quarantine", "service", k)
			r.memo.Accepted(k, stage)
		}
	}
	return changed
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
