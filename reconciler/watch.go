package reconciler

import (
	"context"
	"sync"
	"time"

	"vipd/proxier"
)

// watchRetry is how long a watch that broke off waits before it begins again.
// What happens meanwhile is found by the pass asked for at its start.
const watchRetry = time.Second

// watch runs the watch of every stage that has one, until ctx ends.
func (r *Reconciler) watch(ctx context.Context, group *sync.WaitGroup) {
	stages := map[string]any{"door": r.door}
	for mode, p := range r.proxiers {
		stages[string(mode)] = p
	}
	for name, stage := range stages {
		if w, ok := stage.(proxier.Watcher); ok {
			group.Go(func() { r.watchOne(ctx, name, w) })
		}
	}
}

func (r *Reconciler) watchOne(ctx context.Context, name string, w proxier.Watcher) {
	for {
		err := w.Watch(ctx, func(d proxier.Drift) {
			reason := d.Object
			if d.By != "" {
				reason += " by " + d.By
			}
			r.Trigger(reason)
		})
		if ctx.Err() != nil {
			return
		}
		r.log.Warn("the watch for foreign changes broke off; beginning again", "stage", name, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchRetry):
			r.Trigger("the watch of " + name + " broke off")
		}
	}
}
