package reconciler

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vipd/discovery"
	"vipd/lb"
)

func TestB53_NoPassBeforeEverySourceHasSpoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static", "etcd"})
		w.start()
		w.says(svc("1:80 a*1"))
		w.wait(5 * time.Second)
		w.wantsCalls("one of two has spoken", "")
		w.sourceSays("etcd", svc("2:80 b*1"))
		w.wants("both have", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
		w.wantsCalls("the first pass reads the kernel and may remove", "shut fresh, iptables fresh, open fresh")
		if !w.r.Status().Ready {
			t.Error("not ready")
		}
	})
}

func TestB53_AfterStartupTimeoutAddsAndRemovesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static", "etcd"})
		w.modes[ipt].kernel[key("9:80")] = &lb.Service{Key: key("9:80")} // of a run that left no state
		w.open[key("9:80")] = true
		w.start()
		w.says(svc("1:80 a*1"), svc("2:80 b*1"))
		w.wait(settings.StartupTimeout - time.Millisecond)
		w.wantsCalls("before the timeout", "")
		w.wait(time.Millisecond)
		w.wants("what is known is added", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open", "iptables 9:80 open")
		w.wantsCalls("and nothing removed", "shut fresh keep, iptables fresh keep, open fresh keep")
		if s := w.r.Status(); s.Ready || s.Pass.Prune {
			t.Error("ready although a source has not spoken")
		}
		w.says(svc("1:80 a*1"))
		w.wait(time.Hour)
		w.wants("what its own source removed drains and refuses, with its VIP up",
			"iptables 1:80 a*1 open", "iptables 2:80 open", "iptables 9:80 open")
		w.wait(5 * time.Second) // no resync in sight
		w.calls()
		w.sourceSays("etcd")
		synctest.Wait()
		if got := w.calls(); !strings.HasPrefix(got, "shut fresh, iptables fresh, open fresh") {
			t.Errorf("the first pass that may remove called %q", got)
		}
		w.pass()
		w.wants("now they go", "iptables 1:80 a*1 open")
		if !w.r.Status().Ready {
			t.Error("not ready")
		}
	})
}

func TestB53_SetOfTheLastRunCountsForAdditionsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static", "etcd"})
		w.start()
		w.says(svc("1:80 a*1"))
		w.sourceSays("etcd", svc("2:80 b*1"))
		w.wants("before", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
		w.kill()
		clear(w.modes[ipt].kernel) // a reboot
		w.inject(func() { clear(w.open) })
		w.calls()
		w.restart()
		w.wants("from state/ alone, at once", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
		w.wantsCalls("without removing", "shut fresh keep, iptables fresh keep, open fresh keep")
		w.says(svc("1:80 a*1"), svc("3:80 c*1"))
		w.pass()
		w.wants("one source speaks and adds", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open", "iptables 3:80 c*1 open")
		w.says(svc("3:80 c*1"))
		w.wait(time.Hour)
		if n := len(w.shows()); n != 3 {
			t.Errorf("something was removed while etcd is silent: %v", w.shows())
		}
	})
}

func TestF2_WithoutStateTheKernelIsKeptUntilTheSourcesSpeak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"etcd"})
		w.start()
		w.says(svc("1:80 a*1"), svc("2:80 b*1"))
		w.wants("before", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
		w.kill()
		w.inject(func() { clear(w.entries) })
		w.inject(func() { clear(w.claims) })
		w.restart()
		w.wait(time.Hour)
		w.wants("state/ is lost and the store is down", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open")
		w.says(svc("1:80 a*1"))
		w.wants("it is back", "iptables 1:80 a*1 open")
	})
}

func TestB76_SourceThatFailsKeepsItsServicesForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"etcd"})
		w.start()
		w.says(svc("1:80 a*1"))
		w.pass()
		w.written()
		for range 100 {
			w.changeView("etcd", func(s *discovery.SourceView) { s.Class, s.Err = discovery.Error, errors.New("down") })
			w.wait(time.Hour)
		}
		w.wantsWrites("a hundred hours", 0)
		if s := w.r.Status().Sources[0]; s.Class != discovery.Error || s.Error != "down" || s.Services != 1 {
			t.Errorf("status of the source: %+v", s)
		}
		if !w.r.Status().Ready {
			t.Error("a source that is down makes vipd unready although its set is served")
		}
	})
}

func TestOrderOfAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"}, ipt, ipvs)
		w.start()
		w.says(svc("1:80 a*1"), inMode(svc("2:80 b*1"), ipvs))
		w.wantsCalls("first", "shut fresh, iptables fresh, ipvs fresh, open fresh")
		w.says(inMode(svc("1:80 a*1"), ipvs), inMode(svc("2:80 b*1"), ipvs))
		w.pass()
		w.wantsCalls("the mode that gains comes first", "shut, ipvs, iptables, open")
		w.wants("both modes serve until the door leads to the new one",
			"iptables 1:80 a*1 open", "ipvs 1:80 a*1 open", "ipvs 2:80 b*1 open")
		w.pass()
		w.wantsCalls("then at once", "shut, iptables, ipvs, open")
		w.wants("a move is a drain in the old mode",
			"iptables 1:80 a*drain open", "ipvs 1:80 a*1 open", "ipvs 2:80 b*1 open")
		w.wait(31 * time.Second)
		w.wants("and ends", "ipvs 1:80 a*1 open", "ipvs 2:80 b*1 open")
		w.calls()
		w.says(inMode(svc("1:80 a*1"), ipt), inMode(svc("2:80 b*1"), ipvs))
		synctest.Wait()
		w.wantsCalls("back: the other mode gains", "shut, iptables, ipvs, open")
	})
}

// At every moment of a move one of the two modes takes new connections, whatever goes
// wrong: the door opens the way to the new mode, and that mode is asked first.
func TestB65_F60_AMoveIsWithoutAGap(t *testing.T) {
	for _, to := range []lb.Mode{ipt, ipvs} {
		from := map[lb.Mode]lb.Mode{ipt: ipvs, ipvs: ipt}[to]
		for _, wrong := range []string{"nothing", "rejected", "unknown", "door", "restart", "killed between"} {
			t.Run(string(to)+" "+wrong, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, []string{"static"}, ipt, ipvs)
					w.start()
					tcp, udp := svc("1:80 a*1"), svc("2:53/udp a*1")
					w.says(inMode(tcp, from), inMode(udp, from))
					w.wait(5 * time.Second)
					w.inject(func() { w.steady = map[lb.Key]bool{tcp.Key: true, udp.Key: true} })
					w.inject(func() {
						switch wrong {
						case "rejected":
							w.modes[to].reject = reject("1:80", "2:53/udp")
						case "unknown":
							w.modes[to].fail = errors.New("killed half way")
						case "door":
							w.doorFail["open"] = errors.New("no answer")
						}
					})
					moved := []*lb.Spec{inMode(tcp, to), inMode(udp, to)}
					w.says(moved...)
					synctest.Wait()
					if wrong == "restart" || wrong == "killed between" {
						if wrong == "restart" {
							w.pass()
						}
						w.restart()
						w.says(moved...)
					}
					w.wait(2 * time.Second)
					w.fortune()
					w.wait(10 * time.Minute)
					w.wants("in the end", string(to)+" 1:80 a*1 open", string(to)+" 2:53/udp a*1 open")
					if n := w.looked; n < 10 {
						t.Errorf("looked %d times only", n)
					}
				})
			})
		}
	}
}

func TestF60_MoveThatTheNewModeRejectsLeavesTheVIPUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"}, ipt, ipvs)
		w.start()
		w.says(svc("1:80 a*1"))
		w.pass()
		w.inject(func() { w.modes[ipvs].reject = reject("1:80") })
		w.says(inMode(svc("1:80 a*1"), ipvs))
		w.pass()
		w.wants("it stays where it was", "iptables 1:80 a*1 open")
		w.wait(time.Hour)
		w.wants("however long", "iptables 1:80 a*1 open")
		w.inject(func() { w.modes[ipvs].reject = nil })
		w.wait(10 * time.Minute)
		w.wants("until the new mode takes it", "ipvs 1:80 a*1 open")
	})
}

func TestF60_TwoServicesThatChangePlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"}, ipt, ipvs)
		w.s.SyncPeriod = 24 * time.Hour
		w.start()
		w.says(svc("1:80 a*1"), inMode(svc("2:80 b*1"), ipvs))
		w.pass()
		w.says(inMode(svc("1:80 a*1"), ipvs), svc("2:80 b*1"))
		w.wait(2 * time.Second)
		w.wants("both move", "iptables 1:80 a*drain open", "iptables 2:80 b*1 open", "ipvs 1:80 a*1 open", "ipvs 2:80 b*drain open")
		before := w.passes(ipt)
		w.wait(time.Hour)
		w.wants("in the end", "iptables 2:80 b*1 open", "ipvs 1:80 a*1 open")
		if n := w.passes(ipt) - before; n > 4 {
			t.Errorf("%d passes to end two drains", n)
		}
	})
}

func TestB64_RestartChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static", "etcd"}, ipt, ipvs)
		w.start()
		w.says(svc("1:80 a*1 b*2"), svc("2:80 c*1"), inMode(svc("3:80 d*1"), ipvs))
		w.sourceSays("etcd", svc("4:53/udp e*1"))
		w.pass()
		w.says(svc("1:80 a*1"), inMode(svc("3:80 d*1"), ipt)) // a drain, a removal, a move
		w.pass()
		before := w.shows()
		for range 3 {
			w.written()
			w.restart()
			w.pass()
			seeds := map[string]discovery.SourceView{}
			for _, s := range w.view.Sources {
				seeds[s.Name] = s
			}
			w.says(seeds["static"].Services...)
			w.sourceSays("etcd", seeds["etcd"].Services...)
			w.wait(2 * time.Second)
			w.wants("in mid-drain", before...)
			w.wantsWrites("in mid-drain", 0)
		}
		w.wait(31 * time.Second)
		w.wants("the drains end in their time", "iptables 1:80 a*1 open", "iptables 3:80 d*1 open", "iptables 4:53/udp e*1 open")
	})
}

func TestStateIsWrittenBeforeTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.beforeSync = func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.entries) != 1 || len(w.claims["static"]) != 1 {
				t.Errorf("at the first write state/ has %d entries and %d claims", len(w.entries), len(w.claims["static"]))
			}
		}
		w.start()
		w.says(svc("1:80 a*1"))
		w.wants("done", "iptables 1:80 a*1 open")
	})
}

func TestF119_StateThatCannotBeWrittenStopsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.inject(func() { w.stateFail = errors.New("no space left on device") })
		w.start()
		w.says(svc("1:80 a*1"))
		w.wants("served all the same", "iptables 1:80 a*1 open")
		if s := w.r.Status(); s.Pass.StateError == "" || s.Pass.Error != "" {
			t.Errorf("status %+v", s.Pass)
		}
		w.inject(func() { w.stateFail = nil })
		w.says(svc("1:80 a*2"))
		w.pass()
		if s := w.r.Status(); s.Pass.StateError != "" {
			t.Errorf("status %+v", s.Pass)
		}
	})
}
