package vip

import (
	"math/rand/v2"
	"testing"
)

// TestTally holds the incremental differences against plain set arithmetic.
func TestTally(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	tl := newTally[int]()
	want := map[int]int{}
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
		case 4:
			tl.removed(e)
		}
		if r.IntN(200) == 0 {
			tl.dropAll()
			clear(want)
		}
		if r.IntN(100) == 0 {
			tl.read(map[int]struct{}{e: {}})
		}
		for e := range 12 {
			_, held := tl.have[e]
			_, missing := tl.missing[e]
			_, surplus := tl.surplus[e]
			if missing != (want[e] > 0 && !held) || surplus != (held && want[e] == 0) {
				t.Fatalf("%d: wanted %d, held %t, missing %t, surplus %t", e, want[e], held, missing, surplus)
			}
		}
	}
}
