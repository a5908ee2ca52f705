package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"vipd/desired"
	"vipd/discovery"
	"vipd/discovery/static"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
	"vipd/reconciler"
	"vipd/state"
	"vipd/vip"
)

// engine is vipd without its file and its socket: the source, the hub, the
// reconciler, the door and the proxier, wired as cmd/vipd does. Its services come
// from memory, so that what is timed begins with the change and not with the
// reading of a file.
type engine struct {
	source     *static.Source
	reconciler *reconciler.Reconciler
	stages     *stages
	passes     chan pass
	revision   int
	close      func() error
}

// pass is what one pass took.
type pass struct {
	shut, sync, open time.Duration
	cpu              time.Duration // of the process itself within sync: not the tool's
	messages         uint64        // of the mode to the kernel within sync, where it counts them
	ended            time.Time
	fresh            bool
	err              error
}

// newEngine makes an engine with these services and starts it: in mode ipvs if that is
// the backend, else in mode iptables with the backend. minPeriod is the least pause
// between passes.
func newEngine(ctx context.Context, backend string, services []*lb.Spec, minPeriod time.Duration) (_ *engine, err error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	e := &engine{passes: make(chan pass, 4096), source: static.New(services, "0")}
	store, _, err := state.Open("/run/vipd-state")
	if err != nil {
		return nil, err
	}
	evictor := netfilter.NewEvictor(netfilter.DefaultMark, log)
	ctx, stop := context.WithCancel(ctx)
	var parts sync.WaitGroup
	e.close = func() error {
		stop()
		parts.Wait()
		return errors.Join(evictor.Close(), store.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	tools, err := netfilter.FindTools(ctx, netfilter.ToolOptions{Backend: doorBackend(backend)})
	if err != nil {
		return nil, err
	}
	mode, serves, err := newMode(ctx, backend, tools, evictor, store, log)
	if err != nil {
		return nil, err
	}
	door, err := vip.New(vip.Options{Tools: tools, Evict: evictor, Input: mode == lb.IPVS, Log: log})
	if err != nil {
		return nil, err
	}
	hub := discovery.NewHub(log, discovery.Registration{Name: static.Name, Source: e.source, Policy: discovery.Policy{Trusted: true}})
	e.stages = &stages{to: e.passes}
	e.reconciler = reconciler.New(reconciler.Options{
		Settings: settings(mode, minPeriod), Views: hub.View(), Memo: desired.NewMemo(),
		Door: &timedDoor{door, e.stages}, Proxiers: map[lb.Mode]proxier.Proxier{mode: &timedProxier{serves, e.stages}},
		Recorder: recorder{store}, Log: log,
	})
	parts.Go(func() { hub.Run(ctx) })
	parts.Go(func() { e.reconciler.Run(ctx) })
	return e, nil
}

// settings are those of the daemon, but that nothing is compared by itself: what
// is timed is asked for.
func settings(mode lb.Mode, minPeriod time.Duration) reconciler.Settings {
	return reconciler.Settings{
		MinSyncPeriod: minPeriod, SyncPeriod: 24 * time.Hour, StartupTimeout: time.Minute,
		Mode: mode, Allowed: []netip.Prefix{vipNet},
	}
}

// publish hands over a new version of the services and returns its revision.
func (e *engine) publish(services []*lb.Spec) string {
	e.revision++
	revision := strconv.Itoa(e.revision)
	e.source.Update(services, revision)
	return revision
}

// put publishes services and returns the pass that put them in place.
func (e *engine) put(ctx context.Context, services []*lb.Spec) (pass, error) {
	return e.await(ctx, e.publish(services))
}

// await returns the first pass since the last settle, which put a revision in
// place.
func (e *engine) await(ctx context.Context, revision string) (pass, error) {
	err := e.reconciler.Await(ctx, func(v *discovery.View) bool {
		s, found := v.Source(static.Name)
		return found && s.Revision == revision
	})
	if err != nil {
		return pass{}, err
	}
	select {
	case p := <-e.passes:
		return p, p.err
	default:
		return pass{}, errors.New("served without a pass")
	}
}

// settle waits until no pass is under way and none has been for longer than the
// throttle holds one back, and returns those that nobody waited for: what follows
// is then the first change after quiet.
func (e *engine) settle(ctx context.Context) (late []pass, err error) {
	for quiet := 0; quiet < 4; quiet++ {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(quickest):
		}
		for len(e.passes) > 0 {
			late = append(late, <-e.passes)
			quiet = 0
		}
		if e.stages.running.Load() {
			quiet = 0
		}
	}
	return late, nil
}

// stages gathers what the stages of a pass took. The goroutine of the reconciler
// alone uses it.
type stages struct {
	pass
	to      chan<- pass
	running atomic.Bool // between Shut and Open; for others
}

// timedDoor and timedProxier are what they hold, with a clock.
type timedDoor struct {
	*vip.Door
	*stages
}

func (d *timedDoor) Shut(ctx context.Context, want lb.Snapshot, how proxier.How) error {
	d.running.Store(true)
	start := time.Now()
	err := d.Door.Shut(ctx, want, how)
	d.pass = pass{shut: time.Since(start), fresh: how.Fresh, err: err}
	return err
}

func (d *timedDoor) Open(ctx context.Context, want lb.Snapshot, how proxier.How) error {
	start := time.Now()
	err := d.Door.Open(ctx, want, how)
	d.ended = time.Now()
	d.open, d.err = d.ended.Sub(start), errors.Join(d.err, err)
	select {
	case d.to <- d.pass:
	default: // nobody counts
	}
	d.running.Store(false)
	return err
}

type timedProxier struct {
	serving
	*stages
}

func (p *timedProxier) Sync(ctx context.Context, want lb.Snapshot, how proxier.How) error {
	start, cpu, messages := time.Now(), ownCPU(), p.messages()
	err := p.serving.Sync(ctx, want, how)
	p.sync, p.cpu, p.err = time.Since(start), ownCPU()-cpu, errors.Join(p.err, err)
	p.pass.messages = p.messages() - messages
	return err
}

// recorder writes to the log of state what the daemon would.
type recorder struct{ store *state.Store }

func (r recorder) Record(claims []desired.Claim, entries map[lb.Key][]byte) error {
	var changes []state.Change
	for _, c := range claims {
		change := state.Change{Bucket: "accepted", Key: c.Source + " " + c.Key.String()}
		if c.Spec != nil {
			raw, err := json.Marshal(c.Spec)
			if err != nil {
				return err
			}
			change.Value = raw
		}
		changes = append(changes, change)
	}
	for k, raw := range entries {
		changes = append(changes, state.Change{Bucket: "entry", Key: k.String(), Value: raw})
	}
	return r.store.Append(changes...)
}
