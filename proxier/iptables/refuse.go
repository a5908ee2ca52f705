package iptables

import (
	"context"
	"errors"
	"fmt"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// failure is a version of a service that the kernel refused; nil: its removal.
type failure struct {
	service *lb.Service
	err     error
}

// refused reports whether an error says that a commit was not applied.
func refused(err error) bool {
	var r *netfilter.RestoreError
	return errors.As(err, &r)
}

// entryError is a refused skeleton. No service is guilty of that and nothing is to
// be bisected, so it does not unwrap to the RestoreError.
type entryError struct {
	family netfilter.Family
	cause  error
}

func (e *entryError) Error() string {
	return fmt.Sprintf("%s table %s: the way into our chains: %v", e.family, table, e.cause)
}

// bisect tries changes, and when they are refused, halves of them, until those
// that are refused alone are found. Nothing is removed meanwhile.
func (p *pass) bisect(ctx context.Context, changes []change) error {
	err := p.try(ctx, changes, false)
	if !refused(err) || len(changes) == 0 {
		return err
	}
	if len(changes) > 1 {
		half := len(changes) / 2
		if err := p.bisect(ctx, changes[:half]); err != nil {
			return err
		}
		return p.bisect(ctx, changes[half:])
	}
	c := changes[0]
	p.failed[c.key()] = failure{c.after, err}
	if before := c.before; before != nil && before != c.after && p.damaged(before) {
		if err := p.try(ctx, []change{{before, before}}, false); !refused(err) {
			return err
		}
	}
	return nil
}

// remember notes what came of a pass. A version that was refused keeps no slots, and
// an applied one that was damaged and could not be repaired is broken from now on.
func (p *pass) remember() {
	m := p.memory
	m.applied, m.failed = p.target(), p.failed
	m.broken = map[lb.Key]error{}
	for k, f := range p.failed {
		s := m.applied.Get(k)
		if s == nil {
			delete(m.slots, k)
		} else {
			if chains, err := m.compile(s); err == nil && !m.matches(chains) {
				m.broken[k] = f.err
			}
			m.settle(change{s, s})
		}
		delete(m.compiled, k) // it may name slots that are free now
	}
	var unknown []lb.Key
	for _, k := range m.strays {
		if m.applied.Get(k) == nil {
			unknown = append(unknown, k)
		}
	}
	m.strays = unknown
}
