package discovery

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vipd/lb"
)

// key returns the n-th VIP:port of the tests.
func key(n int) lb.Key {
	return lb.Key{Addr: netip.AddrFrom4([4]byte{192, 0, byte(2 + n/250), byte(1 + n%250)}), Port: 80, Protocol: lb.TCP}
}

// spec returns the n-th service, with backends 10.0.0.b:8080.
func spec(n int, backends ...int) *lb.Spec {
	s := &lb.Spec{Key: key(n), Name: fmt.Sprintf("s%d", n), Scheduler: lb.WRR, Masquerade: lb.MasqueradeAlways, DrainTimeout: time.Minute}
	for _, b := range backends {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(b)}), 8080)
		s.Backends = append(s.Backends, lb.BackendSpec{Addr: addr, Weight: 1, State: lb.Active})
	}
	s.Normalize()
	return s
}

// specs returns the services from first to last.
func specs(first, last int) []*lb.Spec {
	var all []*lb.Spec
	for n := first; n <= last; n++ {
		all = append(all, spec(n, 1, 2))
	}
	return all
}

func alone(lb.Key) bool { return false }

// book drives one ledger through answers, at times the test sets.
type book struct {
	t      *testing.T
	ledger *ledger
	policy Policy
	rival  func(lb.Key) bool
	now    time.Time
}

func newBook(t *testing.T, p Policy, services ...*lb.Spec) *book {
	b := &book{t: t, ledger: &ledger{}, policy: p, rival: alone, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	b.answers(0, true, services...)
	return b
}

// answers has the source answer after a while.
func (b *book) answers(after time.Duration, verified bool, services ...*lb.Spec) Class {
	b.now = b.now.Add(after)
	before, set := slices.Clone(b.ledger.services), slices.Clone(services)
	next, class := b.ledger.accept(Set{Services: services, Verified: verified}, b.policy, b.now, b.rival)
	if !slices.Equal(before, b.ledger.services) || !slices.Equal(set, services) {
		b.t.Fatal("accept changed its input")
	}
	if !slices.IsSortedFunc(next.services, func(a, b *lb.Spec) int { return a.Key.Compare(b.Key) }) {
		b.t.Fatal("the accepted set is not sorted")
	}
	for k := range next.held {
		if next.get(k) == nil {
			b.t.Fatalf("%s is held, and not there", k)
		}
	}
	b.ledger = next
	return class
}

func (b *book) wants(what string, services, held int) {
	b.t.Helper()
	if len(b.ledger.services) != services || len(b.ledger.held) != held {
		b.t.Fatalf("%s: %d services, %d of them held; want %d and %d", what, len(b.ledger.services), len(b.ledger.held), services, held)
	}
}

func TestF5_EmptyAnswerIsHeldForeverUntilTheServicesComeBack(t *testing.T) {
	b := newBook(t, DefaultPolicy, specs(1, 10)...)
	before := b.ledger.services
	for range 100 {
		if class := b.answers(time.Hour, true); class != OKEmpty {
			t.Fatalf("class %s", class)
		}
	}
	b.wants("after 100 hours", 10, 10)
	if &before[0] != &b.ledger.services[0] {
		t.Error("the accepted set is another slice although it is the same")
	}
	b.answers(time.Second, true, specs(1, 10)...)
	b.wants("when they came back", 10, 0)
}

func TestF5_OneServiceIsAWholeSourceToo(t *testing.T) {
	b := newBook(t, DefaultPolicy, spec(1, 1))
	b.answers(time.Hour, true)
	b.wants("empty", 1, 1)
}

func TestF6_BigRemovalIsHeldWhileAdditionsApplyAndThenDripsAway(t *testing.T) {
	b := newBook(t, DefaultPolicy, specs(1, 100)...)
	rest := append(specs(61, 100), spec(200, 1)) // 60 of 100 went, one came
	if class := b.answers(time.Second, true, rest...); class != OKShrink {
		t.Fatalf("class %s", class)
	}
	b.wants("at first", 101, 60)
	b.answers(29*time.Second, true, rest...)
	b.wants("before the hold ends", 101, 60)
	b.answers(2*time.Second, false, rest...)
	b.wants("unverified", 101, 60)
	b.answers(time.Second, true, rest...)
	b.wants("confirmed", 91, 50)
	for range 100 { // F14: however often the source says it
		b.answers(time.Millisecond, true, rest...)
	}
	b.wants("100 answers within the second", 91, 50)
	for left := 40; left >= 0; left -= 10 {
		b.answers(time.Second, false, rest...)
		b.wants("dripping", 41+left, left)
	}
	if due := b.ledger.due(b.policy); !due.IsZero() {
		t.Errorf("something is still due at %s", due)
	}
}

func TestF6_SecondBigRemovalNeedsAConfirmationOfItsOwn(t *testing.T) {
	b := newBook(t, DefaultPolicy, specs(1, 100)...)
	b.answers(0, false, specs(51, 100)...)
	b.answers(31*time.Second, true, specs(51, 100)...)
	b.wants("the first drips", 90, 40)
	b.answers(0, false, specs(91, 100)...) // another 40 go, unverified
	for range 100 {
		b.answers(time.Second, false, specs(91, 100)...)
	}
	b.wants("the second is held", 50, 40)
	b.answers(time.Second, true, specs(91, 100)...)
	b.wants("until it is confirmed", 40, 30)
}

func TestF6_ReturnDuringTheDripEndsIt(t *testing.T) {
	b := newBook(t, DefaultPolicy, specs(1, 100)...)
	b.answers(0, true, specs(51, 100)...)
	b.answers(31*time.Second, true, specs(51, 100)...)
	b.answers(time.Second, true, specs(11, 100)...)
	b.wants("what drips goes on, the rest is back", 90, 0)
	b.answers(time.Second, true, specs(51, 100)...)
	b.wants("a new removal is held anew", 90, 40)
	b.answers(5*time.Second, true, specs(51, 100)...)
	b.wants("for its own time", 90, 40)
}

func TestR3_SmallRemovalsGoAtOnce(t *testing.T) {
	for _, c := range []struct{ before, gone int }{{3, 1}, {3, 2}, {10, 3}, {100, 30}} {
		b := newBook(t, DefaultPolicy, specs(1, c.before)...)
		b.answers(0, false, specs(c.gone+1, c.before)...)
		b.wants(fmt.Sprintf("%d of %d", c.gone, c.before), c.before-c.gone, 0)
	}
	for _, c := range []struct{ before, gone int }{{4, 3}, {9, 3}, {100, 31}} {
		b := newBook(t, DefaultPolicy, specs(1, c.before)...)
		b.answers(0, false, specs(c.gone+1, c.before)...)
		b.wants(fmt.Sprintf("%d of %d", c.gone, c.before), c.before, c.gone)
	}
}

func TestF7_LastBackendIsHeldUntilAVerifiedAnswerOthersApply(t *testing.T) {
	b := newBook(t, DefaultPolicy, spec(1, 1, 2), spec(2, 1), spec(3, 1))
	bare := spec(1)
	bare.Scheduler = lb.RR
	b.answers(0, true, bare, spec(2, 9), spec(3, 1))
	b.wants("held", 3, 1)
	if s := b.ledger.get(key(1)); len(s.Backends) != 2 || s.Scheduler != lb.WRR {
		t.Errorf("the version held is %+v", s)
	}
	if s := b.ledger.get(key(2)); s.Backends[0].Addr.Addr().String() != "10.0.0.9" {
		t.Errorf("the other service did not change: %+v", s)
	}
	if !b.ledger.held[key(1)].Yields.IsZero() {
		t.Error("a service that its source still states would yield to a rival")
	}
	b.answers(31*time.Second, false, bare, spec(2, 9), spec(3, 1))
	b.wants("unverified", 3, 1)
	b.answers(time.Second, true, bare, spec(2, 9), spec(3, 1))
	b.wants("verified", 3, 0)
	if s := b.ledger.get(key(1)); s != bare {
		t.Errorf("after the hold it is %+v, not what the source says", s)
	}
}

func TestF10_HandOverWaitsForTheHoldOfAStoreAndNotForAnOperator(t *testing.T) {
	claimed := func(k lb.Key) bool { return k == key(2) }
	b := newBook(t, DefaultPolicy, specs(1, 10)...)
	b.rival = claimed
	b.answers(0, false, slices.Concat(specs(3, 10))...)
	b.wants("1 has no rival, 2 has one", 9, 1)
	if h := b.ledger.held[key(2)]; h.Kind != HoldHandOver || !h.Yields.Equal(b.now.Add(30*time.Second)) || !b.ledger.due(b.policy).Equal(h.Yields) {
		t.Errorf("hold %+v, due %s", h, b.ledger.due(b.policy))
	}
	b.answers(30*time.Second, false, specs(3, 10)...)
	b.wants("after the hold", 8, 0)

	b = newBook(t, Policy{Trusted: true, Hold: 30 * time.Second}, specs(1, 10)...)
	b.rival = claimed
	b.answers(0, true, specs(3, 10)...)
	b.wants("operator", 8, 0)
}

func TestF13_ShuffledAnswerIsTheSameAnswer(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	all := specs(1, 50)
	rival := spec(7, 3)
	rival.Name = "a-rival-by-name"
	b := newBook(t, DefaultPolicy, append(slices.Clone(all), rival)...)
	before := b.ledger
	if len(before.doubles) != 1 || !strings.Contains(before.doubles[0].Reason, "a-rival-by-name") || before.doubles[0].Entry != "s7" {
		t.Fatalf("doubles %+v", before.doubles)
	}
	for range 200 {
		fresh := append(specs(1, 50), rival)
		rnd.Shuffle(len(fresh), func(i, j int) { fresh[i], fresh[j] = fresh[j], fresh[i] })
		b.answers(time.Millisecond, true, fresh...)
		if b.ledger != before {
			t.Fatal("a shuffled answer made another ledger")
		}
	}
}

func TestF9_WithinOneSourceTheAcceptedNameStays(t *testing.T) {
	b := newBook(t, DefaultPolicy, spec(1, 1), spec(2, 1))
	early := spec(1, 5)
	early.Name = "aaa" // first by name, but second to come
	b.answers(0, true, early, spec(1, 2), spec(2, 1))
	if s := b.ledger.get(key(1)); s.Name != "s1" || len(b.ledger.doubles) != 1 || b.ledger.doubles[0].Entry != "aaa" {
		t.Errorf("%s has the VIP:port; doubles %+v", s.Name, b.ledger.doubles)
	}
	b.answers(0, true, early, spec(2, 1))
	if s := b.ledger.get(key(1)); s != early || len(b.ledger.doubles) != 0 {
		t.Errorf("%s has the VIP:port; doubles %+v", s.Name, b.ledger.doubles)
	}
}

func TestF55_OperatorsEmptyFileIsHeldUnlessAllowed(t *testing.T) {
	trusted := Policy{Trusted: true, Hold: 30 * time.Second}
	b := newBook(t, trusted, specs(1, 100)...)
	b.answers(0, true, specs(100, 100)...)
	b.wants("99 of 100 go at once", 1, 0)
	if class := b.answers(0, true); class != OKEmpty {
		t.Errorf("class %s", class)
	}
	b.wants("the last is held", 1, 1)
	b.policy.AllowEmpty = true
	if class := b.answers(0, true); class != OK {
		t.Errorf("class %s", class)
	}
	b.wants("allowed", 0, 0)
}

// TestRandomAnswers walks through answers of every kind: what a source states is
// always served as stated (but for a last backend), and nothing disappears before
// its time.
func TestRandomAnswers(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	for range 8 {
		b := newBook(t, DefaultPolicy)
		b.rival = func(k lb.Key) bool { return k.Addr.As4()[3]%7 == 0 }
		for range 100 {
			var stated []*lb.Spec
			for _, s := range specs(1, 30) {
				if rnd.IntN(10) > 2 {
					stated = append(stated, s)
				}
			}
			if rnd.IntN(10) == 0 {
				stated = nil
			}
			if len(stated) > 0 && rnd.IntN(3) == 0 {
				stated[0] = spec(int(stated[0].Key.Addr.As4()[3]) - 1) // its last backend went
			}
			before := b.ledger
			b.answers(time.Duration(rnd.IntN(20))*time.Second, rnd.IntN(2) == 0, stated...)
			for _, s := range stated {
				got := b.ledger.get(s.Key)
				if h := b.ledger.held[s.Key]; got == nil || !got.Equal(s) && h.Kind != HoldBackends {
					t.Fatalf("%s is %v, stated as %v", s.Key, got, s)
				}
			}
			checkGone(t, before, b.ledger, b.now)
		}
	}
}

// checkGone fails if anything went that had to be held.
func checkGone(t *testing.T, before, after *ledger, now time.Time) {
	t.Helper()
	var early int
	for _, s := range before.services {
		h, held := before.held[s.Key]
		if after.get(s.Key) == nil && (!held || now.Before(h.Since.Add(DefaultPolicy.Hold))) {
			early++
		}
	}
	if early >= minBigRemoval && float64(early) > DefaultPolicy.MaxRemoval*float64(len(before.services)) {
		t.Fatalf("%d of %d services went unheld", early, len(before.services))
	}
	if len(before.services) > 0 && len(after.services) == 0 {
		t.Fatal("the last services went")
	}
}
