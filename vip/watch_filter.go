package vip

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vipd/internal/netfilter"
	"vipd/proxier"
)

// setInterval is how often the sets are looked at: the kernel tells nobody when one
// is flushed. A look costs a message for each set, whatever it holds.
const setInterval = time.Second

var _ proxier.Watcher = (*Door)(nil)

// Watch calls drift for what somebody else changed of what the door owns, and of the
// rules of every mode: addresses and devices, the packet filter, and the sets. Our
// own writes do not count. It returns nil when ctx ends.
func (d *Door) Watch(ctx context.Context, drift func(proxier.Drift)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watches := []func(context.Context, func(proxier.Drift)) error{d.watchLinks, d.watchRules, d.watchSets, d.watchRoom, d.watchSetRoom}
	ended := make(chan error, len(watches))
	for _, watch := range watches {
		go func() { ended <- watch(ctx, drift) }()
	}
	var errs error
	for range watches {
		errs = errors.Join(errs, <-ended)
		cancel() // all or none
	}
	return errs
}

// watchRules tells of the packet filter.
func (d *Door) watchRules(ctx context.Context, drift func(proxier.Drift)) error {
	return d.kernel.watch(ctx, func(n netfilter.Drift) { drift(proxier.Drift{Object: n.Object, By: n.By}) })
}

// watchSets tells of sets that hold more or fewer entries than the door left in
// them, or are gone.
func (d *Door) watchSets(ctx context.Context, drift func(proxier.Drift)) error {
	ticks := time.NewTicker(setInterval)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
		objects, err := d.lookAtSets(ctx)
		for _, o := range objects {
			drift(proxier.Drift{Object: o})
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("look at the sets: %w", err)
		}
	}
}

// lookAtSets compares the sizes of the sets with what the door believes. A family
// with a set that differs is read by the next pass, and not looked at until then.
func (d *Door) lookAtSets(ctx context.Context) (objects []string, err error) {
	if err := d.lock(ctx); err != nil {
		return nil, err
	}
	defer d.unlock()
	for _, f := range d.state.families {
		if !f.known || !f.standing {
			continue
		}
		for i := range f.sets {
			if ofInput(i) && !d.input {
				continue
			}
			set := f.set(i)
			n, err := d.kernel.sets.Size(ctx, set)
			switch want := f.sets[i].holds(); {
			case errors.Is(err, netfilter.ErrNoSet):
				objects = append(objects, fmt.Sprintf("set %s (gone)", set.Name))
			case err != nil:
				return objects, err
			case n != want:
				objects = append(objects, fmt.Sprintf("set %s (%d entries in place of %d)", set.Name, n, want))
			default:
				continue
			}
			f.known = false
		}
	}
	return objects, nil
}
