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
func (r *Reconciler) copies() (*desired.Memo, stages) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.memo.Clone(), r.stages.clone()
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
	s stages, prune bool,
) (Planned, error) {
	how, now := proxier.How{Fresh: true, Prune: prune}, time.Now()
	want := s.toShut(d, now)
	changes, err := door.Plan(ctx, want, how)
	refused, partial := proxier.FailedServices(err)
	if err != nil && !partial { // a pass would end here as well
		return Planned{}, fmt.Errorf("door: %w", err)
	}
	p, served := Planned{Rejected: map[lb.Key]error{}}, []proxier.Change{}
	maps.Copy(p.Rejected, refused)
	err = nil
	for _, mode := range order(proxiers, d.Gained) {
		admitted := s.admit(d, mode, refused, now)
		more, planErr := proxiers[mode].Plan(ctx, admitted, how)
		rejected, partial := proxier.FailedServices(planErr)
		if planErr != nil && !partial {
			err = errors.Join(err, fmt.Errorf("mode %s: %w", mode, planErr))
			continue
		}
		served = append(served, more...)
		maps.Copy(p.Rejected, rejected)
		s[mode].settle(d.Place[mode], admitted, rejected, now)
	}
	if len(p.Rejected) > len(refused) { // what a mode would reject is not opened
		var doorErr error
		if changes, doorErr = door.Plan(ctx, s.toOpen(d, refused), how); doorErr != nil {
			if _, partial := proxier.FailedServices(doorErr); !partial {
				err = errors.Join(err, fmt.Errorf("door: %w", doorErr))
			}
		}
	}
	p.Changes = append(changes, served...)
	return p, err
}
