package netfilter

import (
	"context"
	"fmt"
	"time"
)

// The legacy tables have neither events nor generations: what the kernel says of a
// table at a glance is compared once a second. It sees what comes and goes, but not
// that a rule was replaced by one of the same size; a resync, which reads the
// tables, does.

// pollInterval is how often the legacy tables are looked at: one system call for
// each table that there is.
const pollInterval = time.Second

// legacyPoll knows how the legacy tables looked after our last write.
type legacyPoll struct {
	look func(ctx context.Context, f Family) (map[string]legacyInfo, error)
	busy chan struct{} // holds a token while the fields below are in use

	seen map[place]legacyInfo // nil: not looked yet
	late []Drift              // found before a write of ours
}

func newLegacyPoll() *legacyPoll {
	return &legacyPoll{look: lookLegacy, busy: make(chan struct{}, 1)}
}

// write makes a write of ours: what differs before it is of others, what differs
// after it is ours. Its error is that of run alone.
func (p *legacyPoll) write(ctx context.Context, run func() error) error {
	select {
	case p.busy <- struct{}{}:
		defer func() { <-p.busy }()
	case <-ctx.Done():
		return fmt.Errorf("waiting for another write: %w", context.Cause(ctx))
	}
	drifts, err := p.differences(ctx)
	if err != nil && p.seen != nil {
		drifts = []Drift{{Object: eventsLost}}
	}
	p.late = append(p.late, drifts...)
	err = run()
	if _, after := p.differences(context.WithoutCancel(ctx)); after != nil && p.seen != nil {
		p.seen = nil // what differs the next time may be ours
		p.late = append(p.late, Drift{Object: eventsLost})
	}
	return err
}

// watch calls drift for every change that somebody else made, until ctx ends.
func (p *legacyPoll) watch(ctx context.Context, drift func(Drift)) error {
	ticks := time.NewTicker(pollInterval)
	defer ticks.Stop()
	for {
		drifts, err := p.poll(ctx)
		for _, d := range drifts {
			drift(d)
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("look at the legacy tables: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
	}
}

// poll looks once, unless we are just writing.
func (p *legacyPoll) poll(ctx context.Context) (drifts []Drift, err error) {
	select {
	case p.busy <- struct{}{}:
		defer func() { <-p.busy }()
	default:
		return nil, nil
	}
	drifts, err = p.differences(ctx)
	drifts = append(p.late, drifts...)
	p.late = nil
	return drifts, err
}

// differences looks at the tables, remembers how they look, and tells which look
// otherwise than before.
func (p *legacyPoll) differences(ctx context.Context) (drifts []Drift, err error) {
	now := map[place]legacyInfo{}
	for _, f := range Families {
		tables, err := p.look(ctx, f)
		if err != nil {
			return nil, err
		}
		for name, info := range tables {
			now[place{family: f, table: name}] = info
		}
	}
	if p.seen != nil {
		for _, f := range Families {
			for _, table := range []string{"nat", "filter", "mangle"} {
				at := place{family: f, table: table}
				if now[at] != p.seen[at] {
					drifts = append(drifts, Drift{Object: at.String()})
				}
			}
		}
	}
	p.seen = now
	return drifts, nil
}

// lookLegacy asks for the tables of a family that there are. It makes none.
func lookLegacy(ctx context.Context, f Family) (map[string]legacyInfo, error) {
	names, err := legacyLooked(f)
	if err != nil {
		return nil, err
	}
	tables := map[string]legacyInfo{}
	for _, name := range names {
		if tables[name], err = readLegacyInfo(f, name); err != nil {
			return nil, err
		}
	}
	return tables, ctx.Err()
}
