package desired

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vipd/lb"
)

// held marks services of a source as held, to yield after a while.
func (w *world) held(source string, yields time.Duration, keys ...lb.Key) *world {
	return w.change(source, func(s *Source) {
		s.Yields = map[lb.Key]time.Time{}
		for _, k := range keys {
			s.Yields[k] = w.facts.Now.Add(yields)
		}
	})
}

func TestB15_DuplicateClaimHasOneWinnerAndTheLoserIsReported(t *testing.T) {
	for _, first := range []string{"etcd", "consul"} {
		w := newWorld(t, "static", "etcd", "consul")
		w.states("etcd", svc("1:80 a*1")).states("consul", with(svc("1:80 b*1"), func(s *lb.Spec) { s.Name = "shop" }))
		w.wants("together: the order of the sources", w.now().Place[ipt], "1:80 a*1")
		w.wantsProblem("loser", "consul: ", "192.0.2.1:80/tcp", "service n192.0.2.1:80 of source etcd")
		for p := range maps.Values(w.memo.problems) {
			if p[0].Name != "shop" {
				t.Errorf("the loser is named %q", p[0].Name)
			}
		}

		w = newWorld(t, "static", "etcd", "consul")
		w.states(first, svc("1:80 a*1")).now()
		for _, other := range []string{"static", "etcd", "consul"} {
			if other != first {
				w.states(other, svc("1:80 b*1")).now()
			}
		}
		w.wants("the first that came stays", w.now().Place[ipt], "1:80 a*1")
		w.wants("whatever it changes", w.states(first, svc("1:80 d*1")).rest().Place[ipt], "1:80 d*1")
	}
}

func TestF9_OwnerSurvives20RestartsInRandomSourceOrder(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 2))
	t.Logf("seed %d", seed)
	w := newWorld(t, "static", "etcd", "consul")
	w.states("consul", svc("1:80 c*1")).now()
	w.states("static", svc("1:80 a*1")).states("etcd", svc("1:80 b*1")).now()
	for range 20 {
		w.restart(time.Second)
		full := w.facts.Sources
		order := rnd.Perm(3)
		w.facts.Sources = nil
		for _, i := range order {
			w.facts.Sources = append(w.facts.Sources, full[i])
		}
		r := w.now()
		w.wants("after a restart", r.Place[ipt], "1:80 c*1")
		if len(r.Touched) != 0 {
			t.Fatalf("a restart touched %v", r.Touched)
		}
		if got := w.problems(); len(got) != 2 {
			t.Fatalf("problems %q, want two losers", got)
		}
	}
}

func TestF10_OwnerThatIsHeldHandsOverAtItsTimeWithoutAGap(t *testing.T) {
	k := svc("1:80").Key
	w := newWorld(t, "etcd", "consul").states("etcd", svc("1:80 a*1")).states("consul", svc("1:80 b*1"))
	w.now()
	r := w.held("etcd", 30*time.Second, k).now()
	w.wants("held", r.Place[ipt], "1:80 a*1")
	if want := w.facts.Now.Add(30 * time.Second); !r.Due.Equal(want) {
		t.Errorf("due %s, want %s", r.Due, want)
	}
	w.wants("still held", w.after(30*time.Second - 1).Place[ipt], "1:80 a*1")
	r = w.after(1)
	w.wants("handed over", r.Place[ipt], "1:80 a*drain b*1")
	w.wants("with the VIP up", r.Door, "1:80 a*drain b*1")
	w.states("etcd").held("etcd", 0).now() // now the hub lets it go as well
	r = w.states("etcd", svc("1:80 a*1")).now()
	w.wants("the new owner is sticky", r.Place[ipt], "1:80 a*drain b*1")
	w.wants("in the end", w.rest().Place[ipt], "1:80 b*1")
}

func TestF10_OperatorsEditHandsOverAtOnce(t *testing.T) {
	w := newWorld(t, "static", "etcd").states("static", svc("1:80 a*1")).states("etcd", svc("1:80 b*1"))
	w.now()
	r := w.states("static").now() // the hub holds nothing of a trusted source
	w.wants("at once", r.Place[ipt], "1:80 a*drain b*1")
	if len(w.problems()) != 0 {
		t.Errorf("problems %q", w.problems())
	}
}

func TestHeldEntryThatNobodyOwnedLosesToALiveOne(t *testing.T) {
	k := svc("1:80").Key
	w := newWorld(t, "static", "etcd").states("static", svc("1:80 a*1")).held("static", time.Hour, k).states("etcd", svc("1:80 b*1"))
	w.wants("both new", w.now().Place[ipt], "1:80 b*1")
}

func TestF11_VIPSharedByTwoSourcesGoesWithTheLast(t *testing.T) {
	w := newWorld(t, "static", "etcd").states("static", svc("1:80 a*1")).states("etcd", svc("1:443 b*1"))
	w.wants("both", w.now().Door, "1:80 a*1", "1:443 b*1")
	w.states("static").now()
	w.wants("one left", w.rest().Door, "1:443 b*1")
	w.states("etcd").now()
	w.wants("none left", w.rest().Door)
}

func TestF12_DuplicateBackendsDecideTheSameInAnyOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	texts := []string{"1:80", "a*1", "a*5", "a*draining", "b*2", "b*2", "c*0", "c*0"}
	w := newWorld(t, "etcd").states("etcd", svc("1:80 a*5 b*2 c*0"))
	w.now()
	for range 50 {
		rnd.Shuffle(len(texts)-1, func(i, j int) { texts[1+i], texts[1+j] = texts[1+j], texts[1+i] })
		var text string
		for _, s := range texts {
			text += s + " "
		}
		w.wants(text, w.states("etcd", svc(text)).now().Place[ipt], "1:80 a*5 b*2 c*0")
	}
}

func TestF13_PermutedInputTouchesNothing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var all []*lb.Spec
	for i := range 40 {
		all = append(all, svc(fmt.Sprintf("%d:80 a*1 b*2 c*3 d*draining", i+1)))
	}
	w := newWorld(t, "etcd").states("etcd", all...)
	before := w.now()
	for range 20 {
		fresh := []*lb.Spec{}
		for _, s := range all {
			backends := slices.Clone(s.Backends)
			rnd.Shuffle(len(backends), func(i, j int) { backends[i], backends[j] = backends[j], backends[i] })
			c := with(s, func(s *lb.Spec) { s.Backends = backends })
			c.Normalize()
			fresh = append(fresh, c)
		}
		rnd.Shuffle(len(fresh), func(i, j int) { fresh[i], fresh[j] = fresh[j], fresh[i] })
		r := w.states("etcd", fresh...).now()
		for a, b := range r.Place[ipt].Diff(before.Place[ipt]) {
			t.Fatalf("%v became %v", a, b)
		}
		for a, b := range r.Door.Diff(before.Door) {
			t.Fatalf("door: %v became %v", a, b)
		}
	}
}

func TestF15_MalformedEntryLosesOnlyItself(t *testing.T) {
	cases := []struct{ name, bad, reason string }{
		{"outside allowed", "203.0.113.1:80 a*1", "outside [vip] allowed"},
		{"its own backend", "9:80 a*1 192.0.2.9*1", "backend 192.0.2.9 is a VIP of this host"},
		{"through another service", "9:80 192.0.2.1*1", "backend 192.0.2.1 is a VIP of this host"},
		{"mode not here", "", "mode userspace is not available"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			bad := inMode(svc("9:80 a*1"), lb.Userspace)
			if c.bad != "" {
				bad = svc(c.bad)
			}
			w := newWorld(t, "etcd").states("etcd", svc("1:80 a*1"), bad, svc("20:80 b*1"))
			w.wants("the others", w.now().Place[ipt], "1:80 a*1", "20:80 b*1")
			w.wantsProblem(c.name, "etcd: ", c.reason)
			w.states("etcd", svc("1:80 a*1"), svc("20:80 b*1")).now()
			if len(w.problems()) != 0 {
				t.Errorf("still problems %q", w.problems())
			}
		})
	}
}

func TestAllowedChangesWhatIsServed(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1"), svc("198.18.0.1:80 b*1"))
	w.wants("both", w.now().Place[ipt], "1:80 a*1", "198.18.0.1:80 b*1")
	w.facts.Allowed = w.facts.Allowed[:1]
	w.wants("the other drains", w.now().Place[ipt], "1:80 a*1", "198.18.0.1:80 b*drain")
	w.wants("and goes", w.rest().Place[ipt], "1:80 a*1")
	w.wantsProblem("outside", "198.18.0.1")
}

func TestB71_WhatIsInPlaceStaysWhenAVIPComesThatIsItsBackend(t *testing.T) {
	old, newcomer := svc("1:80 a*1 192.0.2.7*1"), svc("7:80 b*1")
	w := newWorld(t, "etcd").states("etcd", old)
	w.now()
	check := func(what string, line string) {
		t.Helper()
		w.wants(what, w.now().Place[ipt], line)
		w.wantsProblem(what, "VIP 192.0.2.7 is a backend of service 192.0.2.1:80/tcp")
	}
	w.states("etcd", old, newcomer)
	check("the VIP comes", "1:80 a*1 192.0.2.7:8080*1")
	changed := svc("1:80 a*2 192.0.2.7*1")
	w.states("etcd", changed, newcomer)
	check("the old service changes", "1:80 a*2 192.0.2.7:8080*1")
	w.restart(time.Second)
	check("after a restart", "1:80 a*2 192.0.2.7:8080*1")
	w.facts.Modes = map[lb.Mode]Ability{ipt: {}}
	check("when all is decided again", "1:80 a*2 192.0.2.7:8080*1")
	both := svc("1:80 a*2 192.0.2.7*1 192.0.2.8*1")
	w.states("etcd", both, newcomer, svc("8:80 b*1")).now()
	if got := w.problems(); len(got) != 2 {
		t.Errorf("a backend and a VIP that come together: problems %q, want two", got)
	}
	w.states("etcd", svc("1:80 a*2"), newcomer)
	w.wants("the backend goes, the VIP may come", w.now().Place[ipt], "1:80 a*2 192.0.2.7:8080*drain 192.0.2.8:8080*drain", "7:80 b*1")
}

func TestB71_OfTwoThatComeTogetherTheServiceWithTheBackendLoses(t *testing.T) {
	w := newWorld(t, "etcd").states("etcd", svc("1:80 192.0.2.7*1"), svc("7:80 b*1"))
	w.wants("7 is served", w.now().Place[ipt], "7:80 b*1")
	w.states("etcd", svc("1:80 192.0.2.7*disabled a*1"), svc("7:80 b*1"))
	w.wants("a disabled backend is no loop", w.now().Place[ipt], "1:80 a*1", "7:80 b*1")
	w = newWorld(t, "etcd").states("etcd", svc("1:80 192.0.2.7*1"), svc("7:80 192.0.2.1*1"))
	w.wants("a ring", w.now().Place[ipt])
	if got := w.problems(); len(got) != 2 {
		t.Errorf("problems %q, want two", got)
	}
}

func TestB71_RefusedServiceComesWhenTheVIPInItsWayIsGone(t *testing.T) {
	w := newWorld(t, "etcd").states("etcd", svc("7:80 b*1"))
	w.now()
	w.states("etcd", svc("1:80 192.0.2.7*1")).now() // 7 leaves, its VIP is up while it drains
	w.wantsProblem("draining", "192.0.2.7")
	w.wants("in the end", w.rest().Place[ipt], "1:80 192.0.2.7:8080*1")
	if len(w.problems()) != 0 {
		t.Errorf("problems %q", w.problems())
	}
}

func TestF15_RefusedOwnerLeavesTheVIPToTheNextClaim(t *testing.T) {
	w := newWorld(t, "static", "etcd").states("etcd", svc("1:80 a*1")).states("static", svc("1:80 b*1"))
	w.now()
	w.states("static", svc("1:80 b*1"), svc("2:80 c*1")).now()
	w.states("etcd", svc("1:80 a*1"))
	w.wants("the owner serves", w.now().Place[ipt], "1:80 b*1", "2:80 c*1")
	w.states("static", svc("1:80 b*1 192.0.2.2*1"), svc("2:80 c*1"))
	w.wants("its claim is bad, the next one stands", w.now().Place[ipt], "1:80 a*1 b*drain", "2:80 c*1")
	w.wantsProblem("bad", "static: backend 192.0.2.2")
	w.states("etcd", svc("1:80 192.0.2.1*1")).now()
	if got := w.problems(); len(got) != 2 {
		t.Errorf("two bad claims: problems %q", got)
	}
	w.wants("nobody is left", w.rest().Place[ipt], "2:80 c*1")
}

func TestPanicLeavesTheMemoAsItWas(t *testing.T) {
	w := newWorld(t, "etcd", "consul").states("etcd", svc("1:80 a*1"))
	w.now()
	func() {
		defer func() {
			if recover() == nil {
				t.Fatal("a nil spec is no longer a poison: find another")
			}
		}()
		f := w.facts
		f.Now = f.Now.Add(time.Second)
		f.Sources = []Source{{Name: "etcd", Services: []*lb.Spec{svc("1:80 b*1"), svc("2:80 b*1"), nil}}, f.Sources[1]}
		Compute(w.memo, f)
	}()
	w.states("etcd", svc("1:80 a*1"), svc("3:80 c*1"))
	w.wants("the next decision is whole", w.now().Place[ipt], "1:80 a*1", "3:80 c*1")
}

func TestIPv6AndIPv4LiveSideBySide(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1"), svc("[2001:db8::1]:80 2001:db8:1::1*1"))
	w.wants("both", w.now().Place[ipt], "1:80 a*1", "[2001:db8::1]:80 [2001:db8:1::1]:8080*1")
	if w.memo.vips[netip.MustParseAddr("2001:db8::1")] != 1 {
		t.Error("the IPv6 VIP is not counted")
	}
}
