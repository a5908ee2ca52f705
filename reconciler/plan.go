package reconciler

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	waitErr := r.errand(ctx, func(ctx context.Context) {
		panicked := r.guard("plan", func() {
			memo, stages := r.copies()
			d := desired.Compute(memo, r.facts(view, s, time.Now()))
			p, err = plan(ctx, d, r.door, r.proxiers, stages, view.Spoken())
		})
		err = errors.Join(err, panicked)
	})
	return p, errors.Join(waitErr, err)
}

// copies returns what a plan may change without consequences.
func (r *Reconciler) copies() (*desired.Memo, map[lb.Mode]*quarantine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	stages := map[lb.Mode]*quarantine{}
	for name, q := range r.stages {
		stages[name] = q.clone()
	}
	return r.memo.Clone(), stages
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
	changes, err := door.Plan(ctx, d.Door, how)
	err = add("door", changes, err)
	refused := maps.Clone(p.Rejected)
	for _, mode := range order(proxiers, d.Gained) {
		changes, planErr := proxiers[mode].Plan(ctx, admit(stages[mode], d.Place[mode], refused, now), how)
		err = errors.Join(err, add("mode "+string(mode), changes, planErr))
	}
	return p, err
}
