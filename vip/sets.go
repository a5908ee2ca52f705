package vip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"vipd/internal/netfilter"
	"vipd/proxier"
)

// createSets makes the sets of the family that are not there. One that somebody else
// made otherwise, or an earlier version, is made anew under the rules that name it.
func (p *pass) createSets(ctx context.Context, f *family) error {
	if err := p.listSets(ctx); err != nil {
		return err
	}
	for i := range f.sets {
		set := f.set(i)
		there, found := p.sets[set.Name]
		if found && there.Odd == "" || !found && ofInput(i) && !p.d.input {
			continue
		}
		detail, write := fmt.Sprintf("%s %s", set.Type, set.Family), func() error { return p.d.kernel.sets.Create(ctx, set) }
		if found {
			detail += ", in place of one made with " + there.Odd
			write = func() error {
				p.d.log.Warn("a set is not as vipd makes it; it is made anew with what it holds", "set", set.Name, "made with", there.Odd)
				return p.d.kernel.sets.Replace(ctx, set, f.sets[i].allHeld())
			}
		}
		err := p.do(ctx, func() []proxier.Change {
			return []proxier.Change{{Op: proxier.Add, Object: "set " + set.Name, Detail: detail}}
		}, write)
		if err != nil {
			return err
		}
		p.sets[set.Name] = netfilter.SetInfo{Set: set}
	}
	f.present = true
	return nil
}

// fill adds what a set of the family lacks.
func (p *pass) fill(ctx context.Context, f *family, i int) error {
	return p.add(ctx, f, i, f.sets[i].missing())
}

// regain puts VIPs that are up, wanted or not, back into the set of the guard, if
// somebody took them out. It looks at all of them: for a family just read.
func (p *pass) regain(ctx context.Context, f *family) error {
	if !f.present {
		return nil // without its set the guard is made anew, before any VIP is put up
	}
	var bare []netip.Addr
	var lost []netfilter.Entry
	for a := range f.addrs.allHeld() {
		if e := (netfilter.Entry{Addr: a}); !f.sets[setVIP].held(e) {
			bare, lost = append(bare, a), append(lost, e)
		}
	}
	p.noteOpened(slices.Values(bare))
	return p.add(ctx, f, setVIP, lost)
}

func (p *pass) add(ctx context.Context, f *family, i int, entries []netfilter.Entry) error {
	set := f.set(i)
	if len(entries) == 0 {
		return nil
	}
	err := p.do(ctx, entryChanges(proxier.Add, set, i, entries), func() error { return p.d.kernel.sets.Add(ctx, set, entries) })
	if err != nil {
		return err
	}
	for _, e := range entries {
		f.sets[i].added(e)
	}
	return nil
}

// drain removes what a set of the family holds and nobody wants. Before anything
// may be removed that is only what a service that is wanted has no use for any
// more: its ranges are narrowed, say.
func (p *pass) drain(ctx context.Context, f *family, i int) error {
	return p.drainBut(ctx, f, i, func(netfilter.Entry) bool { return false })
}

// drainBut is drain, but for the entries that are to stay for now.
func (p *pass) drainBut(ctx context.Context, f *family, i int, stays func(netfilter.Entry) bool) error {
	entries := slices.DeleteFunc(f.sets[i].surplus(), stays)
	if !p.how.Prune {
		entries = slices.DeleteFunc(entries, func(e netfilter.Entry) bool {
			return !ofService(i) || p.s.seen.Get(keyOf(e)) == nil
		})
	}
	return p.delete(ctx, f, i, entries)
}

func (p *pass) delete(ctx context.Context, f *family, i int, entries []netfilter.Entry) error {
	set := f.set(i)
	if len(entries) == 0 {
		return nil
	}
	err := p.do(ctx, entryChanges(proxier.Remove, set, i, entries), func() error { return p.d.kernel.sets.Delete(ctx, set, entries) })
	if err != nil {
		return err
	}
	for _, e := range entries {
		f.sets[i].removed(e)
	}
	return nil
}

func entryChanges(op proxier.Op, set netfilter.Set, i int, entries []netfilter.Entry) func() []proxier.Change {
	return func() []proxier.Change {
		changes := make([]proxier.Change, len(entries))
		for j, e := range entries {
			changes[j] = proxier.Change{Op: op, Object: objectOf(set, i, e), Detail: "set " + set.Name + " " + e.String()}
		}
		return changes
	}
}

// objectOf says to what an entry belongs, as people look for it in a plan.
func objectOf(set netfilter.Set, i int, e netfilter.Entry) string {
	if i == setVIP {
		return "VIP " + e.Addr.String()
	}
	if ofService(i) {
		return "service " + keyOf(e).String()
	}
	return "set " + set.Name
}

// destroySets removes the sets of the family. One that a rule of somebody else
// names stays, until the next resync at least.
func (p *pass) destroySets(ctx context.Context, f *family) error {
	if err := p.listSets(ctx); err != nil {
		return err
	}
	for i := range f.sets {
		if err := p.destroySet(ctx, f, i); err != nil {
			return err
		}
	}
	f.present = f.held
	return nil
}

func (p *pass) destroySet(ctx context.Context, f *family, i int) error {
	set := f.set(i)
	if _, found := p.sets[set.Name]; !found {
		return nil
	}
	err := p.do(ctx, func() []proxier.Change {
		return []proxier.Change{{Op: proxier.Remove, Object: "set " + set.Name, Detail: fmt.Sprintf("%s %s", set.Type, set.Family)}}
	}, func() error { return p.d.kernel.sets.Destroy(ctx, set.Name) })
	if errors.Is(err, netfilter.ErrSetInUse) {
		f.held = true
		p.d.log.Debug("set stays", "set", set.Name, "reason", err)
		return nil
	}
	if err != nil {
		return err
	}
	delete(p.sets, set.Name)
	return f.sets[i].read(noEntries)
}
