package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"vipd/desired"
	"vipd/discovery"
	"vipd/lb"
	"vipd/proxier"
	"vipd/reconciler"
	"vipd/state"
)

// memorySource publishes what it is told.
type memorySource chan discovery.Set

func (s memorySource) Run(ctx context.Context, to discovery.Sink) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case set := <-s:
			to.Publish(set)
		}
	}
}

// takesAll is a door, and a mode, that does everything at no cost: the packages of
// the real ones measure theirs.
type takesAll struct{}

func (takesAll) Shut(context.Context, lb.Snapshot, proxier.How) error { return nil }
func (takesAll) Open(context.Context, lb.Snapshot, proxier.How) error { return nil }
func (takesAll) Sync(context.Context, lb.Snapshot, proxier.How) error { return nil }
func (takesAll) Close() error                                         { return nil }
func (takesAll) Plan(context.Context, lb.Snapshot, proxier.How) ([]proxier.Change, error) {
	return nil, nil
}

// manySpecs returns n services of ten backends each.
func manySpecs(n int) []*lb.Spec {
	addr := func(base, i int) netip.Addr {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(base+i)))) //nolint:gosec // small numbers
	}
	specs := make([]*lb.Spec, n)
	for i := range specs {
		specs[i] = &lb.Spec{
			Key: lb.Key{Addr: addr(10<<24, i), Port: 80, Protocol: lb.TCP}, Name: fmt.Sprintf("s%d", i),
			Scheduler: lb.WRR, Masquerade: lb.MasqueradeAlways,
		}
		for j := range 10 {
			specs[i].Backends = append(specs[i].Backends, lb.BackendSpec{
				Addr: netip.AddrPortFrom(addr(172<<24|16<<16, 10*i+j), 8080), Weight: 1, State: lb.Active,
			})
		}
	}
	return specs
}

// chain is the daemon from a source to the state log, without a kernel.
type chain struct {
	source     memorySource
	reconciler *reconciler.Reconciler
	specs      []*lb.Spec
	revision   int
}

func newChain(tb testing.TB, n int) *chain {
	tb.Helper()
	store, _, err := state.Open(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	c := &chain{source: make(memorySource), specs: manySpecs(n)}
	hub := discovery.NewHub(log, discovery.Registration{Name: "memory", Source: c.source, Policy: discovery.DefaultPolicy})
	c.reconciler = reconciler.New(reconciler.Options{
		Settings: reconciler.Settings{
			MinSyncPeriod: 1, SyncPeriod: time.Hour, StartupTimeout: time.Hour, Mode: lb.IPTables,
			Allowed: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		},
		Views: hub.View(), Memo: desired.NewMemo(), Door: takesAll{},
		Proxiers: map[lb.Mode]proxier.Proxier{lb.IPTables: takesAll{}}, Recorder: recorder{store}, Log: log,
	})
	ctx, stop := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() { hub.Run(ctx) })
	parts.Go(func() { c.reconciler.Run(ctx) })
	tb.Cleanup(func() {
		stop()
		parts.Wait()
		if err := store.Close(); err != nil {
			tb.Error(err)
		}
	})
	c.publish(tb)
	return c
}

// change has one service get another weight.
func (c *chain) change() {
	i := c.revision * 7919 % len(c.specs)
	spec := *c.specs[i]
	spec.Backends = slices.Clone(spec.Backends)
	spec.Backends[0].Weight++
	c.specs = slices.Clone(c.specs)
	c.specs[i] = &spec
}

// publish tells the specs and returns when a pass has served them.
func (c *chain) publish(tb testing.TB) {
	c.revision++
	revision := fmt.Sprint(c.revision)
	c.source <- discovery.Set{Services: c.specs, Verified: true, Revision: revision}
	err := c.reconciler.Await(context.Background(), func(v *discovery.View) bool { return v.Sources[0].Revision == revision })
	if err != nil {
		tb.Fatal(err)
	}
}

func BenchmarkChange(b *testing.B) {
	for _, n := range []int{1000, 50_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := newChain(b, n)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				c.change()
				b.StartTimer()
				c.publish(b)
			}
		})
	}
}

// TestAChangeCostsTheChange: from the answer of a source to the state log, a change
// of one service allocates no more among fifty times as many services. What it takes
// is printed: the test of the benchmark adds the door and the rules, on the kernel.
func TestAChangeCostsTheChange(t *testing.T) {
	few, many := changeCost(t, 1000), changeCost(t, 50_000)
	if many > few+few/2 {
		t.Errorf("a change allocates %d bytes at 50,000 services and %d at 1,000", many, few)
	}
}

// changeCost returns the bytes that a change allocates among n services.
func changeCost(t *testing.T, n int) uint64 {
	const rounds = 40
	c := newChain(t, n)
	sets := make([][]*lb.Spec, rounds) // what the source allocates is its own affair
	for i := range sets {
		c.revision += i
		c.change()
		sets[i] = c.specs
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	for _, c.specs = range sets {
		c.publish(t)
	}
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	bytes := (after.TotalAlloc - before.TotalAlloc) / rounds
	t.Logf("%6d services: a change takes %v and allocates %d bytes", n, (took / rounds).Round(time.Microsecond), bytes)
	return bytes
}
