package main

import (
	"context"
	"fmt"
	"runtime"
	"syscall"
	"time"
)

// quickest is the least min_sync_period that the configuration takes.
const quickest = 10 * time.Millisecond

// tree is the arm that has vipd.
type tree struct {
	world   *world
	backend string
	engine  *engine
	catalog *catalog
}

func (t *tree) do(ctx context.Context, r request) (reply, error) {
	switch r.Op {
	case "load":
		return t.load(ctx, r)
	case "change":
		return t.repeat(ctx, r, func(i int, answer *reply) error { return t.change(ctx, r.Kind, i, answer) })
	case "count":
		return t.repeat(ctx, r, func(i int, answer *reply) error { return t.count(ctx, r.Kind, i, answer) })
	case "trace":
		return t.trace(ctx, r)
	case "resync":
		return t.repeat(ctx, r, func(_ int, answer *reply) error { return t.resync(ctx, answer) })
	case "connect":
		var answer reply
		return answer, t.world.client.connects(&answer, r.Count, someVIP(len(t.catalog.services), r.Seed))
	case "shape":
		return shape(ctx, t.backend, "VIPD-SVC", len(t.catalog.services))
	case "stale":
		return t.stale(ctx, r)
	}
	return reply{}, fmt.Errorf("the arm of vipd does not know %q", r.Op)
}

// load starts vipd in an empty namespace and waits for its first pass.
func (t *tree) load(ctx context.Context, r request) (answer reply, err error) {
	if t.world, err = newWorld(); err != nil {
		return answer, err
	}
	err = t.world.backend.listen(backendPort, false)
	if err == nil {
		err = t.world.backend.listen(tellPort, true)
	}
	if err != nil {
		return answer, err
	}
	t.backend, t.catalog = r.Backend, newCatalog(r.Size)
	services := t.catalog.services
	start := time.Now()
	if t.engine, err = newEngine(ctx, t.backend, services, quickest); err != nil {
		return answer, err
	}
	p, err := t.engine.await(ctx, "0")
	if err != nil {
		return answer, err
	}
	answer.addTime("total", p.ended.Sub(start))
	answer.addTime("sync", p.sync)
	answer.addTime("door", p.shut+p.open)
	answer.add("messages", float64(p.messages))
	_, err = t.engine.settle(ctx)
	return answer, err
}

// repeat does something count times, each time after quiet.
func (t *tree) repeat(ctx context.Context, r request, once func(i int, answer *reply) error) (answer reply, err error) {
	for i := range r.Count {
		if _, err := t.engine.settle(ctx); err != nil {
			return answer, err
		}
		if err := once(int(r.Seed)+i, &answer); err != nil { //nolint:gosec // a small number
			return answer, fmt.Errorf("%s %s %d: %w", r.Op, r.Kind, i, err)
		}
	}
	_, err = t.engine.settle(ctx)
	return answer, err
}

// change makes one change and times it: from its publication to the end of the
// pass, when the kernel has answered.
func (t *tree) change(ctx context.Context, kind string, at int, answer *reply) error {
	services := t.catalog.alter(kind, at)
	start, tools := time.Now(), toolCPU()
	p, err := t.engine.put(ctx, services)
	if err != nil {
		return err
	}
	answer.addTime("total", p.ended.Sub(start))
	answer.addTime("own", p.ended.Sub(start)-p.sync+p.cpu) // all but the waiting for the tool
	answer.addTime("sync", p.sync)
	answer.addTime("door", p.shut+p.open)
	answer.addTime("decide", p.ended.Sub(start)-p.shut-p.sync-p.open)
	answer.addTime("sync_cpu", p.cpu)
	answer.add("messages", float64(p.messages))
	answer.addTime("tool_cpu", toolCPU()-tools)
	late, err := t.engine.settle(ctx)
	answer.add("later_passes", float64(len(late)))
	return err
}

// count makes one change and counts what it allocated, all of it: hub, decision,
// record, door and proxier.
func (t *tree) count(ctx context.Context, kind string, at int, answer *reply) error {
	services := t.catalog.alter(kind, at)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := t.engine.put(ctx, services)
	runtime.ReadMemStats(&after)
	answer.add("mallocs", float64(after.Mallocs-before.Mallocs))
	answer.add("alloc_bytes", float64(after.TotalAlloc-before.TotalAlloc))
	return err
}

// resync has all of the kernel compared, and nothing is different.
func (t *tree) resync(ctx context.Context, answer *reply) error {
	start := time.Now()
	t.engine.reconciler.Trigger("the benchmark asks")
	select {
	case p := <-t.engine.passes:
		answer.addTime("total", p.ended.Sub(start))
		answer.add("messages", float64(p.messages))
		if !p.fresh {
			return fmt.Errorf("the pass read nothing")
		}
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ownCPU returns the processor time that this process used so far, toolCPU that of
// the programs which it ran and which have ended.
func ownCPU() time.Duration  { return usage(syscall.RUSAGE_SELF) }
func toolCPU() time.Duration { return usage(syscall.RUSAGE_CHILDREN) }

func usage(who int) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
