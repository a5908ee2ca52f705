package discovery

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"vipd/lb"
)

// someSpecs returns specs of random keys out of a few, in order or not, some of
// them those of accepted, some equal to them, some twice.
func someSpecs(r *rand.Rand, accepted []*lb.Spec) []*lb.Spec {
	var specs []*lb.Spec
	for i := range r.IntN(30) {
		s := &lb.Spec{
			Key:  lb.Key{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + r.IntN(3))}), Port: 80, Protocol: lb.TCP},
			Name: fmt.Sprint("s", r.IntN(2)),
		}
		for j := range r.IntN(3) {
			s.Backends = append(s.Backends, lb.BackendSpec{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(j)}), 80), Weight: 1, State: lb.Active})
		}
		specs = append(specs, s)
	}
	for _, a := range accepted {
		switch same := *a; r.IntN(8) {
		case 0:
		case 1:
			specs = append(specs, &same)
		default:
			specs = append(specs, a)
		}
	}
	if r.IntN(4) == 0 {
		specs = append(specs, nil)
	}
	if r.IntN(3) > 0 { // as a good source does
		specs = slices.DeleteFunc(specs, func(s *lb.Spec) bool { return s == nil })
		lb.SortSpecs(specs)
		if r.IntN(2) == 0 {
			specs = slices.CompactFunc(specs, func(a, b *lb.Spec) bool { return a.Key == b.Key })
		}
	}
	return specs
}

// TestInternIsTheSameFastAndSlow compares with sorting everything and looking
// everything up.
func TestInternIsTheSameFastAndSlow(t *testing.T) {
	fast := 0
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // the seed is to be repeated
		l := &ledger{}
		l.services, _ = l.intern(someSpecs(r, nil))
		specs := someSpecs(r, l.services)
		given := slices.Clone(specs)

		got, doubles := l.intern(specs)
		want, wantDoubles := l.sort(specs)
		var gone []*lb.Spec
		for _, s := range l.services {
			if !slices.ContainsFunc(want, func(w *lb.Spec) bool { return w.Key == s.Key }) {
				gone = append(gone, s)
			}
		}
		var empty []int
		for i, s := range want {
			if old := l.get(s.Key); old != nil && old.Equal(s) {
				want[i] = old
			} else if old != nil && len(old.Backends) > 0 && len(s.Backends) == 0 {
				empty = append(empty, i)
			}
		}
		if !slices.Equal(got, want) || !slices.Equal(doubles, wantDoubles) {
			t.Fatalf("seed %d: got %v and %v, want %v and %v", seed, got, doubles, want, wantDoubles)
		}
		if missing, emptied := l.losses(got); !slices.Equal(missing, gone) || !slices.Equal(emptied, empty) {
			t.Fatalf("seed %d: lost %v and emptied %v, want %v and %v", seed, missing, emptied, gone, empty)
		}
		if !slices.Equal(specs, given) {
			t.Fatalf("seed %d: the answer was changed", seed)
		}
		if len(got) > 0 && len(got) == len(specs) && &got[0] == &specs[0] {
			fast++
		}
	}
	if fast == 0 {
		t.Error("no answer was taken as it is")
	}
}
