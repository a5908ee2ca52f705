package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// attempt is what one try has to write, in the order of the fields.
type attempt struct {
	services []commit // the chains of a service stay together
	tree     []commit // nodes, each after those that it leads to
	skeleton []commit
	garbage  []commit

	root *tree   // what the tree leads to afterwards
	gone []*tree // nodes of it that go, unless the kernel was read
}

// try puts changes in place, and removes what they leave if asked to. If it is
// refused, what was committed before stands and is remembered.
func (p *pass) try(ctx context.Context, changes []change, withGarbage bool) error {
	m := p.memory
	a, err := p.plan(changes, withGarbage)
	if err != nil {
		return err
	}
	m.treeOpen = true
	for _, c := range pack(slices.Concat(a.services, a.tree, a.skeleton, a.garbage), p.limit) {
		if err := p.commit(ctx, c); err != nil {
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

// plan works out what a try has to write.
func (p *pass) plan(changes []change, withGarbage bool) (attempt, error) {
	m := p.memory
	a := attempt{root: relink(m.root, changes)}
	var left []string // chains that the changed services had and have no more
	for _, c := range changes {
		part, gone, err := p.planService(c)
		if err != nil {
			return a, err
		}
		a.services = append(a.services, part)
		left = append(left, gone...)
	}
	wanted := p.skeletonWanted()
	if wanted && (a.root != m.root || m.treeOpen) {
		p.planTree(&a)
	}
	if p.fresh && !p.mended {
		a.skeleton = p.planSkeleton(wanted)
	}
	if withGarbage {
		a.garbage = p.planGarbage(&a, left)
	}
	return a, nil
}

// planService returns the chains of a service that have to be written, and those
// of its last version that it does not have any more.
func (p *pass) planService(c change) (part commit, gone []string, err error) {
	m := p.memory
	keep := map[string]bool{}
	if c.after != nil {
		stamps, err := m.compile(c.after)
		if err != nil {
			return part, nil, err
		}
		for _, s := range stamps {
			keep[s.name] = true
		}
		if !m.matches(stamps) {
			chains, err := m.chains(c.after)
			if err != nil {
				return part, nil, err
			}
			for i, chain := range chains {
				if m.have[chain.Name] != stamps[i].stamp {
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
			if !keep[chain.Name] {
				gone = append(gone, chain.Name)
			}
		}
	}
	if p.dry {
		p.note(c.key(), part, gone)
	}
	return part, gone, nil
}

// note keeps to which service chains belong, for a plan.
func (p *pass) note(k lb.Key, part commit, gone []string) {
	for _, c := range part.write {
		gone = append(gone, c.Name)
	}
	for _, name := range gone {
		p.names[name] = "service " + k.String()
	}
}

// closeOlder empties the chain that a service without a usable backend has in an
// earlier layout, which may be asked until something may be removed.
func (p *pass) closeOlder(k lb.Key) []netfilter.Chain {
	c := netfilter.Chain{Name: olderServiceChain(k)}
	if have, stands := p.memory.have[c.Name]; !stands || have == stampOf(c) || p.how.Prune {
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

// planTree compares the tree with the one that stands.
func (p *pass) planTree(a *attempt) {
	m := p.memory
	old := m.root
	if m.treeOpen {
		old = nil
	}
	write, gone := diffChains(old, a.root)
	a.gone = gone
	for _, n := range write {
		a.write(m, nodeChain(n))
	}
	a.write(m, rootChain(a.root))
}

// write adds a chain of the tree, unless it stands as it should.
func (a *attempt) write(m *memory, c netfilter.Chain) {
	if m.have[c.Name] != stampOf(c) {
		a.tree = append(a.tree, commit{write: []netfilter.Chain{c}})
	}
}

// planSkeleton repairs the way in, or removes it.
func (p *pass) planSkeleton(wanted bool) []commit {
	var r netfilter.Repair
	if wanted {
		r = p.wayIn().Compare(p.table, p.memory.seen)
	} else {
		r = p.skeleton.Removal(p.table)
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
	if _, stands := p.memory.have[olderDispatch]; p.how.Prune || !stands {
		return s
	}
	entry := s.Chains[0]
	last := len(entry.Rules) - 1
	entry.Rules = append(slices.Clone(entry.Rules[:last]), jumpTo(chainDispatch), goTo(olderDispatch))
	s.Chains = []netfilter.Chain{entry}
	return s
}

// planGarbage removes the chains that nothing leads to any more: those that the
// changes leave, or if the kernel was read, all that nobody wants.
func (p *pass) planGarbage(a *attempt, left []string) []commit {
	m := p.memory
	if p.fresh {
		left = p.unwanted(a, left)
	} else {
		for _, n := range a.gone {
			left = append(left, nodeName(n))
		}
	}
	slices.Sort(left)
	left = slices.Compact(left)
	left = slices.DeleteFunc(left, func(name string) bool { _, stands := m.have[name]; return !stands })
	return removal(left, p.limit)
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
	for _, n := range names {
		parts = append(parts, commit{write: []netfilter.Chain{{Name: n}}})
	}
	for _, n := range names {
		parts = append(parts, commit{remove: []string{n}})
	}
	return parts
}

// unwanted adds to left the chains in the kernel that no node and no service
// wants. While nothing may be removed these are nodes only.
func (p *pass) unwanted(a *attempt, left []string) []string {
	m := p.memory
	stays := map[string]bool{}
	if p.skeletonWanted() {
		stays[chainDispatch] = true
		nodes, _ := diffChains(nil, a.root)
		for _, n := range nodes {
			stays[nodeName(n)] = true
		}
	}
	if p.how.Prune {
		for s := range p.own(p.target()) {
			chains, err := m.compile(s)
			if err != nil {
				continue // it never stood
			}
			for _, c := range chains {
				stays[c.name] = true
			}
		}
	}
	for _, k := range p.strays {
		if p.target().Get(k) == nil {
			p.reach(serviceChain(k), stays) // its new version failed: the old one stands
		}
	}
	for name := range m.have {
		switch kindOf(name) {
		case node:
			if !stays[name] {
				left = append(left, name)
			}
		case service:
			if p.how.Prune && !stays[name] {
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
func (p *pass) reach(chain string, stays map[string]bool) {
	if stays[chain] {
		return
	}
	stays[chain] = true
	for _, rule := range p.table.Own[chain] {
		if to := netfilter.Target(rule); kindOf(to) == service {
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
	a, err := p.plan(nil, true)
	if err != nil {
		return p.unknown(err)
	}
	var names []string
	for _, part := range a.garbage {
		names = append(names, part.remove...)
	}
	for _, name := range names {
		if err := p.commit(ctx, commit{write: []netfilter.Chain{{Name: name}}}); err != nil {
			return p.unknown(err)
		}
	}
	return p.remove(ctx, names)
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
		return fmt.Errorf("chain %s cannot be removed; remove the rule that leads to it: %w", names[0], err)
	}
	half := len(names) / 2
	return errors.Join(p.remove(ctx, names[:half]), p.remove(ctx, names[half:]))
}
