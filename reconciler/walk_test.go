package reconciler

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vipd/desired"
	"vipd/discovery"
	"vipd/lb"
)

// randomSet returns what a source states: source n has the VIPs n, n+2, n+4.
func randomSet(rnd *rand.Rand, n int, moves bool) []*lb.Spec {
	var specs []*lb.Spec
	for i := range 3 {
		for _, port := range []string{"80", "53/udp"} {
			if rnd.IntN(4) == 0 {
				continue
			}
			text := fmt.Sprintf("%d:%s", 1+n+2*i, port)
			for _, b := range "abc" {
				switch rnd.IntN(4) {
				case 0:
				case 1:
					text += fmt.Sprintf(" %c*draining", b)
				default:
					text += fmt.Sprintf(" %c*%d", b, rnd.IntN(3))
				}
			}
			s := svc(text)
			if moves {
				s.Mode = []lb.Mode{"", ipt, ipvs}[rnd.IntN(3)]
			}
			s.DrainTimeout = time.Duration(rnd.IntN(3)*7) * time.Second
			specs = append(specs, s)
		}
	}
	return specs
}

// misfortune makes something go wrong, or right again.
func (w *world) misfortune(rnd *rand.Rand) {
	w.inject(func() {
		for _, m := range slices.Sorted(maps.Keys(w.modes)) {
			mode := w.modes[m]
			mode.fail, mode.poison, mode.reject = nil, rnd.IntN(20) == 0, nil
			if rnd.IntN(6) == 0 {
				mode.fail = errors.New("killed half way")
			}
			if rnd.IntN(4) == 0 {
				mode.reject = reject(fmt.Sprintf("%d:80", 1+rnd.IntN(6)), fmt.Sprintf("%d:53/udp", 1+rnd.IntN(6)))
			}
			mode.took = time.Duration(rnd.IntN(3)) * time.Second
		}
		clear(w.doorFail)
		clear(w.doorReject)
		for _, call := range []string{"shut", "open"} {
			if rnd.IntN(8) == 0 {
				w.doorFail[call] = errors.New("cannot list addresses")
			}
			if rnd.IntN(6) == 0 {
				w.doorReject[call] = reject(fmt.Sprintf("%d:80", 1+rnd.IntN(6)))
			}
		}
		w.stateFail = nil
	})
}

// fortune makes everything go right.
func (w *world) fortune() {
	w.inject(func() {
		for _, mode := range w.modes {
			mode.fail, mode.poison, mode.reject, mode.took = nil, false, nil, 0
		}
		clear(w.doorFail)
		clear(w.doorReject)
	})
}

// step changes one fact.
func (w *world) step(rnd *rand.Rand) {
	n := rnd.IntN(2)
	name := w.view.Sources[n].Name
	switch rnd.IntN(8) {
	case 0:
		w.restart()
	case 1:
		w.r.Trigger("drift")
	case 2:
		w.changeView(name, func(s *discovery.SourceView) { s.Class, s.Err = discovery.Error, errors.New("down") })
	default:
		w.sourceSays(name, randomSet(rnd, n, len(w.modes) > 1)...)
	}
}

// expected returns what a host has to show when it has come to rest: decided from
// nothing, since no two sources claim the same.
func (w *world) expected() []string {
	r := New(w.options())
	memo, now := desired.NewMemo(), time.Now()
	d := desired.Compute(memo, r.facts(w.view, w.s, now))
	for !d.Due.IsZero() {
		now = d.Due
		d = desired.Compute(memo, r.facts(w.view, w.s, now))
	}
	lines := []string{}
	for _, mode := range slices.Sorted(maps.Keys(d.Place)) {
		for s := range d.Place[mode].All() {
			lines = append(lines, fmt.Sprintf("%s %s open", mode, showService(s)))
		}
	}
	return lines
}

// TestRandomWalk walks through facts, failures and restarts. The fakes watch the
// order of every write. It ends equal to the last facts, and the pass after that
// writes nothing.
func TestRandomWalk(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for round := range 25 {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, uint64(round)))
			modes := []lb.Mode{ipt, ipvs}[:1+round%2]
			w := newWorld(t, []string{"static", "etcd"}, modes...)
			w.start()
			for range 60 {
				if rnd.IntN(3) == 0 {
					w.misfortune(rnd)
				}
				w.step(rnd)
				w.wait(time.Duration(rnd.IntN(5000)) * time.Millisecond)
			}
			w.fortune()
			for n, s := range w.view.Sources {
				w.sourceSays(s.Name, randomSet(rnd, n, len(w.modes) > 1)...)
			}
			w.wait(10 * time.Minute)
			w.wants(fmt.Sprintf("round %d", round), w.expected()...)
			w.written()
			w.r.Trigger("once more")
			w.wait(time.Minute)
			w.wantsWrites(fmt.Sprintf("round %d: the second pass", round), 0)
			w.restart()
			for _, s := range w.view.Sources {
				w.sourceSays(s.Name, s.Services...)
			}
			w.wait(time.Minute)
			w.wantsWrites(fmt.Sprintf("round %d: a restart", round), 0)
			if s := w.r.Status(); !s.Ready || s.Pass.Pending || s.Pass.Error != "" {
				t.Errorf("round %d: status %+v", round, s.Pass)
			}
		})
	}
}
