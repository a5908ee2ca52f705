package reconciler

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"vipd/proxier"
)

// A watch that broke off begins again after firstRetry, doubling to lastRetry
// until it held for longer than that. What happened meanwhile is found by the pass
// that it asks for when it begins again.

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

// maxDrifts is how many drifts are logged between two passes.
const maxDrifts = 10

// drifted logs a change of ours that somebody else made, and asks for a pass.
func (r *Reconciler) drifted(d proxier.Drift) {
	level := slog.LevelWarn
	if r.drifts.Add(1) > maxDrifts {
		level = slog.LevelDebug
	}
	args := []any{"what", d.Object}
	if d.By != "" {
		args = append(args, "by", d.By)
	}
	r.log.Log(context.Background(), level, "somebody else changed what is ours; comparing", args...)
	r.kick.Set(request{})
}

func (r *Reconciler) watchOne(ctx context.Context, name string, w proxier.Watcher) {
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		began := time.Now()
		err := w.Watch(ctx, r.drifted)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastRetry {
			retry = firstRetry
		}
		r.log.Warn("the watch for foreign changes broke off; beginning again", "stage", name, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
			r.Trigger("the watch of " + name + " broke off")
		}
	}
}
