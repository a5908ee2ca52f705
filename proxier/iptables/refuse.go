package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	advice string
	cause  error
}

func (e *entryError) Error() string {
	return fmt.Sprintf("%s table %s: the way into our chains: %v%s", e.family, table, e.cause, e.advice)
}

// refusedEntry returns the error of a skeleton that was refused. That it cannot be
// removed is because of a rule that leads to it.
func (p *pass) refusedEntry(ctx context.Context, cause error) error {
	e := &entryError{family: p.family, cause: cause}
	if !p.skeletonWanted() {
		e.advice = "; " + p.advice(ctx, chainService)
	}
	return e
}

// advice says what to do for a chain that cannot be removed. The table is read once.
func (p *pass) advice(ctx context.Context, chain string) string {
	if p.leading == nil {
		l, err := p.kernel.Leading(ctx, table)
		if err != nil {
			l = netfilter.Leading{} // the advice is less precise then
		}
		p.leading = l
	}
	return p.leading.Advice(chain)
}

// blame finds the changes that are refused alone, and puts all others in place. err
// is what all of them together were refused with. Nothing is removed meanwhile.
//
// The tool names the line that was refused first, and that the service, which is tried
// alone to make sure: two tries a guilty one. Where the line is of no service, as with
// the legacy backend when not the tool but the kernel refuses, or the one it is of is
// innocent, halves are tried.
func (p *pass) blame(ctx context.Context, changes []change, err error) error {
	writers := p.writers(changes)
	for refused(err) {
		c, found := writers[idOf(blamedChain(err))]
		if !found {
			return p.bisect(ctx, changes)
		}
		changes = slices.DeleteFunc(slices.Clone(changes), func(other change) bool { return other == c })
		switch err = p.try(ctx, []change{c}, false); {
		case refused(err):
			err = p.condemn(ctx, c, err)
		case err == nil:
			return p.bisect(ctx, changes)
		}
		if err == nil {
			err = p.try(ctx, changes, false)
		}
	}
	return err
}

// writers returns the changes by the chains that they write.
func (p *pass) writers(changes []change) map[chainID]change {
	writers := make(map[chainID]change, len(changes))
	for _, c := range changes {
		if c.after == nil {
			continue
		}
		if chains, err := p.memory.compile(c.after); err == nil {
			for _, chain := range chains {
				writers[chain.id] = c
			}
		}
	}
	return writers
}

// blamedChain returns the chain whose line the tool named, or "".
func blamedChain(err error) string {
	var r *netfilter.RestoreError
	if !errors.As(err, &r) {
		return ""
	}
	words := strings.Fields(r.Text)
	switch {
	case len(words) > 0 && words[0][0] == ':':
		return words[0][1:]
	case len(words) > 1 && words[0] == "-A":
		return words[1]
	}
	return ""
}

// bisect tries changes, and when they are refused, halves of them, until those
// that are refused alone are found.
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
	return p.condemn(ctx, changes[0], err)
}

// condemn notes that a change was refused alone. What stood is repaired, if it does
// not stand as it should, and can be.
func (p *pass) condemn(ctx context.Context, c change, cause error) error {
	p.failed[c.key()] = failure{c.after, cause}
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
