package iptables

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// kernel is the line to table nat of one family.
type kernel interface {
	// Survey lists the table, and returns the text of the named chains beside.
	Survey(ctx context.Context, table string, spelt ...string) (netfilter.Listing, netfilter.Table, error)
	// List lists the named chains alone.
	List(ctx context.Context, table string, names ...string) (netfilter.Listing, error)
	// ReadChains returns the text of the named chains.
	ReadChains(ctx context.Context, table string, names ...string) (netfilter.Table, error)
	// Since returns what others did to the table after a generation; 0 is none.
	Since(ctx context.Context, mark uint32, table string) (netfilter.Since, error)
	// Restore commits a script. A *netfilter.RestoreError means that nothing of it
	// was applied; after any other error the outcome is unknown.
	Restore(ctx context.Context, script []byte) error
	// Apply makes a repair of the way in, as Restore makes a script.
	Apply(ctx context.Context, r netfilter.Repair) error
	// Test checks a script as Restore would read it, and applies nothing.
	Test(ctx context.Context, script []byte) error
	// Leading returns the rules of others that lead to chains of ours.
	Leading(ctx context.Context, table string) (netfilter.Leading, error)
	// CommitChains returns how many chains one commit may name.
	CommitChains() int
}

// change is a service that becomes another one; nil: none. A service that stays
// what it is, but is not what stands in the kernel, is a change as well.
type change struct{ before, after *lb.Service }

func (c change) key() lb.Key {
	if c.after != nil {
		return c.after.Key
	}
	return c.before.Key
}

// pass makes one family equal to a snapshot. It is used once.
type pass struct {
	family   netfilter.Family
	kernel   kernel
	sets     Sets
	memory   *memory
	skeleton netfilter.Skeleton
	want     lb.Snapshot
	how      proxier.How
	limit    int  // chains a commit
	dry      bool // write nothing, say yes to everything

	// What was read, if fresh.
	fresh      bool
	entered    bool // not fresh, but the way in was read and is to be repaired
	list       netfilter.Listing
	entry      netfilter.Table   // the text of the way in
	linked     map[lb.Key]bool   // services that the kernel led to before the pass
	mended     bool              // the skeleton was repaired
	leading    netfilter.Leading // for errors; nil: not read
	applied    []change          // what is in place by now
	failed     map[lb.Key]failure
	kept       map[lb.Key]*lb.Service // services that would go, but may not yet
	written    int                    // commits
	commits    []commit               // the same, if dry
	setChanges []proxier.Change       // sets made and removed

	// Of a dry pass.
	names map[string]string          // chains to what they belong
	old   map[string]stamp           // the chains that it writes or removes and that stood, as they did
	made  map[string]bool            // those that did not
	was   map[string]netfilter.Chain // those of services as they were applied
}

// run makes the pass. After an error nothing is known of the kernel, unless
// memory still has it: then only what the error names is not in place.
func (p *pass) run(ctx context.Context) error {
	err := p.sync(ctx)
	if err != nil && p.memory.have == nil {
		return err
	}
	p.remember()
	if err == nil {
		err = p.dropSets(ctx)
	}
	return err
}

func (p *pass) sync(ctx context.Context) error {
	m := p.memory
	lost := m.have == nil || p.how.Prune && (m.gated || p.strayed()) || p.how.Fresh && (len(m.broken) > 0 || p.look(ctx))
	if !lost { // else nobody may be given a slot yet
		changes := p.changes(ctx)
		if len(changes) == 0 && !m.treeOpen && !p.entered {
			return nil
		}
		if p.skeletonWanted() == m.standing {
			if err := p.try(ctx, changes, true); !refused(err) {
				return p.unknown(err)
			}
		}
	}
	if err := p.read(ctx, m.applied); err != nil {
		return err
	}
	changes := p.changes(ctx)
	err := p.try(ctx, changes, true)
	if !refused(err) {
		return p.unknown(err)
	}
	if err := p.blame(ctx, changes, err); err != nil {
		return p.unknown(err)
	}
	return p.collect(ctx)
}

// unknown forgets the kernel if there was an error.
func (p *pass) unknown(err error) error {
	if err != nil {
		p.memory.forget()
	}
	return err
}

// strayed reports whether a service of unknown content stood only because its new
// version was refused, and that is not wanted any more: then only a reading tells
// which chains it has.
func (p *pass) strayed() bool {
	return slices.ContainsFunc(p.memory.strays, func(k lb.Key) bool {
		want, failed := p.want.Get(k), p.memory.failed[k].service
		return want == nil || failed == nil || !want.Equal(failed)
	})
}

// look finds out what somebody else did to what is ours since that was asked, or
// read, last, and reports whether the table has to be read. Who puts a rule before
// our jumps, or takes those away, touches the way in alone: that is of constant size.
func (p *pass) look(ctx context.Context) (read bool) {
	seen := p.memory.seen
	since, err := p.kernel.Since(ctx, seen.Mark(table), table)
	if err != nil || since.Unknown || slices.ContainsFunc(since.Chains, beyondEntry) {
		return true
	}
	if len(since.Chains) > 0 && p.memory.standing {
		if p.list, err = p.kernel.List(ctx, table, p.skeleton.Names()...); err == nil {
			p.entry, err = p.kernel.ReadChains(ctx, table, p.skeleton.Names()...)
		}
		if err != nil {
			return true
		}
		p.entered = true
	}
	seen.Take(table, since)
	return false
}

// beyondEntry reports whether a chain that was touched is one of ours behind the way
// in, or the whole table.
func beyondEntry(chain string) bool {
	return chain == "" || kindOf(chain) != foreign && kindOf(chain) != skeleton
}

// read reads the table, and forgets what was believed of it. The tree is to lead
// to the services of applied.
func (p *pass) read(ctx context.Context, applied lb.Snapshot) error {
	m := p.memory
	since, err := p.kernel.Since(ctx, m.seen.Mark(table), table) // first: what comes after it will be seen
	if err != nil {
		return p.unknown(err)
	}
	list, entry, err := p.kernel.Survey(ctx, table, p.skeleton.Names()...)
	if err != nil {
		return p.unknown(err)
	}
	if err := p.listSets(ctx); err != nil {
		return p.unknown(err)
	}
	p.forgetSlots()
	m.seen.Take(table, since)
	linked := m.adopt(list)
	if !p.fresh {
		p.linked = linked
	}
	p.fresh, p.list, p.entry = true, list, entry
	m.treeOpen, m.gated = true, !p.how.Prune
	m.standing = m.have.stands(chainService)
	m.strays = nil
	var keys []lb.Key
	stands := func(k lb.Key) bool { return m.have.stands(serviceChain(k)) }
	for s := range own(p.family, applied) {
		if stands(s.Key) && len(s.Usable()) > 0 { // else it is damaged, and linked with its repair
			keys = append(keys, s.Key)
		}
	}
	for k := range linked {
		if (!p.how.Prune || p.want.Get(k) != nil) && applied.Get(k) == nil && stands(k) {
			m.strays = append(m.strays, k)
		}
	}
	keys = append(keys, m.strays...)
	slices.SortFunc(keys, compareKeys)
	m.root = (*tree)(nil).update(keys, nil)
	return nil
}

func (p *pass) ours(k lb.Key) bool { return netfilter.FamilyOf(k.Addr) == p.family }

// changes returns what has to become something else. Those that cannot be tried
// are among the failed.
func (p *pass) changes(ctx context.Context) (all []change) {
	m := p.memory
	p.failed, p.kept = map[lb.Key]failure{}, map[lb.Key]*lb.Service{}
	differs := map[lb.Key]bool{}
	for before, after := range p.want.Diff(m.applied) {
		c := change{before, after}
		if !p.ours(c.key()) {
			continue
		}
		differs[c.key()] = true
		if p.mayTry(ctx, c) {
			all = append(all, c)
		} else if before != nil && p.damaged(before) {
			all = p.repair(ctx, all, before)
		}
	}
	if !p.fresh { // then nothing is known to be damaged but what could not be repaired
		for k, err := range m.broken {
			if !differs[k] {
				p.failed[k] = failure{m.applied.Get(k), err}
			}
		}
		return all
	}
	for s := range own(p.family, m.applied) {
		if !differs[s.Key] && p.damaged(s) {
			all = p.repair(ctx, all, s)
		}
	}
	return all
}

// repair appends the change of a service into what it was, unless it cannot be tried.
func (p *pass) repair(ctx context.Context, all []change, s *lb.Service) []change {
	if err := p.makeSets(ctx, s); err != nil {
		if _, found := p.failed[s.Key]; !found {
			p.failed[s.Key] = failure{s, err}
		}
		return all
	}
	return append(all, change{s, s})
}

// mayTry reports whether a change can be tried, and notes why not.
func (p *pass) mayTry(ctx context.Context, c change) bool {
	k := c.key()
	if c.after == nil && !p.how.Prune {
		p.kept[k] = c.before
		return false
	}
	if f, found := p.memory.failed[k]; found && sameVersion(f.service, c.after) {
		p.failed[k] = f
		return false
	}
	if c.after == nil {
		return true
	}
	_, err := p.memory.compile(c.after)
	if err == nil {
		err = p.makeSets(ctx, c.after)
	}
	if err != nil {
		p.failed[k] = failure{c.after, err}
	}
	return err == nil
}

func sameVersion(a, b *lb.Service) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(b)
}

// damaged reports whether a service that was applied does not stand as it should.
func (p *pass) damaged(s *lb.Service) bool {
	chains, err := p.memory.compile(s)
	return p.fresh && err == nil && !p.memory.matches(chains)
}

// target returns what is applied once the pass is over: what is wanted, but for
// what failed and what may not go yet.
func (p *pass) target() lb.Snapshot {
	if len(p.failed)+len(p.kept) == 0 {
		return p.want
	}
	e := p.want.Edit()
	for k := range p.failed {
		if old := p.memory.applied.Get(k); old != nil {
			e.Put(old)
		} else {
			e.Delete(k)
		}
	}
	for _, s := range p.kept {
		e.Put(s)
	}
	return e.Snapshot()
}

// skeletonWanted reports whether anything of the family needs the way in. While
// nothing may be removed it stays if it stands.
func (p *pass) skeletonWanted() bool {
	if len(p.memory.strays) > 0 || !p.how.Prune && p.memory.standing {
		return true
	}
	return serves(p.family, p.target())
}

// own yields the services of a family.
func own(f netfilter.Family, all lb.Snapshot) iter.Seq[*lb.Service] {
	var first lb.Key // IPv4 comes before IPv6
	if f == netfilter.IPv6 {
		first.Addr = netip.IPv6Unspecified()
	}
	return func(yield func(*lb.Service) bool) {
		for s := range all.From(first) {
			if netfilter.FamilyOf(s.Key.Addr) != f || !yield(s) {
				return
			}
		}
	}
}

// serves reports whether there is a service of a family.
func serves(f netfilter.Family, all lb.Snapshot) bool {
	for range own(f, all) {
		return true
	}
	return false
}

// commit writes one commit and remembers it.
func (p *pass) commit(ctx context.Context, c commit) error {
	if !p.dry {
		write := func() error { return p.kernel.Restore(ctx, c.script()) }
		if !c.repair.Empty() {
			write = func() error { return p.kernel.Apply(ctx, c.repair) }
		}
		err := write()
		if refused(err) && !c.repair.Empty() {
			return p.refusedEntry(ctx, err)
		}
		if err != nil {
			return fmt.Errorf("%s table %s: %w", p.family, table, err)
		}
	}
	if p.written++; p.dry {
		p.noteOld(c)
		p.commits = append(p.commits, c)
	}
	p.memory.wrote(c)
	if !c.repair.Empty() {
		p.mended, p.linked = true, nil
	}
	return nil
}
