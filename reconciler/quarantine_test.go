package reconciler

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vipd/lb"
)

func reject(texts ...string) map[lb.Key]bool {
	keys := map[lb.Key]bool{}
	for _, text := range texts {
		keys[key(text)] = true
	}
	return keys
}

func TestB59_OneBadServiceIsQuarantinedAllOthersAreApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.inject(func() { w.modes[ipt].reject = reject("2:80") })
		w.start()
		w.says(svc("1:80 a*1"), svc("2:80 b*1"), svc("3:80 c*1"))
		w.wants("never applied: not opened", "iptables 1:80 a*1 open", "iptables 3:80 c*1 open")
		if got := w.state("2:80"); got != "iptables quarantined "+errRejected.Error() {
			t.Errorf("status %q", got)
		}
		if s := w.r.Status(); s.Pass.Error != "" || !s.Ready {
			t.Errorf("the pass counts as failed: %+v", s.Pass)
		}
		w.says(svc("1:80 a*2"), svc("2:80 b*1"), svc("3:80 c*1"))
		w.pass()
		w.wants("the others go on", "iptables 1:80 a*2 open", "iptables 3:80 c*1 open")
		w.inject(func() { w.modes[ipt].reject = nil })
		w.says(svc("1:80 a*2"), svc("2:80 b*7"), svc("3:80 c*1"))
		w.pass()
		w.wants("a changed version is tried at once", "iptables 1:80 a*2 open", "iptables 2:80 b*7 open", "iptables 3:80 c*1 open")
		if got := w.state("2:80"); got != "iptables serving" {
			t.Errorf("status %q", got)
		}
	})
}

func TestB59_LastAppliedVersionStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.start()
		w.says(svc("1:80 a*1"), svc("2:80 b*1"))
		w.pass()
		w.inject(func() { w.modes[ipt].reject = reject("2:80") })
		w.says(svc("1:80 a*1"), svc("2:80 b*2"))
		w.pass()
		w.wants("old version", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
		for range 5 { // whatever else happens
			w.r.Trigger("drift")
			w.pass()
			w.wants("old version", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
		}
		w.says(svc("1:80 a*1"))
		w.wait(40 * time.Second)
		w.wants("removed: it drains and goes", "iptables 1:80 a*1 open")
	})
}

func TestB59_TriedAgainWhenItsOwnBackOffEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.s.SyncPeriod = 24 * time.Hour
		w.inject(func() { w.modes[ipt].reject = reject("2:80") })
		tried := []time.Duration{}
		start := time.Now()
		w.start()
		w.says(svc("1:80 a*1"), svc("2:80 b*1"))
		synctest.Wait()
		for range 9 {
			before := w.passes(ipt)
			for w.passes(ipt) == before {
				w.wait(time.Second)
			}
			tried = append(tried, time.Since(start))
			start = time.Now()
		}
		want := []time.Duration{5, 10, 20, 40, 80, 160, 300, 300, 300}
		for i := range want {
			if d := tried[i] - want[i]*time.Second; d < 0 || d > time.Second {
				t.Fatalf("tried again after %v, want %v seconds", tried, want)
			}
		}
		w.inject(func() { w.modes[ipt].reject = nil })
		w.wait(5 * time.Minute)
		w.wants("the kernel takes it now", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
	})
}

// An error that comes together with rejected services is one of the pass: it is
// in everybody's sight, and the pass is made again.
func TestErrorBesideRejectedServicesIsNotHidden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.s.SyncPeriod = 24 * time.Hour
		w.inject(func() {
			w.modes[ipt].reject = reject("2:80")
			w.modes[ipt].beside = errors.New("chain VIPD-X cannot be removed")
		})
		w.start()
		w.says(svc("1:80 a*1"), svc("2:80 b*1"))
		w.pass()
		if s := w.r.Status(); !strings.Contains(s.Pass.Error, "VIPD-X cannot be removed") {
			t.Errorf("the pass says %q", s.Pass.Error)
		}
		before := w.passes(ipt)
		w.inject(func() { w.modes[ipt].beside = nil })
		w.wait(firstRetry + firstRetry/2)
		if w.passes(ipt) == before {
			t.Error("the pass was not made again")
		}
		if s := w.r.Status(); s.Pass.Error != "" || w.state("2:80") != "iptables quarantined "+errRejected.Error() {
			t.Errorf("afterwards the pass says %q, the service %q", s.Pass.Error, w.state("2:80"))
		}
	})
}

func TestB59_QuarantineOutlivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.start()
		w.says(svc("1:80 a*1"), svc("2:80 b*1"))
		w.pass()
		w.inject(func() { w.modes[ipt].reject = reject("2:80", "3:80") })
		specs := []*lb.Spec{svc("1:80 a*1"), svc("2:80 b*2"), svc("3:80 c*1")}
		w.says(specs...)
		w.pass()
		w.wants("before", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
		w.written()
		for range 3 {
			w.restart()
			w.wants("restart", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
			w.says(specs...)
			for range 10 {
				w.pass()
				w.r.Trigger("whatever")
				w.wants("afterwards", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
			}
		}
		w.wantsWrites("in all", 0)
		w.inject(func() { w.modes[ipt].reject = nil })
		w.wait(5 * time.Minute)
		w.wants("in the end", "iptables 1:80 a*1 open", "iptables 2:80 b*2 open", "iptables 3:80 c*1 open")
		w.restart()
		w.wants("and it is remembered", "iptables 1:80 a*1 open", "iptables 2:80 b*2 open", "iptables 3:80 c*1 open")
	})
}

func TestB71_ServiceThatTheDoorRefusesIsNotServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.inject(func() { w.doorReject["shut"] = reject("2:80") })
		w.start()
		w.says(svc("1:80 a*1"), svc("2:80 b*1"))
		w.wants("refused", "iptables 1:80 a*1 open")
		if got := w.state("2:80"); !strings.HasPrefix(got, "iptables quarantined") {
			t.Errorf("status %q", got)
		}
		w.inject(func() { w.doorReject["shut"] = nil })
		w.wait(10 * time.Second)
		w.wants("later taken", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
	})
}

func TestB7_FamilyThatTheDoorCannotGuardKeepsWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.start()
		w.says(svc("1:80 a*1"), svc("2:80 b*1"))
		w.pass()
		specs := w.view.Sources[0].Services
		w.kill()
		w.written()
		// After the restart the tool of the family fails once: all of its VIPs are refused.
		open := w.open
		w.inject(func() { w.open = map[lb.Key]bool{} })
		w.inject(func() { w.doorReject["shut"] = reject("1:80", "2:80") })
		w.restart()
		w.says(specs...)
		synctest.Wait()
		w.inject(func() { w.doorReject["shut"] = nil })
		w.inject(func() { w.open = open })
		w.r.Trigger("the next pass comes before the probation")
		w.pass()
		w.wants("nothing is taken down", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
		w.wantsWrites("nothing is taken down", 0)
	})
}

func TestVIPThatCannotBePutUpIsQuarantined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.inject(func() { w.doorReject["open"] = reject("2:80") })
		w.start()
		w.says(svc("1:80 a*1"), svc("2:80 b*1"))
		w.wants("not open", "iptables 1:80 a*1 open", "iptables 2:80 b*1")
		if s := w.r.Status(); s.Pass.Error != "" || !strings.HasPrefix(w.state("2:80"), "iptables quarantined") {
			t.Errorf("pass %+v, service %q", s.Pass, w.state("2:80"))
		}
		before := w.passes(ipt)
		w.wait(time.Minute)
		if n := w.passes(ipt) - before; n > 8 {
			t.Errorf("%d passes in a minute for one bad VIP", n)
		}
		w.inject(func() { w.doorReject["open"] = nil })
		w.wait(time.Minute)
		w.wants("put up", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
	})
}

func TestServiceThatTheDoorRefusedIsForgottenWithItsEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.s.SyncPeriod = 24 * time.Hour
		w.doorReject["shut"] = reject("2:80")
		w.start()
		w.says(svc("1:80 a*1"), svc("2:80 b*1"))
		w.pass()
		w.says(svc("1:80 a*1"))
		w.wait(time.Minute)
		before := w.passes(ipt)
		w.wait(time.Hour)
		if n := w.passes(ipt) - before; n > 0 {
			t.Errorf("%d passes in an hour for a service that is gone", n)
		}
	})
}

func TestDoorThatFailedHalfwayIsNotTakenForOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.start()
		w.says(svc("1:53/udp a*1"), svc("2:80 b*1"))
		w.wait(time.Minute)
		w.inject(func() { w.doorFail["open"] = errors.New("half of it") })
		w.says(svc("2:80 b*1"))
		w.wait(time.Minute)
		w.wants("shut and gone", "iptables 2:80 b*1 open")
		w.inject(func() { w.doorFail["open"] = nil; w.doorReject["shut"] = reject("1:53/udp") })
		w.says(svc("1:53/udp a*1"), svc("2:80 b*1"))
		w.wait(time.Minute) // the fake door refuses to open what has no rules
		w.wants("refused when it comes back", "iptables 2:80 b*1 open")
	})
}

func TestB72_DoorErrorTouchesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.start()
		w.says(svc("1:80 a*1"), svc("2:80 b*1"))
		w.pass()
		w.written()
		w.calls()
		w.inject(func() { w.doorFail["shut"] = errors.New("cannot list addresses") })
		w.says(svc("1:80 a*1"))
		w.wait(time.Minute)
		w.wantsWrites("the door does not know what it has", 0)
		if s := w.r.Status(); !strings.Contains(s.Pass.Error, "cannot list addresses") || s.Ready {
			t.Errorf("status %+v", s.Pass)
		}
		w.inject(func() { delete(w.doorFail, "shut") })
		w.wait(time.Minute)
		w.wants("recovered", "iptables 1:80 a*1 open")
	})
}

func TestB63_UnknownOutcomeAfterARestartClosesNoDoor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"}, ipt, ipvs)
		w.start()
		w.says(svc("1:80 a*1"), inMode(svc("2:80 b*1"), ipvs))
		w.pass()
		specs := w.view.Sources[0].Services
		w.inject(func() { w.modes[ipt].fail = errors.New("iptables-restore: killed") })
		w.restart()
		w.says(specs...)
		w.written()
		w.wait(time.Minute)
		w.wants("the kernel keeps what it has", "iptables 1:80 a*1 open", "ipvs 2:80 b*1 open")
		w.wantsWrites("the kernel keeps what it has", 0)
		w.says(append(specs, svc("3:80 c*1"), inMode(svc("4:80 d*1"), ipvs))...)
		w.wait(time.Minute)
		w.wants("the other mode goes on", "iptables 1:80 a*1 open", "ipvs 2:80 b*1 open", "ipvs 4:80 d*1 open")
		w.inject(func() { w.modes[ipt].fail = nil })
		w.wait(time.Minute)
		w.wants("recovered", "iptables 1:80 a*1 open", "iptables 3:80 c*1 open", "ipvs 2:80 b*1 open", "ipvs 4:80 d*1 open")
	})
}

// A mode that cannot work at all is in everybody's sight and tried again for ever; the
// other mode goes on, and so does what the one had in place.
func TestF92_AModeThatGoesAwayIsCriticalAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"}, ipt, ipvs)
		w.start()
		w.says(svc("1:80 a*1"), inMode(svc("2:80 b*1"), ipvs))
		w.wait(5 * time.Second)
		w.inject(func() {
			w.modes[ipvs].fail = errors.New("the kernel has no IPVS")
			w.modes[ipvs].kernel = map[lb.Key]*lb.Service{}
		})
		w.says(svc("1:80 a*2"), inMode(svc("2:80 b*1"), ipvs))
		w.wait(time.Hour)
		w.wants("the other mode goes on", "iptables 1:80 a*2 open")
		if s := w.r.Status(); s.Ready || !strings.Contains(s.Pass.Error, "mode ipvs: the kernel has no IPVS") {
			t.Errorf("ready: %t, error %q", s.Ready, s.Pass.Error)
		}
		w.inject(func() { w.modes[ipvs].fail = nil })
		w.wait(2 * lastRetry)
		w.wants("back", "iptables 1:80 a*2 open", "ipvs 2:80 b*1 open")
		if s := w.r.Status(); !s.Ready || s.Pass.Error != "" {
			t.Errorf("ready: %t, error %q", s.Ready, s.Pass.Error)
		}
	})
}
