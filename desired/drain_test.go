package desired

import (
	"testing"
	"time"

	"vipd/lb"
)

func TestB38_BackendThatLeavesDrainsUntilItsDeadline(t *testing.T) {
	for _, c := range []struct{ name, then string }{
		{"removed", "1:80 a*1"},
		{"disabled", "1:80 a*1 b*disabled"},
		{"draining", "1:80 a*1 b*draining"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, "static").states("static", svc("1:80 a*1 b*3"))
			w.wants("before", w.now().Place[ipt], "1:80 a*1 b*3")
			r := w.states("static", svc(c.then)).now()
			w.wants("at once", r.Place[ipt], "1:80 a*1 b*drain")
			if want := w.facts.Now.Add(30 * time.Second); !r.Due.Equal(want) {
				t.Errorf("due %s, want %s", r.Due, want)
			}
			w.states("static", with(svc(c.then), func(s *lb.Spec) { s.Scheduler = lb.RR })) // other changes do not renew it
			w.wants("before its time", w.after(30*time.Second - 1).Place[ipt], "1:80 a*1 b*drain")
			r = w.after(1)
			w.wants("after its time", r.Place[ipt], "1:80 a*1")
			if !r.Due.IsZero() {
				t.Errorf("still due at %s", r.Due)
			}
			w.wants("much later", w.after(time.Hour).Place[ipt], "1:80 a*1")
		})
	}
}

func TestB38_BackendDrainsOnceWhateverReasonComesNext(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1 b*1"))
	w.now()
	w.states("static", svc("1:80 a*1 b*draining")).now()
	w.states("static", svc("1:80 a*1 b*disabled")).after(10 * time.Second)
	w.states("static", svc("1:80 a*1")).after(10 * time.Second)
	w.wants("29 s in", w.states("static", svc("1:80 a*1 b*draining")).after(9 * time.Second).Place[ipt], "1:80 a*1 b*drain")
	w.wants("30 s in", w.after(time.Second).Place[ipt], "1:80 a*1")
	w.wants("removed after it drained", w.states("static", svc("1:80 a*1")).now().Place[ipt], "1:80 a*1")
}

func TestB40_BackendThatReturnsInMidDrainHasItsWeightAgain(t *testing.T) {
	for _, gone := range []string{"1:80 a*1", "1:80 a*1 b*draining", "1:80 a*1 b*disabled"} {
		w := newWorld(t, "static").states("static", svc("1:80 a*1 b*7"))
		w.now()
		w.states("static", svc(gone)).now()
		r := w.states("static", svc("1:80 a*1 b*7")).after(29 * time.Second)
		w.wants("back", r.Place[ipt], "1:80 a*1 b*7")
		if !r.Due.IsZero() {
			t.Errorf("the old deadline %s still stands", r.Due)
		}
		w.wants("and stays", w.after(time.Hour).Place[ipt], "1:80 a*1 b*7")
		r = w.states("static", svc(gone)).now()
		if want := w.facts.Now.Add(30 * time.Second); !r.Due.Equal(want) {
			t.Errorf("the second drain ends at %s, want %s", r.Due, want)
		}
	}
}

func TestWeightZeroKeepsItsConnectionsWithoutDeadline(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1 b*1"))
	w.now()
	w.states("static", svc("1:80 a*1 b*0"))
	w.wants("weight 0", w.now().Place[ipt], "1:80 a*1 b*0")
	r := w.after(time.Hour)
	w.wants("for as long as it is listed", r.Place[ipt], "1:80 a*1 b*0")
	if !r.Due.IsZero() {
		t.Errorf("due %s", r.Due)
	}
	w.wants("and drains then", w.states("static", svc("1:80 a*1")).now().Place[ipt], "1:80 a*1 b*drain")
}

func TestB9_RemovedServiceDrainsWithItsVIPUpRefusesOnePassAndGoes(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1 b*1"), svc("2:80 c*1"))
	w.now()
	w.states("static", svc("2:80 c*1"))
	w.wants("drains", w.now().Place[ipt], "1:80 a*drain b*drain", "2:80 c*1")
	r := w.after(30 * time.Second)
	w.wants("refuses", r.Place[ipt], "1:80", "2:80 c*1")
	w.wants("with its VIP up", r.Door, "1:80", "2:80 c*1")
	if !r.Due.Equal(w.facts.Now) {
		t.Errorf("the pass that ends it is due %s, want at once", r.Due)
	}
	r = w.now()
	w.wants("gone", r.Place[ipt], "2:80 c*1")
	w.wants("gone", r.Door, "2:80 c*1")
	if !r.Due.IsZero() || len(w.record) != 1 {
		t.Errorf("due %s, %d records", r.Due, len(w.record))
	}
}

func TestB10_ServiceThatReturnsInMidDrainIsAsBefore(t *testing.T) {
	for _, at := range []time.Duration{0, 10 * time.Second, 30 * time.Second} {
		w := newWorld(t, "static").states("static", svc("1:80 a*1 b*2"))
		w.now()
		w.states("static").now()
		w.after(at)
		r := w.states("static", svc("1:80 a*1 b*2")).now()
		w.wants("back after "+at.String(), r.Place[ipt], "1:80 a*1 b*2")
		w.wants("and stays", w.rest().Place[ipt], "1:80 a*1 b*2")
	}
}

func TestUDPMovesAtOnce(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:53/udp a*1 b*1"))
	w.now()
	w.wants("backend removed", w.states("static", svc("1:53/udp a*1")).now().Place[ipt], "1:53/udp a*1")
	w.wants("backend draining", w.states("static", svc("1:53/udp a*draining b*1")).now().Place[ipt], "1:53/udp b*1")
	w.wants("service removed", w.states("static").now().Place[ipt], "1:53/udp")
	w.wants("and gone", w.now().Place[ipt])
}

func TestDrainTimeoutZeroCutsAtOnce(t *testing.T) {
	zero := func(s *lb.Spec) { s.DrainTimeout = 0 }
	w := newWorld(t, "static").states("static", with(svc("1:80 a*1 b*1 c*1"), zero))
	w.now()
	w.wants("backend", w.states("static", with(svc("1:80 a*1 b*draining"), zero)).now().Place[ipt], "1:80 a*1")
	w.wants("service", w.states("static").now().Place[ipt], "1:80")
	w.wants("gone", w.now().Place[ipt])
}

func TestB17_ServiceWithoutBackendsKeepsItsVIP(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80"))
	w.wants("none", w.now().Door, "1:80")
	w.wants("none", w.rest().Place[ipt], "1:80")
	w.states("static").now()
	w.wants("removed", w.rest().Door)
}

func TestMoveBetweenModesIsADrainInTheOldOne(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1 b*2"), svc("2:80 c*1"))
	w.now()
	r := w.states("static", inMode(svc("1:80 a*1 d*5"), ipvs), svc("2:80 c*1")).now()
	w.wants("new mode", r.Place[ipvs], "1:80 a*1 d*5")
	w.wants("old mode", r.Place[ipt], "1:80 a*drain b*drain", "2:80 c*1")
	w.wants("the door shows the new one", r.Door, "1:80 a*1 d*5", "2:80 c*1")
	if !r.Gained[ipvs] || r.Gained[ipt] {
		t.Errorf("gained %v, want ipvs", r.Gained)
	}
	w.restart(time.Second)
	w.wants("after a restart", w.now().Place[ipt], "1:80 a*drain b*drain", "2:80 c*1")
	r = w.after(29 * time.Second)
	w.wants("old mode refuses", r.Place[ipt], "1:80", "2:80 c*1")
	r = w.now()
	w.wants("and is done", r.Place[ipt], "2:80 c*1")
	w.wants("while the new one serves", r.Place[ipvs], "1:80 a*1 d*5")
	if len(r.Gained) > 0 {
		t.Errorf("gained %v", r.Gained)
	}
}

func TestMoveBackInMidDrain(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1 b*2"))
	w.now()
	w.states("static", inMode(svc("1:80 a*1 b*2"), ipvs)).now()
	r := w.states("static", svc("1:80 a*1 b*2")).after(10 * time.Second)
	w.wants("back in the old mode", r.Place[ipt], "1:80 a*1 b*2")
	w.wants("and draining in the other", r.Place[ipvs], "1:80 a*drain b*drain")
	r = w.rest()
	w.wants("in the end", r.Place[ipt], "1:80 a*1 b*2")
	w.wants("in the end", r.Place[ipvs])
}

func TestDefaultModeMovesOnlyTheServicesThatNameNone(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1"), inMode(svc("2:80 b*1"), ipt))
	w.now()
	w.facts.Mode = ipvs
	r := w.now()
	w.wants("ipvs", r.Place[ipvs], "1:80 a*1")
	w.wants("iptables", r.Place[ipt], "1:80 a*drain", "2:80 b*1")
}

func TestDescribeTellsWhatIsLeft(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1 b*1 c*draining"))
	w.now()
	w.states("static", svc("1:80 a*1 c*draining")).after(20 * time.Second)
	w.after(10 * time.Second)
	got := map[string]time.Duration{}
	for s := range w.memo.Services(w.facts.Now) {
		for _, b := range s.Backends {
			got[b.Addr.Addr().String()+" "+b.State] = b.Left
		}
	}
	want := map[string]time.Duration{"10.0.0.1 active": 0, "10.0.0.2 draining": 20 * time.Second, "10.0.0.3 drained": 0}
	if len(got) != len(want) {
		t.Fatalf("described %v, want %v", got, want)
	}
	for k, left := range want {
		if d, found := got[k]; !found || d != left {
			t.Errorf("%s: %v left (%v), want %v", k, d, found, left)
		}
	}
}

// A drain of which the mode has seen the last connection end is over at once, and stays
// so; what is known of a backend that does not drain, or not in that mode, ends nothing.
func TestB39_ADrainThatIsIdleIsOver(t *testing.T) {
	b := svc("1:80 b*1").Backends[0].Addr
	idle := func(mode lb.Mode) map[Drain]bool { return map[Drain]bool{{mode, svc("1:80").Key, b}: true} }
	for _, gone := range []string{"1:80 a*1", "1:80 a*1 b*draining"} {
		w := newWorld(t, "static").states("static", svc("1:80 a*1 b*7"))
		w.now()
		w.facts.Idle = idle(ipt)
		w.wants("it does not drain", w.now().Place[ipt], "1:80 a*1 b*7")
		w.facts.Idle = nil
		w.wants("it begins to", w.states("static", svc(gone)).now().Place[ipt], "1:80 a*1 b*drain")
		w.facts.Idle = idle(ipvs)
		w.wants("another mode's", w.after(time.Second).Place[ipt], "1:80 a*1 b*drain")
		all := w.memo.Draining(ipt)
		if until := all[Drain{ipt, svc("1:80").Key, b}]; !until.Equal(w.facts.Now.Add(29*time.Second)) || len(all) != 1 || len(w.memo.Draining(ipvs)) != 0 {
			t.Errorf("draining: %v", all)
		}
		w.facts.Idle = idle(ipt)
		w.wants("idle", w.now().Place[ipt], "1:80 a*1")
		w.facts.Idle = nil
		w.wants("it stays gone", w.now().Place[ipt], "1:80 a*1")
		w.restart(time.Second)
		w.wants("also over a restart", w.now().Place[ipt], "1:80 a*1")
		if all := w.memo.Draining(ipt); len(all) != 0 {
			t.Errorf("still draining: %v", all)
		}
		w.wants("it comes back", w.states("static", svc("1:80 a*1 b*2")).now().Place[ipt], "1:80 a*1 b*2")
		w.wants("and drains anew", w.states("static", svc(gone)).now().Place[ipt], "1:80 a*1 b*drain")
	}
	w := newWorld(t, "static").states("static", svc("1:80 b*1"))
	w.now()
	w.states("static").now()
	w.facts.Idle = idle(ipt)
	w.wants("a service refuses for a pass", Compute(w.memo, w.facts).Place[ipt], "1:80")
	w.facts.Idle = nil
	w.wants("and goes", w.now().Place[ipt])
}
