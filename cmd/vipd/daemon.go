package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"vipd/admin"
	"vipd/config"
	"vipd/discovery"
	"vipd/discovery/static"
	"vipd/internal/latest"
	"vipd/reconciler"
	"vipd/state"
)

// daemon is a running vipd: the parts, and the configuration in force.
type daemon struct {
	// Immutable.
	path       string
	log        *slog.Logger
	level      *slog.LevelVar
	static     *static.Source
	hub        *discovery.Hub
	host       *host
	reconciler *reconciler.Reconciler
	store      *state.Store
	reloads    *latest.Cell[struct{}] // SIGHUPs, coalesced

	reloading sync.Mutex // one reload at a time

	mu       sync.Mutex // guards what follows
	cfg      *config.Config
	revision int // counts the configurations that were in force
	status   reconciler.ConfigStatus
}

// newDaemon builds the parts from a configuration. Nothing of the host changes.
func newDaemon(ctx context.Context, path string, cfg *config.Config, log *slog.Logger, level *slog.LevelVar) (_ *daemon, err error) {
	d := &daemon{
		path: path, log: log, level: level, cfg: cfg, revision: 1, reloads: latest.New(struct{}{}),
		status: reconciler.ConfigStatus{File: path, Loaded: time.Now()},
	}
	store, entries, err := state.Open(cfg.Daemon.StateDir)
	var damaged *state.Damaged
	if errors.As(err, &damaged) {
		log.Error("starting without the memory of the last run; what the kernel has is adopted", "error", err)
	} else if err != nil {
		return nil, err
	}
	d.store = store
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	past, err := recall(entries, time.Now())
	if err != nil {
		log.Warn("some of the last run's state is not used", "error", err)
	}
	if d.host, err = newHost(ctx, cfg, newJournal(store, past.servers), log); err != nil {
		return nil, err
	}
	cfg.Services = discovery.Intern(past.accepted[static.Name], cfg.Services)
	d.static = static.New(cfg.Services, "1")
	d.hub = discovery.NewHub(log, discovery.Registration{
		Name: static.Name, Source: d.static, Policy: staticPolicy(cfg), Seed: past.accepted[static.Name],
	})
	d.reconciler = reconciler.New(reconciler.Options{
		Settings: settings(cfg), Views: d.hub.View(), Memo: past.memo, Restored: len(past.accepted[static.Name]) > 0,
		Door: d.host.door, Proxiers: d.host.proxiers, Modes: abilities(), Lacks: d.host.choice.lacks, Recorder: recorder{store}, Log: log,
	})
	return d, nil
}

// settings takes from a configuration what the reconciler wants to know.
func settings(cfg *config.Config) reconciler.Settings {
	return reconciler.Settings{
		MinSyncPeriod: cfg.Sync.MinSyncPeriod, SyncPeriod: cfg.Sync.SyncPeriod,
		StartupTimeout: cfg.Daemon.StartupTimeout, Mode: asked(cfg), Allowed: cfg.VIP.Allowed,
	}
}

// run serves until ctx ends. What stands in the kernel stays.
func (d *daemon) run(ctx context.Context) {
	var parts sync.WaitGroup
	parts.Go(func() { d.hub.Run(ctx) })
	parts.Go(func() { d.reconciler.Run(ctx) })
	parts.Go(func() { d.followReloads(ctx) })
	parts.Go(func() {
		_ = d.reconciler.Await(ctx, func(*discovery.View) bool { return true }) // told by Status
		giveBack()
	})
	parts.Wait()
}

// close frees what newDaemon took.
func (d *daemon) close() error {
	var err error
	if d.host != nil {
		err = d.host.Close()
	}
	return errors.Join(err, d.store.Close())
}

// followReloads reloads for each SIGHUP; any number that come meanwhile are one.
func (d *daemon) followReloads(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.reloads.Changed():
			_ = d.Reload(ctx) // logged, and shown in Status
		}
	}
}

// Reload reads the configuration again and has it served. On any error before
// that the old one stays in force, whole.
func (d *daemon) Reload(ctx context.Context) error {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	defer giveBack()
	cfg, err := d.preflight(ctx)
	if err != nil {
		err = fmt.Errorf("reload refused, the configuration of %s stays in force:\n%w", d.loaded().Format(time.DateTime), err)
		d.log.Error("reload refused; the old configuration stays in force", "error", flat(err))
		d.mu.Lock()
		d.status.Error = err.Error()
		d.mu.Unlock()
		return err
	}
	cfg.Services = discovery.Intern(d.config().Services, cfg.Services) // in memory once
	revision := d.swap(cfg)
	d.log.Info("configuration reloaded", "file", d.path, "services", len(cfg.Services))
	d.hub.SetPolicy(static.Name, staticPolicy(cfg))
	// The configuration is in force: that who asked for it went away must not keep
	// its services back.
	if err := d.reconciler.Apply(context.WithoutCancel(ctx), settings(cfg)); err != nil {
		return err
	}
	d.static.Update(cfg.Services, revision)
	err = d.reconciler.Await(ctx, func(v *discovery.View) bool {
		s, found := v.Source(static.Name)
		return found && s.Revision == revision
	})
	if err != nil {
		return fmt.Errorf("the new configuration is in force, but its first pass failed and is tried again: %w", err)
	}
	return nil
}

// preflight reads, validates and plans the configuration on disk, and writes
// nothing.
func (d *daemon) preflight(ctx context.Context) (*config.Config, error) {
	cfg, err := config.Load(ctx, d.path, modes())
	if err != nil {
		return nil, err
	}
	if keys := config.RestartKeys(d.config(), cfg); len(keys) > 0 {
		return nil, fmt.Errorf("%s cannot change while vipd runs; restart it (connections live on) or change back", strings.Join(keys, ", "))
	}
	if _, err := d.planConfig(ctx, cfg); err != nil {
		return nil, fmt.Errorf("the host would not take it: %w", err)
	}
	return cfg, nil
}

// Plan tells what the given files would change.
func (d *daemon) Plan(ctx context.Context, files []config.File) (admin.Plan, error) {
	defer giveBack()
	cfg, err := config.Parse(files, modes())
	if err != nil {
		return admin.Plan{}, err
	}
	planned, err := d.planConfig(ctx, cfg)
	return admin.NewPlan(planned), err
}

func (d *daemon) planConfig(ctx context.Context, cfg *config.Config) (reconciler.Planned, error) {
	if err := d.host.probe(ctx, d.log); err != nil {
		return reconciler.Planned{}, err
	}
	view := d.hub.View().Get().With(static.Name, staticSet(cfg, ""), staticPolicy(cfg), time.Now())
	return d.reconciler.Plan(ctx, view, settings(cfg))
}

// swap puts a configuration in force and returns its revision.
func (d *daemon) swap(cfg *config.Config) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cfg = cfg
	d.revision++
	d.status = reconciler.ConfigStatus{File: d.path, Loaded: time.Now()}
	d.level.Set(cfg.Daemon.LogLevel)
	for _, w := range cfg.Warnings {
		d.log.Warn(w)
	}
	return strconv.Itoa(d.revision)
}

func (d *daemon) config() *config.Config {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cfg
}

func (d *daemon) loaded() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status.Loaded
}

// Status tells what the reconciler knows, and what hinders service on this host.
func (d *daemon) Status(ctx context.Context) (reconciler.Status, iter.Seq[reconciler.ServiceStatus]) {
	s, services := d.reconciler.Report()
	d.host.describe(ctx, &s)
	d.mu.Lock()
	defer d.mu.Unlock()
	s.Config = d.status
	return s, services
}

// flat makes one line of an error of several.
func flat(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
