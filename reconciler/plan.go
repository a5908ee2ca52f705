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

// Plan tells what a pass would do with these sources and settings, and changes
// nothing: neither the kernel nor what is remembered. It reads the kernel.
func (r *Reconciler) Plan(ctx context.Context, view *discovery.View, s Settings) (changes []proxier.Change, err error) {
	waitErr := r.errand(ctx, func(loop context.Context) {
		r.mu.Lock()
		memo := r.memo.Clone()
		stages := map[lb.Mode]*quarantine{}
		for name, q := range r.stages {
			stages[name] = q.clone()
		}
		r.mu.Unlock()
		now := time.Now()
		facts := r.facts(view, s, now)
		changes, err = plan(loop, desired.Compute(memo, facts), r.door, r.proxiers, stages, view.Spoken())
	})
	return changes, errors.Join(waitErr, err)
}

// PlanOnce is Plan without a running daemon: from the memo of the last run and
// the kernel.
func PlanOnce(ctx context.Context, o Options) ([]proxier.Change, error) {
	r := New(o)
	view := o.Views.Get()
	return plan(ctx, desired.Compute(o.Memo, r.facts(view, o.Settings, time.Now())), r.door, r.proxiers, r.stages, view.Spoken())
}

// plan asks every stage what it would do, in the order of a pass.
func plan(ctx context.Context, d desired.Result, door Door, proxiers map[lb.Mode]proxier.Proxier,
	stages map[lb.Mode]*quarantine, prune bool,
) ([]proxier.Change, error) {
	how := proxier.How{Fresh: true, Prune: prune}
	now := time.Now()
	changes, err := door.Plan(ctx, stages[doorStage].admit(d.Door, now, true), how)
	if err != nil {
		err = fmt.Errorf("door: %w", err)
	}
	for _, mode := range slices.Sorted(maps.Keys(proxiers)) {
		more, planErr := proxiers[mode].Plan(ctx, stages[mode].admit(d.Place[mode], now, false), how)
		changes = append(changes, more...)
		if planErr != nil {
			err = errors.Join(err, fmt.Errorf("mode %s: %w", mode, planErr))
		}
	}
	return changes, err
}
