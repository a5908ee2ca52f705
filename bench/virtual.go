package main

import (
	"context"
	"errors"
	"time"
)

// The parts of the measurement of mode ipvs.
const (
	partVirtualLoad   = "ipvs load"
	partVirtualChange = "ipvs change " // with the kind
	partVirtualResync = "ipvs resync"
)

// virtual measures mode ipvs beside mode iptables with the legacy backend and beside
// kube-proxy's way, all with the same services and the same changes, in turns.
func (r *run) virtual(ctx context.Context, c cell) error {
	if r.wants("load") {
		if err := r.virtualLoads(ctx, c); err != nil {
			return err
		}
	}
	if !r.wants("session") {
		return nil
	}
	s := &session{run: r, cell: c}
	defer s.stop()
	for _, name := range []string{armTree, armKube, armRules} {
		if err := s.startVirtual(ctx, name); err != nil {
			return err
		}
	}
	r.results.Machine.Busy = max(r.results.Machine.Busy, quiet(ctx))
	for _, kind := range []string{kindWeigh, kindGrow, kindReplace, kindAdd, kindRemove, kindNone} {
		if err := s.changeVirtual(ctx, kind); err != nil {
			return err
		}
		if err := r.keep(); err != nil {
			return err
		}
	}
	answer, err := s.arm(armTree).ask(ctx, request{Op: "resync", Count: r.rounds})
	if err == nil {
		r.take(partVirtualResync, c, armTree, answer)
	}
	return err
}

// virtualLoads has vipd and kube-proxy's way load all services, in fresh namespaces and
// in turns.
func (r *run) virtualLoads(ctx context.Context, c cell) error {
	pair := []string{armTree, armKube}
	for _, turn := range turns(len(pair), r.fewer(c.size)) {
		answer, err := r.fresh(ctx, pair[turn], request{Op: "load", Size: c.size, Backend: virtual, Limit: r.limit})
		if err != nil {
			return err
		}
		r.take(partVirtualLoad, c, pair[turn], answer)
		if err := r.keep(); err != nil {
			return err
		}
		r.results.Machine.Busy = max(r.results.Machine.Busy, quiet(ctx))
	}
	return nil
}

// take notes what came of a request, or that nothing did within the limit.
func (r *run) take(part string, c cell, name string, answer reply) {
	if answer.Over {
		r.results.over(part, c, name, r.limit)
		return
	}
	r.results.take(part, c, name, answer)
}

// startVirtual starts an arm and has it load all services.
func (s *session) startVirtual(ctx context.Context, name string) error {
	a, err := startArm(name)
	if err != nil {
		return err
	}
	s.arms = append(s.arms, a)
	backend := virtual
	if name == armRules {
		backend = legacy
	}
	answer, err := s.within(ctx, a, request{Op: "load", Size: s.size, Backend: backend, Limit: s.limit})
	if err == nil && answer.Over {
		err = errors.New("its load did not end in time; give more by LIMIT")
	}
	if err != nil {
		return err
	}
	if name == armRules || !s.wants("load") { // else it was measured where nothing else stood
		s.take(partVirtualLoad, s.cell, name, answer)
	}
	return s.keep()
}

// changeVirtual has the arms make changes of a kind in turns. In kube-proxy's way all
// changes are alike and take minutes, so it makes those of one kind alone: without
// warming up, and a single one where there are many services.
func (s *session) changeVirtual(ctx context.Context, kind string) error {
	rounds := s.fewer(s.size)
	for i, turn := range turns(len(s.arms), rounds+1) {
		a, round := s.arms[turn], i/len(s.arms)
		if a.name == armKube && (kind != kindGrow || round > 0 && s.size > 1000) {
			continue
		}
		answer, err := s.within(ctx, a, request{Op: "change", Kind: kind, Count: 1, Seed: uint64(round), Limit: s.limit}) //nolint:gosec // small
		if err != nil {
			return err
		}
		if round > 0 || a.name == armKube {
			s.take(partVirtualChange+kind, s.cell, a.name, answer)
		}
	}
	return nil
}

// within asks an arm, and gives it up where it hangs.
func (s *session) within(ctx context.Context, a *arm, r request) (reply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*s.limit+time.Minute, errors.New("it hangs"))
	defer cancel()
	return a.ask(ctx, r)
}
