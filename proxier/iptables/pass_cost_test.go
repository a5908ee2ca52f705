package iptables

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// nullKernel says yes to everything and keeps nothing: what is left is the part
// of a pass that is ours.
type nullKernel struct{ commits, bytes int }

func (k *nullKernel) Survey(context.Context, string, ...string) (netfilter.Listing, netfilter.Table, error) {
	return netfilter.Listing{}, netfilter.Table{Base: map[string][]string{}, Own: map[string][]string{}}, nil
}

func (k *nullKernel) List(context.Context, string, ...string) (netfilter.Listing, error) {
	return netfilter.Listing{}, nil
}

func (k *nullKernel) ReadChains(context.Context, string, ...string) (netfilter.Table, error) {
	return netfilter.Table{Base: map[string][]string{}, Own: map[string][]string{}}, nil
}

func (k *nullKernel) Since(_ context.Context, mark uint32, _ string) (netfilter.Since, error) {
	return netfilter.Since{Now: 1, Unknown: mark == 0}, nil
}

func (k *nullKernel) Restore(_ context.Context, script []byte) error {
	k.commits, k.bytes = k.commits+1, k.bytes+len(script)
	return nil
}
func (k *nullKernel) Apply(ctx context.Context, r netfilter.Repair) error {
	return k.Restore(ctx, r.Script)
}
func (k *nullKernel) Leading(context.Context, string) (netfilter.Leading, error) { return nil, nil }
func (k *nullKernel) Test(context.Context, []byte) error                         { return nil }
func (k *nullKernel) CommitChains() int                                          { return 500 }

// costOf is what a pass with one change takes, on average.
type costOf struct {
	took                     time.Duration
	allocs, allocated, wrote float64
}

// TestOwnPartOfAPassDoesNotGrow measures passes of one change: the allocations
// follow the change and not the services. Times are printed, not judged.
func TestOwnPartOfAPassDoesNotGrow(t *testing.T) {
	for _, set := range keySets[:2] { // in a row, random
		few, many := costs(t, set.make, 1000), costs(t, set.make, 50000)
		for i, name := range []string{"backends change", "a service comes", "a service goes", "nothing changes"} {
			a, b := few[i], many[i]
			t.Logf("%-9s %-16s 1,000: %8v %5.0f allocs %7.0f B, writes %6.0f B   50,000: %8v %5.0f allocs %7.0f B, writes %6.0f B",
				set.name, name, a.took, a.allocs, a.allocated, a.wrote, b.took, b.allocs, b.allocated, b.wrote)
			if b.allocs > 4*a.allocs+200 || b.allocated > 4*a.allocated+64<<10 {
				t.Errorf("%s: allocations grow with the services: %.0f (%.0f B) at 1,000, %.0f (%.0f B) at 50,000", name, a.allocs, a.allocated, b.allocs, b.allocated)
			}
		}
	}
}

// costs loads n services of ten backends and measures each kind of change.
func costs(t *testing.T, keys func(int, *rand.Rand) []lb.Key, n int) (all []costOf) {
	t.Helper()
	const runs = 50
	rng := rand.New(rand.NewPCG(uint64(n), 5))
	pool := treeOf(keys(n+runs+n/50, rng)).all(nil)
	rng.Shuffle(len(pool), func(i, j int) { pool[i], pool[j] = pool[j], pool[i] })
	service := func(k lb.Key, shift int) *lb.Service {
		s := &lb.Service{Key: k, Scheduler: lb.WRR}
		for i := range 10 {
			s.Backends = append(s.Backends, lb.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, byte(shift), byte(i)}), 80), Weight: 1})
		}
		return s
	}
	e := lb.Snapshot{}.Edit()
	for _, k := range pool[:n] {
		e.Put(service(k, 0))
	}
	now := e.Snapshot()
	kernels := map[netfilter.Family]kernel{}
	for _, f := range netfilter.Families {
		kernels[f] = &nullKernel{}
	}
	p := newProxier(Options{Log: quietLog, Sets: noSets{}}, kernels, nil)
	if err := p.Sync(t.Context(), now, prune); err != nil {
		t.Fatal(err)
	}
	null := kernels[netfilter.IPv4].(*nullKernel)
	measure := func(edit func(i int)) {
		var steps []lb.Snapshot
		for i := range runs {
			edit(i)
			steps = append(steps, now)
		}
		var before, after runtime.MemStats
		wrote, start := null.bytes, time.Now()
		runtime.ReadMemStats(&before)
		for _, s := range steps {
			if err := p.Sync(t.Context(), s, prune); err != nil {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		all = append(all, costOf{
			took:      (time.Since(start) / runs).Round(time.Microsecond),
			allocs:    float64(after.Mallocs-before.Mallocs) / runs,
			allocated: float64(after.TotalAlloc-before.TotalAlloc) / runs,
			wrote:     float64(null.bytes-wrote) / runs,
		})
	}
	edit := func(f func(e *lb.Editor)) { e := now.Edit(); f(e); now = e.Snapshot() }
	measure(func(i int) { edit(func(e *lb.Editor) { e.Put(service(pool[i], 1)) }) })
	measure(func(i int) { edit(func(e *lb.Editor) { e.Put(service(pool[n+i], 0)) }) })
	measure(func(i int) { edit(func(e *lb.Editor) { e.Delete(pool[2*i]) }) })
	measure(func(int) {})
	return all
}

// noSets has no sets of clients, and is asked for none.
type noSets struct{}

func (noSets) List(context.Context) ([]netfilter.SetInfo, error)           { return nil, nil }
func (noSets) CreateExpiring(context.Context, netfilter.Set, uint32) error { return nil }
func (noSets) Destroy(context.Context, string) error                       { return nil }
