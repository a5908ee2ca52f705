package netfilter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// ruleSet is nftables as far as the Ledger sees it: who made which generation, and
// what of it the watch has not heard yet.
type ruleSet struct {
	ledger  *Ledger
	history []commitment // generation 1 and on
	queue   []news       // told, not heard
	deaf    bool
	turning func() // what others do when the watch becomes deaf
	asked   func() // what they do after somebody asked for the generation
	drifts  []string
	owed    bool // others touched what is ours under the eyes of a watch, and nothing was told since
}

// commitment is one generation.
type commitment struct {
	ours bool
	at   place // what of ours it touched; the zero place: nothing
}

const ourPort, otherPort = 77, 99

var chainA = place{IPv4, "nat", "VIPD-A"}

func newRuleSet() *ruleSet {
	r := &ruleSet{ledger: newLedger(), history: []commitment{{}}}
	r.ledger.now = func(ctx context.Context) (uint32, error) {
		now := r.now()
		if r.asked != nil {
			r.asked()
		}
		return now, ctx.Err()
	}
	return r
}

func (r *ruleSet) now() uint32 { return uint32(len(r.history)) }

// commit makes a generation, and tells of it whoever listens.
func (r *ruleSet) commit(c commitment) {
	r.history = append(r.history, c)
	r.owed = r.owed || r.ledger.tell != nil && !c.ours && c.at == chainA
	if r.ledger.tell == nil || r.deaf {
		return
	}
	n := news{generation: r.now(), port: otherPort, pid: 5, process: "other"}
	if c.ours {
		n.port = ourPort
	}
	if c.at != (place{}) {
		n.places = []place{c.at}
	}
	r.queue = append(r.queue, n)
}

// watch begins or ends a watch.
func (r *ruleSet) watch(on bool) {
	r.queue = nil
	if on {
		if r.ledger.begun {
			r.owed = r.touched(r.ledger.booked)
		}
		r.ledger.watch(r.now(), func(d Drift) { r.drifts, r.owed = append(r.drifts, d.Object), false }, func(deaf bool) {
			if r.deaf = deaf; deaf && r.turning != nil {
				r.turning()
			}
		})
	} else {
		r.owed = false
		r.ledger.unwatch()
	}
}

// hear has the watch hear what was told.
func (r *ruleSet) hear(n int) {
	for _, heard := range r.queue[:n] {
		r.ledger.hear(heard)
	}
	r.queue = r.queue[n:]
}

// write is a write of ours of some commits, with what others do meanwhile.
func (r *ruleSet) write(size, commits int, fail error, between func()) error {
	return r.ledger.write(context.Background(), size, func(started func(int)) (int, error) {
		started(ourPort)
		for range commits {
			between()
			r.commit(commitment{ours: true, at: chainA})
		}
		between()
		return commits, fail
	})
}

// drop loses what is told and not heard, as a full buffer does.
func (r *ruleSet) drop() {
	if len(r.queue) > 0 {
		r.queue = nil
		r.ledger.recover(r.now())
	}
}

// touched returns what others did to a chain after a generation.
func (r *ruleSet) touched(mark uint32) bool {
	return slices.ContainsFunc(r.history[mark:], func(c commitment) bool { return !c.ours && c.at == chainA })
}

func TestLedger(t *testing.T) {
	foreign, beside := commitment{at: chainA}, commitment{}
	for _, tc := range []struct {
		name  string
		do    func(r *ruleSet)
		want  string // Since, after all was heard
		drift string
	}{
		{"ours", func(r *ruleSet) { _ = r.write(0, 3, nil, func() {}) }, "nothing", "[]"},
		{"ours, large", func(r *ruleSet) { _ = r.write(largeWrite, 3, nil, func() {}) }, "nothing", "[]"},
		{"beside", func(r *ruleSet) { r.commit(beside) }, "nothing", "[]"},
		{"foreign", func(r *ruleSet) { r.commit(foreign) }, "VIPD-A", "[IPv4 table nat chain VIPD-A]"},
		{"beside, then ours", func(r *ruleSet) { r.commit(beside); _ = r.write(0, 2, nil, func() {}) }, "nothing", "[]"},
		{"foreign during ours", func(r *ruleSet) { _ = r.write(0, 1, nil, func() { r.commit(foreign) }) }, "VIPD-A",
			"[IPv4 table nat chain VIPD-A IPv4 table nat chain VIPD-A]"},
		{"beside during ours", func(r *ruleSet) { _ = r.write(0, 1, nil, func() { r.commit(beside) }) }, "nothing", "[]"},
		{"beside during ours, large", func(r *ruleSet) { _ = r.write(largeWrite, 1, nil, func() { r.commit(beside) }) }, "unknown", "[" + eventsLost + "]"},
		{"ours fails at once", func(r *ruleSet) { _ = r.write(0, 0, errors.New("refused"), func() {}) }, "nothing", "[]"},
		{"lost, ours", func(r *ruleSet) { _ = r.write(0, 5, nil, func() {}); r.drop() }, "nothing", "[]"},
		{"lost, foreign", func(r *ruleSet) { r.commit(beside); r.drop() }, "unknown", "[" + eventsLost + "]"},
		{"lost without a word", func(r *ruleSet) { r.commit(foreign); r.queue = nil; r.commit(beside) }, "unknown", "[" + eventsLost + "]"},
		{"while nobody watches", func(r *ruleSet) { r.watch(false); r.commit(beside); r.watch(true) }, "unknown", "[" + unwatched + "]"},
		{"ours while nobody watches", func(r *ruleSet) { r.watch(false); _ = r.write(0, 2, nil, func() {}); r.watch(true) }, "nothing", "[]"},
	} {
		r := newRuleSet()
		r.watch(true)
		mark := r.now()
		tc.do(r)
		r.hear(len(r.queue))
		if got := r.since(t, mark); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
		if got := fmt.Sprint(r.drifts); got != tc.drift {
			t.Errorf("%s: told %s, want %s", tc.name, got, tc.drift)
		}
	}
}

func (r *ruleSet) since(t *testing.T, mark uint32) string {
	t.Helper()
	s, err := r.ledger.Since(t.Context(), mark, IPv4, "nat")
	switch {
	case err != nil:
		t.Fatal(err)
	case s.Unknown:
		return "unknown"
	case len(s.Chains) > 0:
		return s.Chains[0]
	}
	return "nothing"
}

func TestAToolThatLiesIsFoundOut(t *testing.T) {
	r := newRuleSet()
	err := r.ledger.write(t.Context(), 0, func(func(int)) (int, error) { return 1, nil })
	if !errors.Is(err, errLied) {
		t.Errorf("error %v", err)
	}
}

// However writes, events, losses and watches follow one another, what others did is
// never taken for nothing; and as long as all is heard, nothing is taken for theirs
// that is not.
func TestLedgerWalk(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		r := newRuleSet()
		mark, whole := r.now(), true // whole: a watch ran and heard everything since the mark
		if _, err := r.ledger.Since(t.Context(), mark, IPv4, "nat"); err != nil {
			t.Fatal(err)
		}
		r.watch(true)
		other := func() {
			if rng.IntN(3) == 0 {
				r.commit([]commitment{{}, {at: chainA}, {at: place{IPv6, "nat", "VIPD-A"}}}[rng.IntN(3)])
			}
			if rng.IntN(3) == 0 && len(r.queue) > 0 {
				r.hear(1 + rng.IntN(len(r.queue)))
			}
			if rng.IntN(8) == 0 && len(r.queue) > 0 {
				r.drop()
				whole = false
			}
		}
		r.turning = other
		var log []string
		for range 40 {
			step := []string{"other", "ours", "large", "fail", "hear", "drop", "off", "on", "ask"}[rng.IntN(9)]
			log = append(log, step)
			switch step {
			case "other":
				other()
			case "ours":
				_ = r.write(0, 1+rng.IntN(2), nil, other)
			case "large":
				before := len(r.history)
				_ = r.write(largeWrite, 1, nil, other)
				whole = whole && len(r.history) == before+1 && len(r.queue) == 0
			case "fail":
				_ = r.write(0, rng.IntN(2), errors.New("killed"), other)
			case "hear":
				r.hear(len(r.queue))
			case "drop":
				r.drop()
				whole = false
			case "off":
				r.watch(false)
				whole = false
			case "on":
				r.watch(true)
				whole = false
			case "ask":
				s, err := r.ledger.Since(t.Context(), mark, IPv4, "nat")
				if err != nil {
					t.Fatal(err)
				}
				touched := r.touched(mark)
				if touched && s.Nothing() {
					t.Fatalf("seed %d: what others did is taken for nothing: %v", seed, log)
				}
				if whole && len(r.queue) == 0 && r.ledger.tell != nil && (s.Unknown || touched != (len(s.Chains) > 0)) {
					t.Fatalf("seed %d: %+v, but touched is %v: %v", seed, s, touched, log)
				}
				if rng.IntN(2) == 0 {
					mark, whole = s.Now, len(r.queue) == 0 && r.ledger.tell != nil
				}
			}
			if len(r.queue) == 0 && r.owed {
				t.Fatalf("seed %d: what others did was not told: %v", seed, log)
			}
		}
	}
}

func TestCountCommits(t *testing.T) {
	for script, want := range map[string]int{
		"":                                0,
		"*nat\nCOMMIT\n":                  0,
		"*nat\n:VIPD-A - [0:0]\nCOMMIT\n": 0, // it may stand already
		"*nat\n:VIPD-A - [0:0]\n-A VIPD-A -j RETURN\nCOMMIT\n*filter\n-F VIPD-B\nCOMMIT\n": 1,
		"*nat\n-X VIPD-A\nCOMMIT\n*nat\n-D X 1\nCOMMIT\n*nat\n-A X -j Y\n":                 2,
	} {
		if got := countCommits([]byte(script)); got != want {
			t.Errorf("%q: %d, want %d", script, got, want)
		}
	}
}
