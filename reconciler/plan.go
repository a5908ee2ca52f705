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

// Planned is what a pass would do.
type Planned struct {
	Changes  []proxier.Change
	Rejected map[lb.Key]error // services that would be quarantined
}

// Plan tells what a pass would do with these sources and settings, and changes
// nothing: neither the kernel nor what is remembered. It reads the kernel.
func (r *Reconciler) Plan(ctx context.Context, view *discovery.View, s Settings) (p Planned, err error) {
	waitErr := r.errand(ctx, func(loop context.Context) {
		r.mu.Lock()
		memo := r.memo.Clone()
		stages := map[lb.Mode]*quarantine{}
		for name, q := range r.stages {
			stages[name] = q.clone()
		}
		r.mu.Unlock()
		d := desired.Compute(memo, r.facts(view, s, time.Now()))
		p, err = plan(loop, d, r.door, r.proxiers, stages, view.Spoken())
	})
	return p, errors.Join(waitErr, err)
}

// PlanOnce is Plan without a running daemon: from the memo of the last run and
// the kernel.
func PlanOnce(ctx context.Context, o Options) (Planned, error) {
	r := New(o)
	view := o.Views.Get()
	d := desired.Compute(o.Memo, r.facts(view, o.Settings, time.Now()))
	return plan(ctx, d, r.door, r.proxiers, r.stages, view.Spoken())
}

// plan asks every stage what it would do, in the order of a pass. stages are
// the caller's to lose.
func plan(ctx context.Context, d desired.Result, door Door, proxiers map[lb.Mode]proxier.Proxier,
	stages map[lb.Mode]*quarantine, prune bool,
) (Planned, error) {
	how, now := proxier.How{Fresh: true, Prune: prune}, time.Now()
	p := Planned{Rejected: map[lb.Key]error{}}
	add := func(stage string, changes []proxier.Change, err error) error {
		p.Changes = append(p.Changes, changes...)
		rejected, partial := proxier.FailedServices(err)
		if err != nil && !partial {
			return fmt.Errorf("%s: %w", stage, err)
		}
		maps.Copy(p.Rejected, rejected)
		return nil
	}
	changes, err := door.Plan(ctx, stages[doorStage].admit(d.Door, now, true), how)
	err = add("door", changes, err)
	for _, mode := range slices.Sorted(maps.Keys(proxiers)) {
		want := d.Place[mode].Edit()
		for k := range p.Rejected { // by the door: not served either, but what stands stays
			if d.Place[mode].Get(k) != nil {
				stages[mode].substitute(want, k)
			}
		}
		changes, planErr := proxiers[mode].Plan(ctx, stages[mode].admit(want.Snapshot(), now, false), how)
		err = errors.Join(err, add("mode "+string(mode), changes, planErr))
	}
	return p, err
}
