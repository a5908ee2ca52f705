package iptables

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// TestMemoryOfManyServices prints what is remembered of so many services, beside
// the services themselves and what is kept of a chain that was read back.
func TestMemoryOfManyServices(t *testing.T) {
	for _, n := range []int{10000, 50000} {
		e := lb.Snapshot{}.Edit()
		for _, k := range keySets[1].make(n, rand.New(rand.NewPCG(1, 1))) {
			s := &lb.Service{Key: k, Scheduler: lb.WRR}
			for i := range 10 {
				s.Backends = append(s.Backends, lb.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, byte(n), byte(i)}), 80), Weight: 1})
			}
			e.Put(s)
		}
		want := e.Snapshot()
		before := heap()
		k := &nullKernel{}
		p := newProxier(Options{Log: quietLog, Sets: noSets{}}, map[netfilter.Family]kernel{netfilter.IPv4: k, netfilter.IPv6: k}, nil)
		if err := p.Sync(t.Context(), want, prune); err != nil {
			t.Fatal(err)
		}
		m := p.families[0].memory
		synced := heap()
		m.root = nil
		tree := synced - heap()
		m.compiled = nil
		compiled := synced - tree - heap()
		m.have = nil
		have := synced - tree - compiled - heap()
		t.Logf("%d services of 10 backends: %.1f MB: tree %.1f, compiled %.1f, have %.1f, rest %.1f", want.Len(), mb(synced-before), mb(tree), mb(compiled), mb(have), mb(heap()-before))
		if each := (synced - before) / int64(want.Len()); each > 450 {
			t.Errorf("%d services: %d bytes for each", want.Len(), each)
		}
		runtime.KeepAlive(p)
		runtime.KeepAlive(want)
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }
