package vip

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// pass is one Shut or Open, or the plan of both.
type pass struct {
	d    *Door
	s    *state
	how  proxier.How
	plan *[]proxier.Change // nil: writes are made; else they are only noted here

	sets   map[string]netfilter.SetInfo // as listed, once a pass; nil: not yet
	before lb.Snapshot                  // what was wanted before the pass
	unfit  map[lb.Key]error             // services that a set has no room for
}

// do makes a write, or notes what it would change.
func (p *pass) do(ctx context.Context, changes func() []proxier.Change, write func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.plan != nil {
		*p.plan = append(*p.plan, changes()...)
		return nil
	}
	return write()
}

// shut is Shut. It returns the services that failed, or what went wrong as a
// whole.
func (p *pass) shut(ctx context.Context, want lb.Snapshot) (map[lb.Key]error, error) {
	if err := p.readLinks(ctx); err != nil {
		return nil, err
	}
	p.before = p.s.seen
	accepted, failed := p.s.refuse(want)
	p.s.want(accepted)
	if p.s.wanted() {
		if err := p.ensureDevice(ctx); err != nil {
			p.s.linksKnown = false
			return nil, err
		}
	}
	var errs []error
	for _, f := range p.s.families {
		f.err = p.prepare(ctx, f)
		if f.err == nil {
			f.err = p.refuseUnserved(ctx, f)
		}
		if f.err == nil && p.how.Prune {
			f.err = p.takeDown(ctx, f)
		}
		if f.err == nil {
			continue
		}
		f.forget()
		f.err = fmt.Errorf("%s: %w", f.Family, f.err)
		if more := ofFamily(want, f.Family, f.err); len(more) > 0 && ctx.Err() == nil {
			failed = merged(failed, more)
		} else {
			errs = append(errs, f.err)
		}
	}
	return merged(failed, p.unfit), errors.Join(errs...)
}

// prepare reads the family if need be, and puts in place what must stand before
// a VIP of it is open.
func (p *pass) prepare(ctx context.Context, f *family) error {
	read, err := p.readFamily(ctx, f)
	if err != nil {
		return err
	}
	if !f.wanted() {
		if read {
			return p.regain(ctx, f)
		}
		return nil // leftovers, if any, go in Open
	}
	if _, err := p.tables(f); err != nil {
		return err
	}
	if err := p.checkIPv6(f); err != nil {
		return err
	}
	if err := p.arp(ctx, f); err != nil {
		return err
	}
	if !f.standing {
		if err := p.createSets(ctx, f); err != nil {
			return err
		}
	}
	for _, i := range helpers {
		if err := p.fillOrLeaveOut(ctx, f, i); err != nil {
			return err
		}
	}
	if read {
		if err := p.regain(ctx, f); err != nil {
			return err
		}
	}
	if !f.standing {
		if err := p.ensureRules(ctx, f); err != nil {
			return err
		}
		if err := p.retireArrival(ctx, f); err != nil {
			return err
		}
		if err := p.ensureAnchor(ctx, f); err != nil {
			return err
		}
		f.standing = true
	}
	return nil
}

// open is Open.
func (p *pass) open(ctx context.Context, want lb.Snapshot) (map[lb.Key]error, error) {
	if !p.s.linksKnown {
		return nil, errors.New("the door was not shut before it is opened")
	}
	p.s.want(want)
	failed := map[netip.Addr]error{}
	var errs []error
	for _, f := range p.s.families {
		if err := p.putUp(ctx, f, failed); err != nil {
			f.forget()
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			for _, a := range f.addrs.missing() { // of this family only
				failed[a] = err
			}
			continue
		}
		if f.err != nil {
			continue
		}
		if err := p.clear(ctx, f); err != nil {
			f.forget()
			errs = append(errs, fmt.Errorf("%s: %w", f.Family, err))
		}
	}
	if p.how.Prune && len(errs) == 0 {
		if err := p.pruneDevices(ctx); err != nil {
			p.s.linksKnown = false
			errs = append(errs, err)
		}
	}
	return merged(p.unfit, usersOf(want, failed)), errors.Join(errs...)
}

// putUp puts up the missing VIPs: into the set of the guard, then on the device.
// It notes those that fail for themselves.
func (p *pass) putUp(ctx context.Context, f *family, failed map[netip.Addr]error) error {
	if f.standing {
		for _, i := range lets {
			if err := p.fillWhatFits(ctx, f, i); err != nil {
				return err
			}
		}
	}
	missing := f.addrs.missing()
	if len(missing) == 0 && len(f.sets[setVIP].missing()) == 0 {
		return nil
	}
	if !f.standing { // no VIP without its guard
		err := f.err
		if err == nil {
			err = errors.New("the guard does not stand; it is put in place by the next pass")
		}
		for _, a := range missing {
			failed[a] = err
		}
		return nil
	}
	if err := p.fillWhatFits(ctx, f, setVIP); err != nil {
		return err
	}
	refused, err := p.addAddresses(ctx, f)
	maps.Copy(failed, refused)
	return err
}

// noteOpened notes that VIPs were put up, or that what guards them was not there.
func (p *pass) noteOpened(addrs iter.Seq[netip.Addr]) {
	if p.plan != nil {
		return
	}
	if p.s.opened == nil {
		p.s.opened = map[netip.Addr]struct{}{}
	}
	for a := range addrs {
		p.s.opened[a] = struct{}{}
	}
}

// endEarly ends the UDP and SCTP flows to a VIP that began before it was open, or while
// somebody had taken rules and guard away: conntrack would keep them untranslated for
// as long as their clients go on.
func (p *pass) endEarly(want lb.Snapshot) {
	opened := p.s.opened
	if p.s.opened = nil; len(opened) == 0 || p.d.evict == nil {
		return
	}
	for svc := range servicesAt(want, opened) {
		if svc.Key.Protocol != lb.TCP {
			p.d.evict.Evict(netfilter.Eviction{Key: svc.Key, Backend: svc.Key.AddrPort()})
		}
	}
}

// refuseUnserved has the guard refuse at once what a service can no longer take,
// before its rules or its virtual server go. See guard. A service that moves to a
// mode which takes its packets elsewhere is let both until Open.
func (p *pass) refuseUnserved(ctx context.Context, f *family) error {
	moves := func(e netfilter.Entry) bool { return f.sets[setServed].wanted(e) || f.sets[setOpen].wanted(e) }
	if err := p.drainBut(ctx, f, setServed, moves); err != nil {
		return err
	}
	if err := p.drainBut(ctx, f, setOpen, moves); err != nil {
		return err
	}
	return p.drain(ctx, f, setDirect)
}

// takeDown takes down the VIPs that nobody wants: off the device, then out of
// the set, so that none is ever up without its guard.
func (p *pass) takeDown(ctx context.Context, f *family) error {
	if err := p.deleteAddresses(ctx, f); err != nil {
		return err
	}
	return p.drain(ctx, f, setVIP)
}

// clear removes what no service needs any more.
func (p *pass) clear(ctx context.Context, f *family) error {
	if p.how.Prune {
		if err := p.takeDown(ctx, f); err != nil {
			return err
		}
	}
	for _, i := range lets { // what moved to another mode
		if err := p.drain(ctx, f, i); err != nil {
			return err
		}
	}
	for _, i := range slices.Backward(helpers[:]) {
		if err := p.drain(ctx, f, i); err != nil {
			return err
		}
	}
	if !p.how.Prune || f.wanted() || !f.present || f.held || f.addrs.holds > 0 {
		return nil
	}
	if err := p.removeRules(ctx, f); err != nil {
		return err
	}
	if err := p.retireArrival(ctx, f); err != nil {
		return err
	}
	if err := p.removeAnchor(ctx, f); err != nil {
		return err
	}
	return p.destroySets(ctx, f)
}

// readFamily reads what the sets of the family hold, unless that is known, and
// tells whether it did.
func (p *pass) readFamily(ctx context.Context, f *family) (bool, error) {
	if f.known && !p.how.Fresh {
		return false, nil
	}
	f.known, f.standing, f.present, f.held = false, false, false, false
	if err := p.listSets(ctx); err != nil {
		return false, err
	}
	for i := range f.sets {
		set := f.set(i)
		list := noEntries
		if there, found := p.sets[set.Name]; found {
			if there.Set != set {
				return false, fmt.Errorf("ipset %s is a %s: %w", set.Name, there.Type, netfilter.ErrSetType)
			}
			f.present = true
			list = p.entriesOf(ctx, set)
		}
		if err := f.sets[i].read(list); err != nil {
			return false, err
		}
	}
	f.known = true
	return true, nil
}

// entriesOf lists a set.
func (p *pass) entriesOf(ctx context.Context, set netfilter.Set) func(func(netfilter.Entry)) error {
	return func(each func(netfilter.Entry)) error { return p.d.kernel.sets.Entries(ctx, set, each) }
}

func (p *pass) listSets(ctx context.Context) error {
	if p.sets != nil {
		return nil
	}
	list, err := p.d.kernel.sets.List(ctx)
	if err != nil {
		return err
	}
	p.sets = map[string]netfilter.SetInfo{}
	for _, set := range list {
		p.sets[set.Name] = set
	}
	return nil
}

// ofFamily gives every service of a family one error.
func ofFamily(want lb.Snapshot, f netfilter.Family, err error) map[lb.Key]error {
	failed := map[lb.Key]error{}
	for svc := range want.All() {
		if netfilter.FamilyOf(svc.Key.Addr) == f {
			failed[svc.Key] = err
		}
	}
	return failed
}

// usersOf returns the services of the VIPs that failed.
func usersOf(want lb.Snapshot, addrs map[netip.Addr]error) map[lb.Key]error {
	failed := map[lb.Key]error{}
	for svc := range servicesAt(want, addrs) {
		failed[svc.Key] = fmt.Errorf("VIP %s: %w", svc.Key.Addr, addrs[svc.Key.Addr])
	}
	return failed
}

// servicesAt yields the services of some VIPs, in the order of their keys.
func servicesAt[V any](want lb.Snapshot, vips map[netip.Addr]V) iter.Seq[*lb.Service] {
	return func(yield func(*lb.Service) bool) {
		for _, a := range slices.SortedFunc(maps.Keys(vips), netip.Addr.Compare) {
			for svc := range want.From(lb.Key{Addr: a}) {
				if svc.Key.Addr != a {
					break
				}
				if !yield(svc) {
					return
				}
			}
		}
	}
}

func merged(a, b map[lb.Key]error) map[lb.Key]error {
	if a == nil {
		return b
	}
	maps.Copy(a, b)
	return a
}
