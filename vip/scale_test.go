package vip

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"vipd/lb"
)

// manyServices are n services with so many backends each.
func manyServices(n, backends int) lb.Snapshot {
	edit := lb.Snapshot{}.Edit()
	for i := range n {
		edit.Put(oneOfMany(i, backends, 0))
	}
	return edit.Snapshot()
}

// oneOfMany is one of them, of which 50 share a VIP; version is which backend
// replaces its first.
func oneOfMany(i, backends, version int) *lb.Service {
	s := &lb.Service{
		Key:       lb.Key{Addr: netip.AddrFrom4([4]byte{10, 64, byte(i / 50 >> 8), byte(i / 50)}), Port: 80 + uint16(i%50), Protocol: lb.TCP},
		Scheduler: lb.WRR, Masquerade: lb.MasqueradeAlways,
	}
	for j := range backends {
		at := i*backends + j
		a := netip.AddrFrom4([4]byte{172, 16 + byte(at>>16), byte(at >> 8), byte(at)})
		s.Backends = append(s.Backends, lb.Backend{Addr: netip.AddrPortFrom(a, 8080+uint16(version)), Weight: 1})
		version = 0
	}
	return s
}

// TestAChangeCostsTheChange: one changed service costs the same, and allocates the
// same, however many there are.
func TestAChangeCostsTheChange(t *testing.T) {
	allocs := map[int]float64{}
	for _, n := range []int{1000, 50_000} {
		w := newFakeWorld()
		d := w.door(t)
		d.kernel = w.raw // without the journal
		want := manyServices(n, 2)
		clean(t, d, want, prune)
		version := 0
		change := func() {
			version++
			edit := want.Edit()
			edit.Put(oneOfMany(n/2, 2, version))
			want = edit.Snapshot()
			if _, err := tryPass(t.Context(), d, want, prune); err != nil {
				t.Fatal(err)
			}
		}
		change()
		const rounds = 50
		begin := time.Now()
		allocs[n] = testing.AllocsPerRun(rounds, change)
		t.Logf("%d services: %v a change, %.0f allocations", n, time.Since(begin)/(rounds+1), allocs[n])
	}
	if d := allocs[50_000] - allocs[1000]; d > 10 || d < -10 {
		t.Errorf("allocations: %v", allocs)
	}
}

// TestStateOfManyServices prints what the door remembers.
func TestStateOfManyServices(t *testing.T) {
	const n = 10_000
	want := manyServices(n, 10)
	before := heap()
	s := newState(Options{DropInvalid: true})
	s.want(want)
	for _, f := range s.families {
		for a := range f.addrs.cells {
			f.addrs.added(a)
		}
		for _, m := range f.sets {
			for _, e := range m.missing() {
				m.added(e)
			}
			if left := m.missing(); left != nil {
				t.Fatal(left)
			}
		}
	}
	t.Logf("%d services of 10 backends: %.1f MB", n, float64(heap()-before)/1e6)
	runtime.KeepAlive(s)
	runtime.KeepAlive(want)
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
