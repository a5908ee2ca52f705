package ipvs

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	vs "vipd/internal/ipvs"
	"vipd/lb"
)

// nullKernel says yes to everything and keeps nothing: what is left is the part of a
// pass that is ours.
type nullKernel struct{ commands int }

func (k *nullKernel) Do(_ context.Context, commands []vs.Command) []error {
	k.commands += len(commands)
	return nil
}
func (k *nullKernel) Servers(context.Context, func(vs.Server) error) error { return nil }
func (k *nullKernel) Server(context.Context, lb.Key) (vs.Server, bool, error) {
	return vs.Server{}, false, nil
}
func (k *nullKernel) Destinations(context.Context, lb.Key, func(vs.Entry) error) error { return nil }

// many returns n services of ten backends.
func many(n int) lb.Snapshot {
	e := lb.Snapshot{}.Edit()
	for i := range n {
		s := &lb.Service{Key: lb.Key{Addr: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Port: 80, Protocol: lb.TCP}, Scheduler: lb.WRR}
		for b := range 10 {
			s.Backends = append(s.Backends, lb.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, byte(n), byte(b)}), 80), Weight: 1})
		}
		e.Put(s)
	}
	return e.Snapshot()
}

// reweighted changes the weight of one backend of the first service.
func reweighted(all lb.Snapshot) lb.Snapshot {
	e := all.Edit()
	for s := range all.All() {
		e.Put(heavier(s))
		break
	}
	return e.Snapshot()
}

// heavier returns a service one of whose backends has another weight.
func heavier(s *lb.Service) *lb.Service {
	changed := *s
	changed.Backends = slices.Clone(s.Backends)
	changed.Backends[3].Weight++
	return &changed
}

// cost is what a change took on average.
type cost struct {
	took                        time.Duration
	allocs, allocated, commands float64
}

// measure changes the weight of a backend of one service after another.
func measure(t *testing.T, n int) (load time.Duration, one cost) {
	t.Helper()
	k := &nullKernel{}
	h := &testJournal{keys: map[lb.Key]bool{}, log: &[]string{}}
	p := New(Options{Kernel: k, Journal: h, Log: slog.New(slog.DiscardHandler)})
	want := many(n)
	began := time.Now()
	if err := p.Sync(t.Context(), want, prune); err != nil {
		t.Fatal(err)
	}
	load = time.Since(began)
	if k.commands != 11*n {
		t.Fatalf("%d commands for %d services", k.commands, n)
	}
	const runs = 100
	snapshots := make([]lb.Snapshot, 0, runs)
	for s := range want.All() {
		if len(snapshots) == runs {
			break
		}
		e := want.Edit()
		e.Put(heavier(s))
		want = e.Snapshot()
		snapshots = append(snapshots, want)
	}
	k.commands = 0
	var a, b runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&a)
	began = time.Now()
	for _, s := range snapshots {
		if err := p.Sync(t.Context(), s, prune); err != nil {
			t.Fatal(err)
		}
	}
	one.took = time.Since(began) / runs
	runtime.ReadMemStats(&b)
	one.allocs, one.allocated = float64(b.Mallocs-a.Mallocs)/runs, float64(b.TotalAlloc-a.TotalAlloc)/runs
	one.commands = float64(k.commands) / runs
	return load, one
}

// One change costs the same, however many services there are. Times are printed, not
// judged.
func TestB55_CostOfAChangeDoesNotGrow(t *testing.T) {
	var first cost
	for _, n := range []int{100, 10000} {
		load, one := measure(t, n)
		t.Logf("%6d services: load %v; a change %v, %.0f allocs, %.0f B, %.2f commands", n, load, one.took, one.allocs, one.allocated, one.commands)
		if one.commands != 1 {
			t.Errorf("%d services: %.2f commands a change", n, one.commands)
		}
		if n == 100 {
			first = one
		} else if one.allocs > 2*first.allocs || one.allocated > 2*first.allocated {
			t.Errorf("a change allocates %.0f (%.0f B) at 100 services and %.0f (%.0f B) at %d", first.allocs, first.allocated, one.allocs, one.allocated, n)
		}
	}
}

// TestMemoryOfManyServices shows that what stands as it is wanted is not kept twice.
func TestMemoryOfManyServices(t *testing.T) {
	want := many(10000)
	p := New(Options{Kernel: &nullKernel{}, Journal: &testJournal{keys: map[lb.Key]bool{}, log: &[]string{}}, Log: slog.New(slog.DiscardHandler)})
	if err := p.Sync(t.Context(), want, prune); err != nil {
		t.Fatal(err)
	}
	if n := len(p.memory.odd); n > 0 {
		t.Errorf("%d services are kept beside the snapshot", n)
	}
}

// BenchmarkOneChange is the part of a pass that is ours, and what it sends.
func BenchmarkOneChange(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			fake := vs.NewFake()
			p := New(Options{Kernel: fake, Journal: &testJournal{keys: map[lb.Key]bool{}, log: &[]string{}}, Log: slog.New(slog.DiscardHandler)})
			want := many(n)
			if err := p.Sync(b.Context(), want, prune); err != nil {
				b.Fatal(err)
			}
			both := [2]lb.Snapshot{want, reweighted(want)}
			before := fake.Messages()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				if err := p.Sync(b.Context(), both[i%2], prune); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(fake.Messages()-before)/float64(i), "messages/op")
		})
	}
}
