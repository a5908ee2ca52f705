package lb

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"
)

// service returns number n of a sequence of services in the order of their keys.
func service(n int, weight uint16) *Service {
	addr := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 0x0a000000+uint32(n/2))))
	return &Service{
		Key:      Key{addr, uint16(80 + n%2), TCP},
		Backends: []Backend{{netip.MustParseAddrPort("192.168.0.1:80"), weight, false}},
	}
}

type plain map[Key]*Service

// sorted returns the services of a map as a Snapshot has to yield them.
func (m plain) sorted() []*Service {
	return slices.SortedFunc(maps.Values(m), func(a, b *Service) int { return a.Key.Compare(b.Key) })
}

// diff is Diff, the slow way.
func (m plain) diff(old plain) map[Key][2]*Service {
	d := map[Key][2]*Service{}
	for k, s := range m {
		if o := old[k]; o == nil || !o.Equal(s) {
			d[k] = [2]*Service{o, s}
		}
	}
	for k, o := range old {
		if m[k] == nil {
			d[k] = [2]*Service{o, nil}
		}
	}
	return d
}

// must compares a Snapshot with the map that it has to equal.
func must(t *testing.T, s Snapshot, want plain) {
	t.Helper()
	if s.Len() != len(want) {
		t.Fatalf("Len is %d, want %d", s.Len(), len(want))
	}
	if got := slices.Collect(s.All()); !slices.Equal(got, want.sorted()) {
		t.Fatalf("All yields %d services, not the %d wanted, or in another order", len(got), len(want))
	}
	for k, svc := range want {
		if s.Get(k) != svc {
			t.Fatalf("Get(%s) = %v, want %v", k, s.Get(k), svc)
		}
	}
	for i, c := range s.chunks {
		if len(c.services) == 0 || len(c.services) > chunkSize {
			t.Fatalf("chunk %d has %d services", i, len(c.services))
		}
	}
}

func mustDiff(t *testing.T, s, old Snapshot, want map[Key][2]*Service) {
	t.Helper()
	n := 0
	var last *Key
	for before, after := range s.Diff(old) {
		k := cmpKey(before, after)
		if got, ok := want[k]; !ok || got != [2]*Service{before, after} {
			t.Fatalf("Diff yields %s: %v, %v; want %v", k, before, after, got)
		}
		if last != nil && last.Compare(k) >= 0 {
			t.Fatalf("Diff yields %s after %s", k, last)
		}
		last = &k
		n++
	}
	if n != len(want) {
		t.Fatalf("Diff yields %d changes, want %d", n, len(want))
	}
}

func cmpKey(before, after *Service) Key {
	if before != nil {
		return before.Key
	}
	return after.Key
}

// Random edits of random snapshots, beside a map: contents, order, differences, and
// every snapshot ever returned stays what it was.
func TestSnapshotIsAMapThatKeepsItsPast(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	type version struct {
		s Snapshot
		m plain
	}
	for _, universe := range []int{4, 3 * chunkSize, 8 * chunkSize} {
		past := []version{{Snapshot{}, plain{}}}
		for range 40 {
			from := past[rnd.IntN(len(past))]
			e, m := from.s.Edit(), maps.Clone(from.m)
			// A run of neighbours half of the time, so that chunks fill and empty.
			start, step := rnd.IntN(universe), 1+rnd.IntN(2)*rnd.IntN(universe)
			put := rnd.IntN(3) > 0
			for i := range rnd.IntN(universe) {
				svc := service((start+i*step)%universe, uint16(rnd.IntN(3)))
				switch old := m[svc.Key]; {
				case !put && rnd.IntN(8) > 0:
					e.Delete(svc.Key)
					delete(m, svc.Key)
				case old != nil && old.Equal(svc):
					e.Put(svc) // no change: the pointer stays
				default:
					e.Put(svc)
					m[svc.Key] = svc
				}
				if rnd.IntN(universe) == 0 { // an Editor goes on after a Snapshot
					past = append(past, version{e.Snapshot(), maps.Clone(m)})
				}
			}
			past = append(past, version{e.Snapshot(), m})
			must(t, past[len(past)-1].s, m)
			for range 3 {
				old := past[rnd.IntN(len(past))]
				mustDiff(t, past[len(past)-1].s, old.s, m.diff(old.m))
			}
		}
		for _, v := range past {
			must(t, v.s, v.m)
		}
	}
}

func TestEmptySnapshot(t *testing.T) {
	var s Snapshot
	must(t, s, plain{})
	if s.Get(service(1, 1).Key) != nil {
		t.Error("Get found something in nothing")
	}
	e := s.Edit()
	e.Delete(service(1, 1).Key)
	must(t, e.Snapshot(), plain{})
	mustDiff(t, s, s, nil)
}

// Of two services with one Key the later one wins, unless they are equal.
func TestNewSnapshot(t *testing.T) {
	a, b, again, changed := service(1, 1), service(2, 1), service(1, 1), service(2, 2)
	must(t, NewSnapshot(b, a, again, changed), plain{a.Key: a, b.Key: changed})
}

// Who stops reading early is left alone.
func TestSnapshotIteratorsStop(t *testing.T) {
	s := numbered(3 * chunkSize)
	n := 0
	for range s.All() {
		if n++; n == 2 {
			break
		}
	}
	for range s.Diff(Snapshot{}) {
		if n++; n == 4 {
			break
		}
	}
	if n != 4 {
		t.Error(n)
	}
}

func numbered(n int) Snapshot {
	e := Snapshot{}.Edit()
	for i := range n {
		e.Put(service(i, 1))
	}
	return e.Snapshot()
}

// Sorted input fills chunks to the brim.
func TestSortedInputFillsChunks(t *testing.T) {
	if s := numbered(10 * chunkSize); len(s.chunks) != 10 {
		t.Errorf("%d chunks for 10", len(s.chunks))
	}
}

// A change at 50,000 services costs one chunk and the list of chunks, and comparing
// reads nothing that both share.
func TestAChangeCostsItsChunk(t *testing.T) {
	const services = 50_000
	s := numbered(services)
	change := func(n int, weight uint16) Snapshot {
		e := s.Edit()
		e.Put(service(n, weight))
		return e.Snapshot()
	}
	after := change(services/2, 2)
	own := 0
	for i := range s.chunks {
		if s.chunks[i] != after.chunks[i] {
			own++
		}
	}
	if own != 1 || len(s.chunks) != len(after.chunks) {
		t.Errorf("%d of %d chunks are copied, want 1", own, len(s.chunks))
	}
	svc := service(services/2, 3)
	edit := func() {
		e := s.Edit()
		e.Put(svc)
		after = e.Snapshot()
	}
	if n := testing.AllocsPerRun(100, edit); n > 8 {
		t.Errorf("%v allocations for a change", n)
	}
	if n := bytesPerRun(100, edit); n > 8<<10 {
		t.Errorf("%d bytes for a change", n)
	}
	found := 0
	diff := func() {
		for range after.Diff(s) {
			found++
		}
	}
	if diff(); found != 1 {
		t.Errorf("%d changes, want 1", found)
	}
	if n := testing.AllocsPerRun(100, diff); n > 6 {
		t.Errorf("%v allocations to compare", n)
	}
	same := func() {
		e := s.Edit()
		e.Put(service(7, 1))
		e.Delete(service(services, 1).Key)
		after = e.Snapshot()
	}
	if same(); &after.chunks[0] != &s.chunks[0] {
		t.Error("an edit that changes nothing copied something")
	}
}

func bytesPerRun(runs int, f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		f()
	}
	runtime.ReadMemStats(&after)
	return (after.TotalAlloc - before.TotalAlloc) / uint64(runs)
}

func BenchmarkChangeOneOf50000(b *testing.B) {
	s := numbered(50_000)
	services := [2]*Service{service(25_000, 2), service(25_000, 3)}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e := s.Edit()
		e.Put(services[i%2])
		for range e.Snapshot().Diff(s) {
		}
	}
}

func TestSnapshotFrom(t *testing.T) {
	e := Snapshot{}.Edit()
	for i := range 2*chunkSize + 9 {
		e.Put(service(2*i, 1)) // every other one is missing
	}
	s := e.Snapshot()
	all := slices.Collect(s.All())
	for i := range 4*chunkSize + 20 {
		k := service(i, 1).Key
		want, _ := slices.BinarySearchFunc(all, k, func(s *Service, k Key) int { return s.Key.Compare(k) })
		if got := slices.Collect(s.From(k)); !slices.Equal(got, all[want:]) {
			t.Fatalf("From(%s) yields %d services, want %d", k, len(got), len(all)-want)
		}
	}
	for range s.From(Key{}) {
		break
	}
	for range (Snapshot{}).From(Key{}) {
		t.Error("a service in nothing")
	}
}
