package iptables

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// attempt is what one try is about to do.
type attempt struct {
	changes  []change
	skeleton []commit
	wanted   bool     // the way in, and with it a tree
	moved    bool     // the tree may be another one than what stands
	root     *tree    // what the dispatch leads to afterwards
	write    []*tree  // nodes that may have to be written, each after those that it leads to
	left     []string // chains that nothing leads to afterwards
	garbage  bool     // they are to be removed
}

// try puts changes in place, and removes what they leave if asked to. If it is
// refused, what was committed before stands and is remembered.
func (p *pass) try(ctx context.Context, changes []change, withGarbage bool) error {
	m := p.memory
	a := p.plan(changes, withGarbage)
	for c, err := range pack(p.parts(&a), p.limit) {
		if err == nil {
			err = p.commit(ctx, c)
		}
		if err != nil {
			return err
		}
	}
	m.root, m.treeOpen = a.root, false
	m.standing = p.skeletonWanted()
	p.applied = append(p.applied, changes...)
	for _, c := range changes {
		m.settle(c)
		if c.after == nil {
			delete(m.compiled, c.before.Key)
		}
	}
	return nil
}

// plan works out what a try has to do, but for the text of the rules.
func (p *pass) plan(changes []change, withGarbage bool) attempt {
	m := p.memory
	a := attempt{changes: changes, wanted: p.skeletonWanted(), root: relink(m.root, changes), garbage: withGarbage}
	if a.moved = a.wanted && (a.root != m.root || m.treeOpen); a.moved {
		old := m.root
		if m.treeOpen {
			old = nil
		}
		write, gone := diffChains(old, a.root)
		a.write = write
		for _, n := range gone {
			a.left = append(a.left, nodeName(n))
		}
	}
	if (p.fresh || p.entered) && !p.mended {
		a.skeleton = p.planSkeleton(a.wanted)
	}
	return a
}

// parts yields what a try writes, in the order that leaves a working rule set after
// each: services, the tree, the way in, and what goes. Rules are rendered as they
// are asked for: all of them at once would be much memory.
func (p *pass) parts(a *attempt) iter.Seq2[commit, error] {
	return func(yield func(commit, error) bool) {
		for _, c := range a.changes { // the chains of a service stay together
			part, gone, err := p.planService(c)
			if !yield(part, err) {
				return
			}
			a.left = append(a.left, gone...)
		}
		chain := func(c netfilter.Chain) bool {
			return p.memory.have.holds(c) || yield(commit{write: []netfilter.Chain{c}}, nil)
		}
		for _, n := range a.write {
			if !chain(nodeChain(n)) {
				return
			}
		}
		if a.moved && !chain(rootChain(a.root)) {
			return
		}
		parts := a.skeleton
		if a.garbage {
			parts = slices.Concat(parts, removal(p.unwanted(a), p.limit))
		}
		for _, part := range parts {
			if !yield(part, nil) {
				return
			}
		}
	}
}

// planService returns the chains of a service that have to be written, and those
// of its last version that it does not have any more.
func (p *pass) planService(c change) (part commit, gone []string, err error) {
	m := p.memory
	keep := map[chainID]bool{}
	if c.after != nil {
		stamps, err := m.compile(c.after)
		if err != nil {
			return part, nil, err
		}
		for _, s := range stamps {
			keep[s.id] = true
		}
		if !m.matches(stamps) {
			chains, err := m.chains(c.after)
			if err != nil {
				return part, nil, err
			}
			for i, chain := range chains {
				if !m.have.match(stamps[i]) {
					part.write = append(part.write, chain)
				}
			}
		}
	}
	if c.after != nil && len(keep) == 0 {
		part.write = append(part.write, p.closeOlder(c.after.Key)...)
	}
	if c.before != nil && c.before != c.after {
		old, err := m.chains(c.before)
		if err != nil {
			return part, nil, err
		}
		for _, chain := range old {
			if !keep[idOf(chain.Name)] {
				gone = append(gone, chain.Name)
			}
		}
		if p.dry {
			p.noteWas(old)
		}
	}
	if p.dry {
		p.note(c.key(), part, gone)
	}
	return part, gone, nil
}

// closeOlder empties the chain that a service without a usable backend has in an
// earlier layout, which may be asked until something may be removed.
func (p *pass) closeOlder(k lb.Key) []netfilter.Chain {
	c := netfilter.Chain{Name: olderServiceChain(k)}
	if have := p.memory.have; !have.stands(c.Name) || have.holds(c) || p.how.Prune {
		return nil
	}
	return []netfilter.Chain{c}
}

// relink returns the tree after the changes.
func relink(root *tree, changes []change) *tree {
	var in, out []lb.Key
	for _, c := range changes {
		linked, usable := root.has(c.key()), c.after != nil && len(c.after.Usable()) > 0
		switch {
		case linked && !usable:
			out = append(out, c.key())
		case !linked && usable:
			in = append(in, c.key())
		}
	}
	slices.SortFunc(in, compareKeys)
	slices.SortFunc(out, compareKeys)
	return root.update(in, out)
}

// planSkeleton repairs the way in, or removes it.
func (p *pass) planSkeleton(wanted bool) []commit {
	var r netfilter.Repair
	if wanted {
		r = p.wayIn().CompareListed(p.entry, p.list, p.memory.seen)
	} else {
		r = p.skeleton.RemovalListed(p.entry, p.list)
	}
	if r.Empty() {
		return nil
	}
	return []commit{{repair: r}}
}

// wayIn returns the skeleton that leads to the tree. As long as nothing may be
// removed, what the tree does not know goes on to that of an earlier layout.
func (p *pass) wayIn() netfilter.Skeleton {
	s := p.skeleton
	if p.how.Prune || !p.memory.have.stands(olderDispatch) {
		return s
	}
	entry := s.Chains[0]
	last := len(entry.Rules) - 1
	entry.Rules = append(slices.Clone(entry.Rules[:last]), jumpTo(chainDispatch), goTo(olderDispatch))
	s.Chains = []netfilter.Chain{entry}
	return s
}

// removal removes chains to which nothing leads but others of them. If they are
// too many for one commit all are emptied first.
func removal(names []string, limit int) (parts []commit) {
	if len(names) == 0 {
		return nil
	}
	if len(names) <= limit {
		return []commit{{remove: names}}
	}
	for c := range emptied(names) {
		parts = append(parts, c)
	}
	for _, n := range names {
		parts = append(parts, commit{remove: []string{n}})
	}
	return parts
}

// unwanted returns the chains to which nothing leads any more: those that the
// changes left, or if the kernel was read, all that nobody wants.
func (p *pass) unwanted(a *attempt) []string {
	left := a.left
	if p.fresh {
		left = p.strangers(a)
	}
	slices.Sort(left)
	left = slices.Compact(left)
	return slices.DeleteFunc(left, func(name string) bool { return !p.memory.have.stands(name) })
}

// strangers returns the chains in the kernel that no node and no service wants, and
// those that the changes left. While nothing may be removed these are nodes only.
func (p *pass) strangers(a *attempt) []string {
	m, left, target := p.memory, a.left, p.target()
	stays := map[chainID]bool{}
	if a.wanted {
		stays[idOf(chainDispatch)] = true
		nodes, _ := diffChains(nil, a.root)
		for _, n := range nodes {
			stays[idOf(nodeName(n))] = true
		}
	}
	if p.how.Prune {
		for s := range own(p.family, target) {
			chains, err := m.compile(s)
			if err != nil {
				continue // it never stood
			}
			for _, c := range chains {
				stays[c.id] = true
			}
		}
	}
	for _, k := range m.strays {
		if target.Get(k) == nil {
			p.reach(serviceChain(k), stays) // its new version failed: the old one stands
		}
	}
	for name := range p.list.Own {
		switch kindOf(name) {
		case node:
			if !stays[idOf(name)] {
				left = append(left, name)
			}
		case service:
			if p.how.Prune && !stays[idOf(name)] {
				left = append(left, name)
			}
		case older:
			if p.how.Prune {
				left = append(left, name)
			}
		}
	}
	return left
}

// reach adds a chain, and all that the kernel goes to from it.
func (p *pass) reach(chain string, stays map[chainID]bool) {
	if stays[idOf(chain)] {
		return
	}
	stays[idOf(chain)] = true
	for _, to := range p.list.Own[chain].To {
		if kindOf(to) == service {
			p.reach(to, stays)
		}
	}
}

// collect mends the tree after changes were refused, and removes what nobody
// wants, one by one if need be.
func (p *pass) collect(ctx context.Context) error {
	if err := p.read(ctx, p.target()); err != nil {
		return err
	}
	p.mended = false
	if err := p.try(ctx, nil, false); err != nil {
		return p.unknown(err)
	}
	a := p.plan(nil, true)
	names := p.unwanted(&a)
	for c, err := range pack(emptied(names), p.limit) {
		if err == nil {
			err = p.commit(ctx, c)
		}
		if err != nil {
			return p.unknown(err)
		}
	}
	var errs []error
	for some := range slices.Chunk(names, p.limit) {
		if p.memory.have != nil { // else there was an error that is none of the names
			errs = append(errs, p.remove(ctx, some))
		}
	}
	return errors.Join(errs...)
}

// emptied yields chains without rules.
func emptied(names []string) iter.Seq2[commit, error] {
	return func(yield func(commit, error) bool) {
		for _, name := range names {
			if !yield(commit{write: []netfilter.Chain{{Name: name}}}, nil) {
				return
			}
		}
	}
}

// remove deletes empty chains, and names those to which something foreign leads.
func (p *pass) remove(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	err := p.commit(ctx, commit{remove: names})
	if !refused(err) {
		return p.unknown(err)
	}
	if len(names) == 1 {
		return fmt.Errorf("chain %s cannot be removed: %w; %s", names[0], err, p.advice(ctx, names[0]))
	}
	half := len(names) / 2
	if err = p.remove(ctx, names[:half]); p.memory.have == nil {
		return err
	}
	return errors.Join(err, p.remove(ctx, names[half:]))
}
