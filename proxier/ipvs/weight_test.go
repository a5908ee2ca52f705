package ipvs

import (
	"math"
	"net/netip"
	"testing"

	"vipd/lb"
)

// fillSH gives the places of the table of SH to destinations as the kernel does, and
// returns how many each got.
func fillSH(s *standing) (places []int) {
	places = make([]int, len(s.to))
	at, had := 0, uint32(0)
	for range placesSH {
		places[at]++
		if had++; had >= s.to[at].Weight {
			at, had = (at+1)%len(s.to), 0
		}
	}
	return places
}

// Every backend gets its share of the clients, however great the weights are.
func TestWeightsFitTheTableOfSH(t *testing.T) {
	for _, weights := range [][]uint16{
		{1}, {1, 1}, {1, 2, 3}, {100, 100}, {100, 100, 100, 100}, {100, 200, 300, 400, 500}, {65535, 65535}, {65535, 32768}, {65534, 65533, 65531}, {257, 1},
	} {
		s := &lb.Service{Key: svc("192.0.2.1:80").Key, Scheduler: lb.SH}
		var sum uint64
		for i, w := range weights {
			s.Backends = append(s.Backends, lb.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80), Weight: w})
			sum += uint64(w)
		}
		for i, places := range fillSH(render(s)) {
			share := float64(weights[i]) * placesSH / float64(sum)
			// What is left of the places when all had their weight goes to the first ones.
			if places == 0 || math.Abs(float64(places)-share) > float64(len(weights)) {
				t.Errorf("weights %v: backend %d has %d places of 256, and its share is %.1f", weights, i, places, share)
			}
		}
		s.Scheduler = lb.MH
		for i, d := range render(s).to {
			if d.Weight != uint32(weights[i]) {
				t.Errorf("mh: weight %d is %d in the kernel", weights[i], d.Weight)
			}
		}
	}
}

// Of one that drains nothing is counted, and its weight is 0.
func TestWeightsOfSHCountOnlyWhatIsUsable(t *testing.T) {
	s := svc("192.0.2.1:80 10.0.0.1:80*300 10.0.0.2:80*600 10.0.0.3:80*draining 10.0.0.4:80*0 scheduler=sh")
	for i, want := range []uint32{1, 2, 0, 0} {
		if got := render(s).to[i].Weight; got != want {
			t.Errorf("backend %d: weight %d, want %d", i, got, want)
		}
	}
}
