package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"vipd/lb"
)

// The canary is one more service, of one backend, which is replaced now and then
// while the other services change all the time.
const (
	canaryEvery = 11               // one change in so many is the canary's
	canaryPace  = time.Millisecond // how often its client connects
	canaryLimit = 30 * time.Second // staler than that is an error
)

// canary follows one service from its client's side.
type canary struct {
	target netip.AddrPort
	expect chan expectation
	stale  []float64
}

// expectation is a change of the canary: which backend answers from now on.
type expectation struct {
	backend netip.Addr
	since   time.Time
}

// watch connects again and again while changes wait to be seen, and notes how long
// after each the first answer came from its backend. If a newer one answers, the
// older changes were overtaken: for them, too, that is the moment. It runs in the
// namespace of the client and ends when all is seen after expect was closed.
func (c *canary) watch() error {
	for first := range c.expect {
		pending := []expectation{first}
		for len(pending) > 0 {
			time.Sleep(canaryPace)
			for len(c.expect) > 0 {
				pending = append(pending, <-c.expect)
			}
			at, err := whoAnswers(c.target)
			if err != nil {
				return err
			}
			now := time.Now()
			seen := slices.IndexFunc(pending, func(e expectation) bool { return e.backend == at }) + 1
			for _, e := range pending[:seen] {
				c.stale = append(c.stale, now.Sub(e.since).Seconds())
			}
			pending = pending[seen:]
			if len(pending) > 0 && now.Sub(pending[0].since) > canaryLimit {
				return fmt.Errorf("%s is answered by %s still, %s after it was replaced by %s", c.target, at, now.Sub(pending[0].since), pending[0].backend)
			}
		}
	}
	return nil
}

// stale makes r.Count changes, one each r.Period, with r.Limit as min_sync_period.
func (t *tree) stale(ctx context.Context, r request) (answer reply, err error) {
	if err := t.engine.reconciler.Apply(ctx, settings(lb.IPTables, r.Limit)); err != nil {
		return answer, err
	}
	spec := newSpec(len(t.catalog.services))
	spec.Backends = []lb.BackendSpec{backend(spare-1, tellPort)}
	t.catalog.services = append(slices.Clone(t.catalog.services), spec)
	if _, err := t.engine.put(ctx, t.catalog.services); err != nil {
		return answer, err
	}
	if _, err := t.engine.settle(ctx); err != nil {
		return answer, err
	}
	c := &canary{target: spec.Key.AddrPort(), expect: make(chan expectation, r.Count)}
	done := make(chan error, 1)
	go func() { done <- t.world.client.do(c.watch) }()
	start := time.Now()
	if err := t.churn(ctx, r, c.expect); err != nil {
		return answer, err
	}
	close(c.expect)
	if err := <-done; err != nil {
		return answer, err
	}
	answer.add("stale", c.stale...)
	answer.addTime("took", time.Since(start))
	late, err := t.engine.settle(ctx)
	answer.add("passes", float64(len(late)))
	return answer, err
}

// churn makes the changes at their pace. The canary is the last service.
func (t *tree) churn(ctx context.Context, r request, canary chan<- expectation) error {
	tick := time.NewTicker(r.Period)
	defer tick.Stop()
	last := len(t.catalog.services) - 1
	for i := range r.Count {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if i%canaryEvery != canaryEvery-1 {
			t.catalog.replace(i * 7919 % last)
			t.engine.publish(t.catalog.services)
			continue
		}
		s := t.catalog.replace(last)
		now := time.Now()
		t.engine.publish(t.catalog.services)
		canary <- expectation{s.Backends[0].Addr.Addr(), now}
	}
	return nil
}
