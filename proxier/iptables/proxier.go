package iptables

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// Options is what a Proxier needs.
type Options struct {
	// Mark is the bit of packet mark and connmark; one bit, the same as package
	// vip's. 0 means netfilter.DefaultMark.
	Mark uint32
	// Tools is iptables, shared with package vip.
	Tools *netfilter.Tools
	// Evict ends the flows of backends that are gone. It outlives the Proxier.
	Evict Evictor
	// Sets is the line to the sets of clients: netfilter.KernelSets, if nil.
	Sets Sets
	// Count counts flows, for Counters: netfilter.CountFlows, if nil.
	Count CountFlows
	Log   *slog.Logger
}

// Proxier serves services of both families by iptables. Its methods are for one
// goroutine, but for Counters.
type Proxier struct {
	log      *slog.Logger
	evict    Evictor
	count    CountFlows
	families []*family
	serving  map[netfilter.Family]*atomic.Pointer[serving] // for keep and Counters; other goroutines
	swept    bool
	spared   int // services of unknown content at the last sweep
}

var (
	_ proxier.Proxier = (*Proxier)(nil)
	_ proxier.Counter = (*Proxier)(nil)
)

// family is what there is once for IPv4 and once for IPv6.
type family struct {
	netfilter.Family
	kernel   kernel
	sets     Sets
	missing  error // why there is no kernel: the tool is not installed
	skeleton netfilter.Skeleton
	limit    int // chains a commit
	memory   *memory
}

// New returns a Proxier for the network namespace of the process. If the tool of
// one family is missing the services of the other one are served; if both are, the
// error says what to install.
func New(o Options) (*Proxier, error) {
	kernels := map[netfilter.Family]kernel{}
	missing := map[netfilter.Family]error{}
	for _, f := range netfilter.Families {
		tool, err := o.Tools.Tool(f)
		if err != nil {
			missing[f] = err
			continue
		}
		kernels[f] = tool
	}
	if len(kernels) == 0 {
		return nil, missing[netfilter.IPv4]
	}
	return newProxier(o, kernels, missing), nil
}

func newProxier(o Options, kernels map[netfilter.Family]kernel, missing map[netfilter.Family]error) *Proxier {
	if o.Mark == 0 {
		o.Mark = netfilter.DefaultMark
	}
	if o.Sets == nil {
		o.Sets = netfilter.KernelSets{}
	}
	if o.Count == nil {
		o.Count = netfilter.CountFlows
	}
	p := &Proxier{log: o.Log, evict: o.Evict, count: o.Count, serving: map[netfilter.Family]*atomic.Pointer[serving]{}}
	for _, f := range netfilter.Families {
		p.serving[f] = &atomic.Pointer[serving]{}
		fam := &family{
			Family:   f,
			kernel:   kernels[f],
			sets:     o.Sets,
			missing:  missing[f],
			skeleton: skeletonOf(f, o.Mark),
			memory:   newMemory(),
		}
		if fam.kernel != nil {
			fam.limit = fam.kernel.CommitChains()
		}
		p.families = append(p.families, fam)
	}
	return p
}

func (f *family) pass(m *memory, want lb.Snapshot, how proxier.How) *pass {
	return &pass{family: f.Family, kernel: f.kernel, sets: f.sets, skeleton: f.skeleton, memory: m, want: want, how: how, limit: f.limit}
}

// Sync implements proxier.Proxier. A family that fails as a whole does not stop
// the other one: all of its services are among the failed.
func (p *Proxier) Sync(ctx context.Context, want lb.Snapshot, how proxier.How) error {
	failed := &proxier.Failed{Services: map[lb.Key]error{}}
	broken := map[netfilter.Family]error{}
	var others []error
	for _, f := range p.families {
		if f.missing != nil {
			broken[f.Family] = f.missing
			continue
		}
		pass := f.pass(f.memory, want, how)
		p.begin(f, want)
		err := pass.run(ctx)
		if f.memory.have == nil {
			p.lose(f)
			broken[f.Family] = err
			continue
		}
		if err != nil {
			others = append(others, err)
		}
		p.done(f, pass)
		for k, failure := range pass.failed {
			failed.Services[k] = failure.err
		}
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	others = append(others, p.spread(broken, want, failed))
	p.sweep(how)
	if len(failed.Services) > 0 {
		others = append(others, failed)
	}
	return errors.Join(others...)
}

// done follows up a pass whose outcome is known.
func (p *Proxier) done(f *family, pass *pass) {
	p.serves(f, f.memory.applied)
	if p.evict != nil {
		pass.endFlows(p.evict)
	}
	if n := pass.written; n > 0 {
		p.log.Debug("rules written", "family", f.Family, "commits", n, "services", len(pass.applied))
	}
}

// spread turns the errors of whole families into failed services, if another
// family is well, or the tool is missing: then to try again helps nobody. What a
// family was to give up, and nothing else, no service can answer for.
func (p *Proxier) spread(broken map[netfilter.Family]error, want lb.Snapshot, failed *proxier.Failed) error {
	var errs []error
	for _, f := range p.families {
		err, found := broken[f.Family]
		if !found {
			continue
		}
		if len(broken) == len(p.families) && !errors.Is(err, netfilter.ErrNotInstalled) {
			errs = append(errs, err)
			continue
		}
		for s := range own(f.Family, want) {
			failed.Services[s.Key] = err
		}
		if !serves(f.Family, want) && serves(f.Family, f.memory.applied) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Plan implements proxier.Proxier. It reads the kernel if somebody else touched it,
// whatever how says, for it shows the lines that go, and has the tool check the
// lines that come: one that it would refuse is an error.
func (p *Proxier) Plan(ctx context.Context, want lb.Snapshot, how proxier.How) ([]proxier.Change, error) {
	how.Fresh = true
	failed := &proxier.Failed{Services: map[lb.Key]error{}}
	broken := map[netfilter.Family]error{}
	var all []proxier.Change
	for _, f := range p.families {
		if f.missing != nil {
			broken[f.Family] = f.missing
			continue
		}
		pass := f.pass(f.memory.clone(), want, how)
		pass.rehearsal()
		if err := pass.run(ctx); err != nil {
			broken[f.Family] = err
			continue
		}
		if err := pass.rehearse(ctx); err != nil {
			return nil, err
		}
		changes, err := pass.describe(ctx)
		if err != nil {
			broken[f.Family] = err
			continue
		}
		all = append(all, changes...)
		for k, failure := range pass.failed {
			failed.Services[k] = failure.err
		}
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	err := p.spread(broken, want, failed)
	if len(failed.Services) > 0 {
		err = errors.Join(err, failed)
	}
	return all, err
}

// Close implements proxier.Proxier. There is nothing to free.
func (p *Proxier) Close() error { return nil }
