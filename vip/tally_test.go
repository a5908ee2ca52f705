package vip

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestTally holds the incremental differences against plain set arithmetic.
func TestTally(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	tl := newTally[int](cmp.Compare)
	want, have := map[int]int{}, map[int]bool{}
	for range 3000 {
		e := r.IntN(12)
		switch r.IntN(5) {
		case 0, 1:
			want[e]++
			tl.count(e, +1)
		case 2:
			if want[e] > 0 {
				want[e]--
				tl.count(e, -1)
			}
		case 3:
			tl.added(e)
			have[e] = true
		case 4:
			tl.removed(e)
			delete(have, e)
		}
		if r.IntN(200) == 0 {
			tl.dropAll()
			clear(want)
		}
		if r.IntN(100) == 0 {
			tl.read(slices.Values([]int{e, e}))
			clear(have)
			have[e] = true
		}
		if r.IntN(3) == 0 {
			tl = tl.clone()
		}
		var missing, surplus []int
		wants := 0
		for e := range 12 {
			if tl.wanted(e) != (want[e] > 0) || tl.held(e) != have[e] {
				t.Fatalf("%d: wanted %t, held %t", e, tl.wanted(e), tl.held(e))
			}
			switch {
			case want[e] > 0 && !have[e]:
				missing = append(missing, e)
			case want[e] == 0 && have[e]:
				surplus = append(surplus, e)
			}
			wants += one(want[e] > 0)
		}
		held := slices.Sorted(tl.allHeld())
		if got := tl.missing(); !slices.Equal(got, missing) {
			t.Fatalf("missing %v, want %v", got, missing)
		}
		if got := tl.surplus(); !slices.Equal(got, surplus) {
			t.Fatalf("surplus %v, want %v", got, surplus)
		}
		if tl.wants != wants || tl.holds != len(have) || len(held) != len(have) {
			t.Fatalf("%d wanted, %d held (%v); want %d and %d", tl.wants, tl.holds, held, wants, len(have))
		}
	}
}
