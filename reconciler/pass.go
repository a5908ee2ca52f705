package reconciler

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

	result, entries := r.decide(view, now)
	if err := r.recorder.Record(result.Claims, entries); err != nil {
		r.log.Error("the state cannot be written; serving goes on, a restart may know less", "error", err)
		r.setStateError(err)
	} else {
		r.setStateError(nil)
	}
	outcome := r.apply(ctx, result, how, now)
	if outcome.err != nil && ctx.Err() != nil {
		r.dismiss(ctx.Err())
		return
	}
	r.pruned = r.pruned || how.Prune && outcome.err == nil
	end := time.Now()
	r.throttle.end(end, how.Fresh, outcome.err != nil, earliest(result.Due, r.probation()))
	r.note(view, how, outcome, len(result.Touched), now, end)
	r.waiters = slices.DeleteFunc(r.waiters, func(w waiter) bool {
		if !w.serves(view) {
			return false
		}
		w.done <- outcome.err
		return true
	})
}

// facts are what a decision on this view rests on.
func (r *Reconciler) facts(view *discovery.View, s Settings, now time.Time) desired.Facts {
	f := desired.Facts{Now: now, Mode: s.Mode, Allowed: s.Allowed, Modes: slices.Sorted(maps.Keys(r.proxiers))}
	for _, v := range view.Sources {
		source := desired.Source{Name: v.Name, Services: v.Services, Yields: map[lb.Key]time.Time{}}
		for k, h := range v.Held {
			source.Yields[k] = h.Yields
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
	records := make(map[lb.Key][]byte, len(result.Touched))
	for _, k := range result.Touched {
		raw, err := r.memo.Record(k, now)
		if err != nil {
			r.log.Error("a decision cannot be recorded", "service", k, "error", err)
			continue
		}
		records[k] = raw
	}
	return result, records
}

// outcome is how a pass ended: err if it is to be made again, rejected the
// services that are in quarantine since.
type outcome struct {
	err      error
	rejected map[lb.Key]error
}

// apply drives the stages in their order. After an error of the door nothing
// further is touched: what stands keeps serving. An error of one mode does not
// stop the others.
func (r *Reconciler) apply(ctx context.Context, d desired.Result, how proxier.How, now time.Time) outcome {
	o := outcome{rejected: map[lb.Key]error{}}
	tried := r.admit(doorStage, d.Door, now, how.Fresh)
	err := r.door.Shut(ctx, tried, how)
	rejected, partial := proxier.FailedServices(err)
	if err != nil && !partial {
		o.err = fmt.Errorf("door: %w", err)
		return o
	}
	o.settle(r, doorStage, d.Door, tried, rejected, now)

	open := d.Door.Edit()
	for k := range r.stages[doorStage].suspects {
		r.stages[doorStage].substitute(open, k)
	}
	for _, mode := range order(r.proxiers, d.Gained) {
		err := r.sync(ctx, mode, d.Place[mode], how, now, &o)
		if err != nil {
			o.err = errors.Join(o.err, fmt.Errorf("mode %s: %w", mode, err))
		}
		r.keepShut(open, mode, d.Place[mode])
	}
	if err := r.door.Open(ctx, open.Snapshot(), how); err != nil {
		if rejected, partial := proxier.FailedServices(err); partial {
			maps.Copy(o.rejected, rejected)
		}
		o.err = errors.Join(o.err, fmt.Errorf("door: %w", err))
	}
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

// sync has one mode serve its part. It returns an error if the outcome is unknown.
func (r *Reconciler) sync(ctx context.Context, mode lb.Mode, want lb.Snapshot, how proxier.How, now time.Time, o *outcome) error {
	editor := want.Edit() // what the door refuses is not served either, but what stands stays
	for k := range r.stages[doorStage].suspects {
		if want.Get(k) != nil {
			r.stages[mode].substitute(editor, k)
		}
	}
	admitted := r.admit(mode, editor.Snapshot(), now, false)
	err := r.proxiers[mode].Sync(ctx, admitted, how)
	rejected, partial := proxier.FailedServices(err)
	if err != nil && !partial {
		return err
	}
	o.settle(r, mode, want, admitted, rejected, now)
	return nil
}

// keepShut takes the services out that a mode could not put in place, and that
// have no older version to stand in: their VIP:port is not opened for them.
func (r *Reconciler) keepShut(open *lb.Editor, mode lb.Mode, want lb.Snapshot) {
	applied := r.stages[mode].applied
	for _, k := range missing(want, applied) {
		open.Delete(k)
	}
}

// missing lists the keys that want has and applied has not.
func missing(want, applied lb.Snapshot) []lb.Key {
	var keys []lb.Key
	for before, after := range want.Diff(applied) {
		if before == nil && after != nil {
			keys = append(keys, after.Key)
		}
	}
	return keys
}

func (r *Reconciler) admit(stage lb.Mode, want lb.Snapshot, now time.Time, retry bool) lb.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stages[stage].admit(want, now, retry)
}

// settle notes what a stage rejected, and logs what is new about it.
func (o *outcome) settle(r *Reconciler, stage lb.Mode, want, tried lb.Snapshot, rejected map[lb.Key]error, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := maps.Clone(r.stages[stage].suspects)
	r.stages[stage].settle(want, tried, rejected, now)
	for k, err := range rejected {
		o.rejected[k] = err
		if _, again := known[k]; !again {
			r.log.Error("service quarantined; its last applied version stands, all others are in place", "service", k, "error", err)
		}
	}
	for k := range known {
		if _, still := r.stages[stage].suspects[k]; !still {
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
