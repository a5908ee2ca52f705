package desired

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"vipd/lb"
)

// randomSpec returns a service on one of a few VIPs and ports.
func randomSpec(rnd *rand.Rand, loops bool) *lb.Spec {
	text := fmt.Sprintf("%d:%d%s", 1+rnd.IntN(6), 80+rnd.IntN(2), []string{"", "", "/udp"}[rnd.IntN(3)])
	for _, b := range "abcd" {
		switch rnd.IntN(6) {
		case 0:
		case 1:
			text += fmt.Sprintf(" %c*draining", b)
		case 2:
			text += fmt.Sprintf(" %c*disabled", b)
		default:
			text += fmt.Sprintf(" %c*%d", b, rnd.IntN(4))
		}
	}
	if loops && rnd.IntN(8) == 0 {
		text += fmt.Sprintf(" 192.0.2.%d*1", 1+rnd.IntN(6))
	}
	s := svc(text)
	s.Mode = []lb.Mode{"", "", ipt, ipvs}[rnd.IntN(4)]
	s.DrainTimeout = time.Duration(rnd.IntN(3)*20) * time.Second
	return s
}

// step changes one thing.
func (w *world) step(rnd *rand.Rand, conflicts bool) {
	n := rnd.IntN(len(w.facts.Sources))
	now := w.facts.Sources[n]
	specs := slices.Clone(now.Services)
	switch rnd.IntN(10) {
	case 0: // restart
		w.restart(time.Duration(rnd.IntN(60)) * time.Second)
		return
	case 1:
		w.facts.Mode = []lb.Mode{ipt, ipvs}[rnd.IntN(2)]
		return
	case 2, 3:
		if len(specs) > 0 {
			i := rnd.IntN(len(specs))
			specs = slices.Delete(specs, i, i+1)
		}
	default:
		s := randomSpec(rnd, conflicts)
		if !conflicts && int(s.Key.Addr.As4()[3])%len(w.facts.Sources) != n {
			return
		}
		specs = slices.DeleteFunc(specs, func(o *lb.Spec) bool { return o.Key == s.Key })
		specs = append(specs, s)
	}
	w.states(now.Name, specs...)
}

// TestRandomWalk walks through facts, restarts and time. At rest what was decided
// step by step is what is decided at once: from nothing, where nobody conflicts,
// and from the records alone, where owners have to be remembered.
func TestRandomWalk(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for round := range 40 {
		rnd := rand.New(rand.NewPCG(seed, uint64(round)))
		conflicts := round%2 == 0
		w := newWorld(t, "static", "etcd", "consul")
		for range 60 {
			w.step(rnd, conflicts)
			w.after(time.Duration(rnd.IntN(15)) * time.Second)
		}
		r := w.rest()
		if !conflicts {
			fresh := NewMemo()
			f := w.facts
			f2 := Compute(fresh, f)
			for !f2.Due.IsZero() {
				f.Now = f2.Due
				f2 = Compute(fresh, f)
			}
			w.same("from nothing", r, f2)
		}
		w.restart(0)
		again := w.now()
		w.same("from the records", r, again)
		if len(again.Touched) > 0 {
			t.Fatalf("round %d: a restart at rest touches %v", round, again.Touched)
		}
		for k, e := range w.memo.entries {
			if e.spec == nil || len(e.served) != 1 {
				t.Fatalf("round %d: at rest %s is on its way out: %+v", round, k, e)
			}
		}
		w.checkCounts()
	}
}

func (w *world) same(what string, a, b Result) {
	w.t.Helper()
	for _, mode := range []lb.Mode{ipt, ipvs} {
		w.wants(what, b.Place[mode], show(a.Place[mode])...)
	}
	w.wants(what+", door", b.Door, show(a.Door)...)
}

// checkCounts compares what the memo counts with what it holds.
func (w *world) checkCounts() {
	w.t.Helper()
	other := NewMemo()
	for k, e := range w.memo.entries {
		other.remember(k, e)
	}
	if !maps.Equal(other.vips, w.memo.vips) || !maps.Equal(other.backends, w.memo.backends) || !maps.Equal(other.due, w.memo.due) {
		w.t.Fatalf("counted VIPs %v, backends %v; there are %v and %v", w.memo.vips, w.memo.backends, other.vips, other.backends)
	}
}

// crowd returns n services with 4 backends each.
func crowd(n int) []*lb.Spec {
	pattern, specs := svc("1:80 a*1 b*2 c*3 d*4"), make([]*lb.Spec, n)
	for i := range specs {
		specs[i] = with(pattern, func(s *lb.Spec) {
			s.Key.Addr = netip.AddrFrom4([4]byte{198, 18, byte(i / 250), byte(1 + i%250)})
		})
	}
	return specs
}

// TestOneChangeCostsOneChange bounds the memory of a Compute at 50,000 services,
// with and without a Plan beside it.
func TestOneChangeCostsOneChange(t *testing.T) {
	const n = 50_000
	w := newWorld(t, "static")
	base := crowd(n)
	w.facts.Sources[0].Services = base
	Compute(w.memo, w.facts)
	clone := w.memo.Clone()
	before := w.memo.place[ipt]

	var turn int
	variants := [2][]*lb.Spec{slices.Clone(base), slices.Clone(base)}
	variants[1][n/2] = with(base[n/2], func(s *lb.Spec) { s.Scheduler = lb.RR })
	change := func() {
		turn++
		w.facts.Sources = []Source{{Name: "static", Services: variants[turn%2]}}
		if r := Compute(w.memo, w.facts); len(r.Touched) != 1 || len(r.Claims) != 1 {
			t.Fatalf("touched %v", r.Touched)
		}
	}
	change()
	bytes := bytesPerRun(100, change)
	began := time.Now()
	change()
	t.Logf("one change at %d services: %d bytes, %s", n, bytes, time.Since(began))
	if bytes > 64<<10 {
		t.Errorf("one change at %d services allocates %d bytes, want at most 64 KiB", n, bytes)
	}
	same := func() {
		if r := Compute(w.memo, w.facts); len(r.Touched) != 0 {
			t.Fatalf("touched %v", r.Touched)
		}
	}
	if bytes := bytesPerRun(100, same); bytes > 4<<10 {
		t.Errorf("no change at %d services allocates %d bytes, want at most 4 KiB", n, bytes)
	}
	for range clone.place[ipt].Diff(before) {
		t.Fatal("Compute changed the memo's clone")
	}
	f := w.facts
	f.Sources = []Source{{Name: "static"}}
	Compute(clone, f)
	same() // and the other way round
}

func bytesPerRun(n int, f func()) uint64 {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		f()
	}
	runtime.ReadMemStats(&after)
	return (after.TotalAlloc - before.TotalAlloc) / uint64(n)
}

func BenchmarkOneChange(b *testing.B) {
	w := &world{memo: NewMemo(), facts: newWorld(nil, "static").facts}
	base := crowd(50_000)
	w.facts.Sources[0].Services = base
	Compute(w.memo, w.facts)
	other := slices.Clone(base)
	other[25_000] = with(base[25_000], func(s *lb.Spec) { s.Scheduler = lb.RR })
	added := append(slices.Clone(base), svc("198.19.250.250:80 a*1"))
	for name, v := range map[string][]*lb.Spec{"change": other, "new VIP": added} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				w.facts.Sources = []Source{{Name: "static", Services: [][]*lb.Spec{v, base}[i%2]}}
				w.facts.Now = w.facts.Now.Add(time.Minute)
				Compute(w.memo, w.facts)
			}
		})
	}
}
