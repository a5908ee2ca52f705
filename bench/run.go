package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// The numbers of connections and changes of a turn.
const (
	connectCount = 2000
	tracedCount  = 3
	staleCount   = 3000
	stalePeriod  = 10 * time.Millisecond
)

// smallest is a number of services for the latency of connections alone, to show
// what of it grows.
const smallest = 10

// run carries out a plan. What fails is told and left out; the rest is measured.
type run struct {
	plan
	results results
}

func (r *run) all(ctx context.Context) error {
	var errs []error
	try := func(what string, f func() error) {
		if ctx.Err() != nil {
			return
		}
		busy := quiet(ctx)
		r.results.Machine.Busy = max(r.results.Machine.Busy, busy)
		fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), what)
		if err := f(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
			fmt.Fprintf(os.Stderr, "          %v\n", err)
		}
	}
	for _, backend := range r.backends {
		if backend == virtual {
			for _, size := range r.sizes {
				c := cell{virtual, size}
				try(c.String(), func() error { return r.virtual(ctx, c) })
			}
			continue
		}
		if r.wants("session") {
			try(fmt.Sprintf("connect, %d services, %s", smallest, backend), func() error { return r.session(ctx, cell{backend, smallest}, false) })
		}
		for _, size := range r.sizes {
			c := cell{backend, size}
			if r.leftOut(c) {
				r.results.LeftOut = append(r.results.LeftOut, c.String())
				continue
			}
			if r.wants("load") {
				try("load, "+c.String(), func() error { return r.load(ctx, c) })
			}
			if r.wants("session") {
				try("change and connect, "+c.String(), func() error { return r.session(ctx, c, true) })
			}
		}
	}
	if slices.Equal(r.backends, []string{virtual}) {
		return errors.Join(append(errs, ctx.Err())...)
	}
	if r.wants("stale") {
		try(fmt.Sprintf("staleness, %d services", r.stale), func() error { return r.staleness(ctx) })
	}
	for _, size := range r.sizes {
		if r.wants("memory") {
			try(fmt.Sprintf("memory, %d services", size), func() error { return r.memory(ctx, cell{nft, size}) })
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// keep saves what was measured so far: a run may take hours, and be stopped.
func (r *run) keep() error { return r.results.save(r.out + ".json") }

// cell is where in the table something belongs.
type cell struct {
	backend string
	size    int
}

func (c cell) String() string { return fmt.Sprintf("%d services, %s", c.size, c.backend) }

// fewer returns how many rounds a size gets: what takes long is measured less often.
func (r *run) fewer(size int) int {
	switch {
	case size <= 1000:
		return r.rounds
	case size <= 10000:
		return max(3, r.rounds/2)
	}
	return 2
}

// leftOut tells whether a cell is no part of a full run: the legacy backend copies the
// whole table for each change, so that there is nothing to learn from it but patience.
// Asked for by its size it is measured.
func (r *run) leftOut(c cell) bool { return r.full && c.backend == legacy && c.size > 10000 }

// load starts each arm anew in every round and times how long it takes to have all
// services in place.
func (r *run) load(ctx context.Context, c cell) error {
	arms := []string{armTree, armLinear}
	dead := map[string]bool{} // did not end in time once: once is enough
	warmup := 0
	if c.size <= 1000 {
		warmup = len(arms)
	}
	for i, turn := range turns(len(arms), r.fewer(c.size)+warmup/len(arms)) {
		name := arms[turn]
		if dead[name] {
			continue
		}
		answer, err := r.fresh(ctx, name, request{Op: "load", Size: c.size, Backend: c.backend, Limit: r.limit})
		if err != nil {
			return err
		}
		if answer.Over {
			dead[name] = true
			r.results.over("load", c, name, r.limit)
			continue
		}
		if i >= warmup {
			r.results.take("load", c, name, answer)
		}
		r.results.Machine.Busy = max(r.results.Machine.Busy, quiet(ctx))
	}
	return nil
}

// fresh asks a new arm one thing.
func (r *run) fresh(ctx context.Context, name string, what request) (reply, error) {
	a, err := startArm(name)
	if err != nil {
		return reply{}, err
	}
	defer a.stop()
	within, cancel := context.WithTimeoutCause(ctx, 2*r.limit+time.Minute, errors.New("it hangs"))
	defer cancel()
	return a.ask(within, what)
}

// staleness has vipd alone make changes without end and looks how late they are.
func (r *run) staleness(ctx context.Context) error {
	for _, period := range []time.Duration{quickest, time.Second} {
		a, err := startArm(armTree)
		if err != nil {
			return err
		}
		_, err = a.ask(ctx, request{Op: "load", Size: r.stale, Backend: nft, Limit: r.limit})
		var answer reply
		if err == nil {
			answer, err = a.ask(ctx, request{Op: "stale", Count: staleCount, Period: stalePeriod, Limit: period})
		}
		a.stop()
		if err != nil {
			return err
		}
		r.results.take("stale "+period.String(), cell{nft, r.stale}, armTree, answer)
	}
	return nil
}

// memory starts the program itself.
func (r *run) memory(ctx context.Context, c cell) error {
	answer, err := r.fresh(ctx, armDaemon, request{Op: "start", Size: c.size})
	if err == nil {
		r.results.take("memory", c, armDaemon, answer)
	}
	return err
}
