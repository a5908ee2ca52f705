package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// loadPatience is how long the load of an arm may take where it is not measured.
const loadPatience = 10 * time.Minute

// session is arms that hold the same services side by side.
type session struct {
	*run
	cell
	arms []*arm
}

// session loads all arms once and measures everything that needs them loaded;
// connections alone, if not whole.
func (r *run) session(ctx context.Context, c cell, whole bool) error {
	s := &session{run: r, cell: c}
	defer s.stop()
	for _, name := range []string{armTree, armLinear, armDirect} {
		if err := s.start(ctx, name); err != nil {
			return err
		}
	}
	r.results.Machine.Busy = max(r.results.Machine.Busy, quiet(ctx))
	if err := s.connect(ctx); err != nil || !whole {
		return err
	}
	for _, kind := range []string{kindReplace, kindAdd, kindRemove} {
		if err := s.change(ctx, kind); err != nil {
			return err
		}
	}
	return errors.Join(s.vipdAlone(ctx), s.shapes(ctx))
}

// start starts an arm and loads it. A linear list that cannot be loaded even in
// pieces is left out.
func (s *session) start(ctx context.Context, name string) error {
	a, err := startArm(name)
	if err != nil {
		return err
	}
	limit := min(5*s.limit, loadPatience)
	late := fmt.Errorf("not loaded in %s, in pieces", limit)
	within, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	_, err = a.ask(within, request{Op: "load", Size: s.size, Backend: s.backend, Pieces: true})
	if err != nil {
		a.stop()
		if errors.Is(err, late) && name == armLinear {
			s.results.over("load in pieces", s.cell, name, limit)
			return nil
		}
		return err
	}
	s.arms = append(s.arms, a)
	return nil
}

func (s *session) stop() {
	for _, a := range s.arms {
		a.stop()
	}
}

// arm returns the arm of that name, or nil.
func (s *session) arm(name string) *arm {
	i := slices.IndexFunc(s.arms, func(a *arm) bool { return a.name == name })
	if i < 0 {
		return nil
	}
	return s.arms[i]
}

// connect has the clients of all arms connect in turns, to the same services.
func (s *session) connect(ctx context.Context) error {
	for i, turn := range turns(len(s.arms), s.rounds+1) {
		a, round := s.arms[turn], i/len(s.arms)
		answer, err := a.ask(ctx, request{Op: "connect", Size: s.size, Count: connectCount, Seed: uint64(round)}) //nolint:gosec // small
		if err != nil {
			return err
		}
		if round > 0 {
			s.results.take("connect", s.cell, a.name, answer)
		}
	}
	return nil
}

// change has vipd and the linear list make the same changes in turns.
func (s *session) change(ctx context.Context, kind string) error {
	pair := []*arm{s.arm(armTree), s.arm(armLinear)}
	rounds := s.rounds
	if kind == kindReplace {
		rounds = 2 * s.rounds
	}
	for i, turn := range turns(len(pair), rounds+1) {
		a, round := pair[turn], i/len(pair)
		if a == nil {
			continue
		}
		what := request{Op: "change", Kind: kind, Count: 1, Seed: uint64(round), Limit: s.limit} //nolint:gosec // small
		within, cancel := context.WithTimeoutCause(ctx, s.limit+time.Minute, errors.New("it hangs"))
		answer, err := a.ask(within, what)
		cancel()
		if err != nil {
			return err
		}
		if answer.Over {
			s.results.over("change "+kind, s.cell, a.name, s.limit)
			pair[turn] = nil
			continue
		}
		if round > 0 {
			s.results.take("change "+kind, s.cell, a.name, answer)
		}
	}
	return nil
}

// vipdAlone measures what has no counterpart, and what is counted.
func (s *session) vipdAlone(ctx context.Context) error {
	a := s.arm(armTree)
	for part, what := range map[string]request{
		"no-op":       {Op: "change", Kind: kindNone, Count: s.rounds},
		"resync":      {Op: "resync", Count: s.rounds},
		"own replace": {Op: "count", Kind: kindReplace, Count: s.rounds},
		"own add":     {Op: "count", Kind: kindAdd, Count: s.rounds},
		"own remove":  {Op: "count", Kind: kindRemove, Count: s.rounds},
		"own no-op":   {Op: "count", Kind: kindNone, Count: s.rounds},
		"calls":       {Op: "trace", Kind: kindReplace, Count: tracedCount},
		"calls no-op": {Op: "trace", Kind: kindNone, Count: tracedCount},
	} {
		answer, err := a.ask(ctx, what)
		if err != nil {
			return err
		}
		s.results.take(part, s.cell, a.name, answer)
	}
	return nil
}

// shapes reads the rules of both sides back and counts.
func (s *session) shapes(ctx context.Context) error {
	for _, a := range s.arms {
		if a.name == armDirect {
			continue
		}
		answer, err := a.ask(ctx, request{Op: "shape"})
		if err != nil {
			return err
		}
		s.results.take("shape", s.cell, a.name, answer)
	}
	return nil
}
