// Package reconciler does: it turns what is accepted into what is in place, pass
// by pass.
//
//	desired -> Door.Shut -> every Proxier.Sync -> Door.Open -> Status
//
// Beside passes the connections of what drains are counted, in modes that can: a drain
// is over when the last one has ended (count.go).
//
// One goroutine owns everything a pass touches. Changes, retries, resyncs, drift,
// deadlines and reloads all ask the throttle for a pass; there is no other way to
// the kernel. A pass has no memory of how the last one ended but the caches of
// the stages, so a retry, a restart and a resync are the same code.
package reconciler

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vipd/desired"
	"vipd/discovery"
	"vipd/internal/latest"
	"vipd/lb"
	"vipd/proxier"
)

// Door is what stands before all modes: the VIPs and what guards them.
type Door interface {
	// Shut comes before the proxiers: what they rest on stands, and VIPs that go
	// are shut. A *proxier.Failed names services whose VIP this host refuses.
	Shut(ctx context.Context, want lb.Snapshot, how proxier.How) error
	// Open comes after them: VIPs that came are opened and, if how.Prune, what no
	// service of want needs any more is cleared away. A *proxier.Failed names
	// services whose VIP could not be put up.
	Open(ctx context.Context, want lb.Snapshot, how proxier.How) error
	// Plan tells what both would do.
	Plan(ctx context.Context, want lb.Snapshot, how proxier.How) ([]proxier.Change, error)
}

// Recorder takes what must outlive the process, before the kernel is touched.
type Recorder interface {
	Record(claims []desired.Claim, entries map[lb.Key][]byte) error
}

// Settings are the knobs of a running Reconciler.
type Settings struct {
	MinSyncPeriod  time.Duration // least time from the end of a pass to the next
	SyncPeriod     time.Duration // how often all of the kernel is compared
	StartupTimeout time.Duration // how long the first pass waits for the sources
	Mode           lb.Mode       // is to serve the services that name none
	Allowed        []netip.Prefix
}

// Options make a Reconciler.
type Options struct {
	Settings Settings
	Views    *latest.Cell[*discovery.View]
	Memo     *desired.Memo // of the last run, or empty
	Restored bool          // some source has an accepted set of the last run
	Door     Door
	Proxiers map[lb.Mode]proxier.Proxier
	Modes    map[lb.Mode]desired.Ability // of the Proxiers, where it is more than every mode has
	Lacks    map[lb.Mode]desired.Lack    // modes that this host cannot have, see desired.Facts
	Recorder Recorder
	Log      *slog.Logger
}

// Reconciler keeps the kernel equal to what is desired. Make one with New, then
// Run it.
type Reconciler struct {
	// Immutable.
	views    *latest.Cell[*discovery.View]
	door     Door
	proxiers map[lb.Mode]proxier.Proxier
	modes    map[lb.Mode]desired.Ability // has each of the proxiers
	lacks    map[lb.Mode]desired.Lack
	recorder Recorder
	restored bool
	log      *slog.Logger
	started  time.Time
	kick     *latest.Cell[request]
	drifts   atomic.Int32                   // told since the last pass began
	errands  chan func(ctx context.Context) // run between passes by the loop
	ended    chan struct{}                  // closed when Run returns

	// Owned by the goroutine of Run.
	throttle throttle
	waiters  []waiter
	ready    bool            // the start gate is open
	pruned   bool            // a pass that may remove has succeeded
	served   *discovery.View // of the last pass; nil: there was none
	failure  error           // how it ended
	counts   counts

	mu       sync.Mutex // guards what a pass writes and Status reads
	settings Settings
	memo     *desired.Memo
	stages   stages // the door is the stage without a name
	pass     PassStatus
	unserved int // entries, as they were told of last
	view     *discovery.View
}

// errEnded is the answer to whoever asks a Reconciler that does not run any more.
var errEnded = errors.New("vipd is stopping")

// request is what Trigger leaves for the loop.
type request struct{ reason string }

// waiter waits for the end of a pass that served some view.
type waiter struct {
	serves func(*discovery.View) bool
	done   chan error      // has room for the answer
	gone   <-chan struct{} // closed when nobody waits any more
}

// New returns a Reconciler that has not started.
func New(o Options) *Reconciler {
	r := &Reconciler{
		views: o.Views, door: o.Door, proxiers: o.Proxiers, recorder: o.Recorder, restored: o.Restored, log: o.Log,
		modes: map[lb.Mode]desired.Ability{}, lacks: o.Lacks,
		started: time.Now(), kick: latest.New(request{}), errands: make(chan func(context.Context)), ended: make(chan struct{}),
		settings: o.Settings, memo: o.Memo, stages: stages{doorStage: {}}, view: o.Views.Get(),
		counts: counts{done: make(chan tally, 1)},
	}
	for mode := range o.Proxiers {
		r.modes[mode] = o.Modes[mode]
		r.stages[mode] = &quarantine{former: o.Memo.Standing(mode)}
	}
	r.tune()
	return r
}

// tune hands the settings to the throttle.
func (r *Reconciler) tune() {
	r.throttle.min, r.throttle.resync = r.settings.MinSyncPeriod, r.settings.SyncPeriod
}

// Run makes passes until ctx ends. The kernel stays as it is.
func (r *Reconciler) Run(ctx context.Context) {
	defer close(r.ended)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer r.counts.work.Wait()
	r.watch(ctx, &watchers)

	r.throttle.synced = r.started // the first pass is asked for, not due
	r.throttle.request(r.started, true)
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer r.dismiss(errEnded)
	for {
		timer.Reset(max(0, time.Until(r.wake())))
		select {
		case <-ctx.Done():
			return
		case <-r.views.Changed():
			r.throttle.request(time.Now(), false)
		case <-r.kick.Changed():
			if reason := r.kick.Get().reason; reason != "" {
				r.log.Info("comparing with the kernel", "because", reason)
			}
			r.throttle.request(time.Now(), true)
		case errand := <-r.errands:
			errand(ctx)
		case t := <-r.counts.done:
			r.take(ctx, t)
		case <-timer.C:
			if next := r.counts.next; !next.IsZero() && !time.Now().Before(next) {
				r.count(ctx)
			}
			if now := time.Now(); r.open(now) && !now.Before(r.throttle.next()) {
				r.runPass(ctx, now)
			}
		}
	}
}

// open is the start gate: no pass before every source has spoken, unless the
// last run left a set to serve or the patience ends.
func (r *Reconciler) open(now time.Time) bool {
	if !r.ready {
		r.ready = r.restored || r.views.Get().Spoken() || !now.Before(r.started.Add(r.settings.StartupTimeout))
	}
	return r.ready
}

// wake returns when the loop has to look again.
func (r *Reconciler) wake() time.Time {
	if !r.open(time.Now()) {
		return r.started.Add(r.settings.StartupTimeout)
	}
	return earliest(r.counts.next, r.throttle.next())
}

// Trigger asks for a pass that reads the kernel. It never blocks.
func (r *Reconciler) Trigger(reason string) { r.kick.Set(request{reason}) }

// errand runs f on the loop's goroutine, between two passes. The context of f
// ends with that of either side.
func (r *Reconciler) errand(ctx context.Context, f func(context.Context)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan struct{})
	run := func(loop context.Context) {
		defer close(done)
		both, cancel := context.WithCancel(loop)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		f(both)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ended:
		return errEnded
	case r.errands <- run:
	}
	<-done
	return nil
}

// Await returns when a pass has ended that served a view of which serves is
// true, with the error of that pass. If the last pass did and nothing was asked
// for since, that is its answer.
func (r *Reconciler) Await(ctx context.Context, serves func(*discovery.View) bool) error {
	w := waiter{serves: serves, done: make(chan error, 1), gone: ctx.Done()}
	enlist := func(context.Context) {
		if r.served != nil && r.throttle.wanted.IsZero() && serves(r.served) {
			w.done <- r.failure
			return
		}
		r.waiters = append(r.waiters, w)
	}
	if err := r.errand(ctx, enlist); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-w.done:
		return err
	}
}

// answer tells the waiters whom a pass on this view served how it ended.
func (r *Reconciler) answer(view *discovery.View, err error) {
	r.served, r.failure = view, err
	r.waiters = slices.DeleteFunc(r.waiters, func(w waiter) bool {
		select {
		case <-w.gone:
			return true
		default:
		}
		if !w.serves(view) {
			return false
		}
		w.done <- err
		return true
	})
}

// dismiss tells every waiter that no pass will come.
func (r *Reconciler) dismiss(err error) {
	for _, w := range r.waiters {
		w.done <- err
	}
	r.waiters = nil
}

// Apply changes the settings. The next pass goes by them and reads the kernel:
// whoever reloads means what is in place now. A pass is asked for only if they
// bear on what is served; else the change that comes with them would have to wait
// for MinSyncPeriod after a pass for nothing.
func (r *Reconciler) Apply(ctx context.Context, s Settings) error {
	return r.errand(ctx, func(context.Context) {
		r.mu.Lock()
		before := r.settings
		r.settings = s
		r.mu.Unlock()
		r.tune()
		r.throttle.fresh = true
		if before.Mode != s.Mode || !slices.Equal(before.Allowed, s.Allowed) {
			r.throttle.request(time.Now(), true)
		}
	})
}
