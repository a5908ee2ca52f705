package vip

import (
	"context"
	"errors"
	"slices"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// A set that is full fails the services that it has no room for, and no other. What
// stands keeps its place; of what is new those with the most ranges yield.

// fullRounds is how many services yield to the others one by one. After that all that
// a full set has no room for yield at once: each round reads the set.
const fullRounds = 4

// fillWhatFits fills a set. The services with an entry that it has no room for are
// among the unfit.
func (p *pass) fillWhatFits(ctx context.Context, f *family, i int) error {
	full, err := p.fillUntilFull(ctx, f, i)
	if full != nil {
		p.noteUnfit(p.s.users(f, i, f.sets[i].missing()), full)
	}
	return err
}

// fillOrLeaveOut fills a set that must be right before the rules are. A service that
// it has no room for is wanted as it was before, or else not at all.
func (p *pass) fillOrLeaveOut(ctx context.Context, f *family, i int) error {
	for round := 0; ; round++ {
		full, err := p.fillUntilFull(ctx, f, i)
		missing := f.sets[i].missing()
		if err != nil || len(missing) == 0 {
			return err
		}
		out := p.s.users(f, i, missing)
		if round < fullRounds && ofService(i) {
			out = []*lb.Service{p.s.greatest(out, i)}
		}
		p.noteUnfit(out, full)
		left := p.s.seen.Edit()
		for _, svc := range out {
			if old := p.before.Get(svc.Key); old != nil && old != svc {
				left.Put(old)
			} else {
				left.Delete(svc.Key)
			}
		}
		p.s.want(left.Snapshot())
		if err := p.withdraw(ctx, f, i, out); err != nil {
			return err
		}
	}
}

// fillUntilFull fills a set. full says that it has no room for what is missing then.
func (p *pass) fillUntilFull(ctx context.Context, f *family, i int) (full, err error) {
	err = p.fill(ctx, f, i)
	if !errors.Is(err, netfilter.ErrSetFull) {
		return nil, err
	}
	return err, f.sets[i].read(p.entriesOf(ctx, f.set(i))) // some of the entries were added
}

func (p *pass) noteUnfit(unfit []*lb.Service, reason error) {
	if p.unfit == nil {
		p.unfit = map[lb.Key]error{}
	}
	for _, svc := range unfit {
		p.unfit[svc.Key] = reason
	}
}

// withdraw takes out what got into a set of services that were left out.
func (p *pass) withdraw(ctx context.Context, f *family, i int, out []*lb.Service) error {
	if !ofService(i) {
		return nil
	}
	entries := slices.DeleteFunc(f.sets[i].surplus(), func(e netfilter.Entry) bool {
		return !slices.ContainsFunc(out, func(svc *lb.Service) bool { return svc.Key == keyOf(e) })
	})
	return p.delete(ctx, f, i, entries)
}

// keyOf returns the address, port and protocol of an entry: those of a service, or of
// a backend.
func keyOf(e netfilter.Entry) lb.Key {
	return lb.Key{Addr: e.Addr, Port: e.Port, Protocol: e.Protocol}
}

// greatest returns the service with most entries in a set, the first of those.
func (s *state) greatest(services []*lb.Service, i int) *lb.Service {
	size := func(svc *lb.Service) (n int) {
		entries := allowEntries(svc)
		if i == setAuto {
			entries = autoEntries(svc, s.prefixes)
		}
		for range entries {
			n++
		}
		return n
	}
	if i != setAllow && i != setAuto { // one of each
		return services[0]
	}
	return slices.MaxFunc(services, func(a, b *lb.Service) int { return size(a) - size(b) })
}

// users returns the services that want one of the entries of a set.
func (s *state) users(f *family, i int, entries []netfilter.Entry) (users []*lb.Service) {
	if len(entries) == 0 {
		return nil
	}
	at := map[lb.Key]bool{}
	for _, e := range entries {
		at[keyOf(e)] = true
	}
	uses := func(svc *lb.Service) bool { return at[svc.Key] }
	switch i {
	case setVIP:
		uses = func(svc *lb.Service) bool { return at[lb.Key{Addr: svc.Key.Addr}] }
	case setHair, setBE:
		uses = func(svc *lb.Service) bool {
			wanted := backendEntries(svc)
			if i == setHair {
				wanted = hairEntries(svc)
			}
			for e := range wanted {
				if at[keyOf(e)] {
					return true
				}
			}
			return false
		}
	}
	for svc := range s.seen.All() {
		if netfilter.FamilyOf(svc.Key.Addr) == f.Family && uses(svc) {
			users = append(users, svc)
		}
	}
	return users
}
