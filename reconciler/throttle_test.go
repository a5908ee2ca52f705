package reconciler

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// began returns when each pass of a mode began, since the first.
func (w *world) began() []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var at []time.Duration
	for _, t := range w.modes[ipt].syncs {
		at = append(at, t.Sub(w.modes[ipt].syncs[0]))
	}
	return at
}

// quiet starts a world that serves one service and has been quiet since, with no
// resync in sight.
func quiet(t *testing.T) *world {
	w := newWorld(t, []string{"static"})
	w.s.SyncPeriod = 24 * time.Hour
	w.start()
	w.says(svc("1:80 a*1"))
	w.wait(time.Minute)
	w.inject(func() { w.modes[ipt].syncs = nil })
	return w
}

func TestB56_FirstChangeAfterQuietIsAppliedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		w.says(svc("1:80 a*2"))
		w.wants("at once", "iptables 1:80 a*2 open") // no time has passed
	})
}

func TestB56_ReloadAfterQuietIsAppliedAtOnceAndReadsTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		w.inject(func() { delete(w.modes[ipt].kernel, key("1:80")) }) // nobody has noticed
		if err := w.r.Apply(t.Context(), w.s); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.says(svc("1:80 a*1"), svc("2:80 b*1"))
		w.wants("at once, and mended", "iptables 1:80 a*1 open", "iptables 2:80 b*1 open") // no time has passed
		if n := w.passes(ipt); n != 1 {
			t.Errorf("%d passes for a reload", n)
		}
	})
}

func TestB56_FromTheEndOfOnePassToTheStartOfTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		w.inject(func() { w.modes[ipt].took = 5 * time.Second }) // much longer than min_sync_period
		for i := range 30 {
			w.says(svc(fmt.Sprintf("1:80 a*%d", i+2)))
			w.wait(700 * time.Millisecond)
		}
		w.wait(time.Minute)
		at := w.began()
		if len(at) < 4 {
			t.Fatalf("passes began at %v", at)
		}
		for i := 1; i < len(at); i++ {
			if d := at[i] - at[i-1]; d != 6*time.Second {
				t.Fatalf("passes of 5s began at %v: %s apart, want 6s", at, d)
			}
		}
		w.wants("the last word", "iptables 1:80 a*31 open")
	})
}

func TestB56_EventsInTheWindowMakeExactlyOnePass(t *testing.T) {
	for _, n := range []int{1, 2, 100} {
		synctest.Test(t, func(t *testing.T) {
			w := quiet(t)
			w.says(svc("1:80 a*2"))
			synctest.Wait()
			for i := range n {
				w.says(svc(fmt.Sprintf("1:80 a*%d", i+3)))
				w.wait(time.Millisecond)
			}
			w.wait(time.Hour)
			if at := w.began(); len(at) != 2 || at[1] != time.Second {
				t.Errorf("%d events in the window: passes at %v, want at 0s and 1s", n, at)
			}
			w.wants("the last word", fmt.Sprintf("iptables 1:80 a*%d open", n+2))
		})
	}
}

func TestB56_BurstIsAtMostTwoPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		for i := range 500 {
			w.says(svc(fmt.Sprintf("1:80 a*%d", i+2)))
		}
		w.wait(time.Hour)
		if n := w.passes(ipt); n < 1 || n > 2 {
			t.Errorf("%d passes for a burst", n)
		}
		w.wants("the last word", "iptables 1:80 a*501 open")
	})
}

func TestF131_TenThousandChangesInTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		w.inject(func() { w.modes[ipt].took = 100 * time.Millisecond })
		for i := range 10_000 {
			w.says(svc(fmt.Sprintf("1:80 a*%d", i+1)))
			w.wait(time.Millisecond)
		}
		w.wait(w.s.MinSyncPeriod + 2*time.Second)
		if n := w.passes(ipt); n > 12 {
			t.Errorf("%d passes, want at most 10/min_sync_period + 2", n)
		}
		w.wants("converged", "iptables 1:80 a*10000 open")
	})
}

func TestB54_NoChangeMakesNoWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.start()
		w.says(svc("1:80 a*1 b*2"), svc("2:80 c*1"))
		w.wait(time.Minute)
		w.written()
		for range 100 {
			w.says(svc("1:80 b*2 a*1"), svc("2:80 c*1"))
			w.wait(time.Second)
		}
		w.wait(time.Hour)
		w.wantsWrites("the same again, and an hour of resyncs", 0)
	})
}

func TestB61_EverySyncPeriodTheKernelIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		s := w.s
		s.SyncPeriod = 30 * time.Second
		if err := w.r.Apply(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		w.says(svc("1:80 a*1")) // the pass after Apply reads the kernel
		w.wait(time.Second)
		w.calls()
		w.inject(func() { w.modes[ipt].kernel[key("1:80")] = nil; delete(w.modes[ipt].kernel, key("1:80")) })
		w.says(svc("1:80 a*1"))
		w.wait(30 * time.Second)
		w.wants("what somebody removed is there again", "iptables 1:80 a*1 open")
		if at := w.began(); len(at) > 4 {
			t.Errorf("passes at %v", at)
		}
	})
}

func TestB57_FailureIsRetriedWithBackOffUntilItSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		w.calls()
		w.inject(func() { w.modes[ipt].fail = errors.New("iptables-restore: exit status 4") })
		w.says(svc("1:80 a*2"))
		w.wait(3 * time.Minute)
		at := w.began()
		want := []time.Duration{1, 2, 4, 8, 16, 30, 30, 30}
		for i, d := range want {
			if i+1 >= len(at) {
				t.Fatalf("passes at %v", at)
			}
			got := at[i+1] - at[i]
			if got < d*time.Second || got > d*time.Second*11/10 {
				t.Fatalf("retry %d came after %s, want %ds and up to a tenth more; passes at %v", i+1, got, d, at)
			}
		}
		w.inject(func() { w.modes[ipt].fail = nil })
		w.wait(33 * time.Second)
		w.wants("the change is not lost", "iptables 1:80 a*2 open")
		w.inject(func() { w.modes[ipt].syncs = nil })
		w.wait(time.Hour)
		if n := w.passes(ipt); n != 0 {
			t.Errorf("%d passes after the success, want none", n)
		}
		w.inject(func() { w.modes[ipt].fail = errors.New("again") })
		w.says(svc("1:80 a*3"))
		w.wait(1100 * time.Millisecond)
		if at := w.began(); len(at) != 2 || at[1] > 1100*time.Millisecond {
			t.Errorf("the back-off did not begin anew: passes at %v", at)
		}
	})
}

func TestB57_ChangeDuringTheBackOffIsTriedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		w.inject(func() { w.modes[ipt].fail = errors.New("no") })
		w.says(svc("1:80 a*2"))
		w.wait(time.Minute)
		w.inject(func() { w.modes[ipt].fail, w.modes[ipt].syncs = nil, nil })
		w.says(svc("1:80 a*3"))
		w.wants("not after the back-off", "iptables 1:80 a*3 open")
		w.wait(time.Hour)
		if n := w.passes(ipt); n != 1 {
			t.Errorf("%d passes, want one: success cancels the retry", n)
		}
	})
}

func TestB57_TrailingEventIsNeverLost(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for round := range 20 {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, uint64(round)))
			w := quiet(t)
			weight := 1
			for range 50 {
				weight++
				w.says(svc(fmt.Sprintf("1:80 a*%d", weight)))
				w.inject(func() {
					w.modes[ipt].took = time.Duration(rnd.IntN(3)) * time.Second
					w.modes[ipt].fail = nil
					if rnd.IntN(3) == 0 {
						w.modes[ipt].fail = errors.New("no")
					}
				})
				w.wait(time.Duration(rnd.IntN(2000)) * time.Millisecond)
			}
			w.inject(func() { w.modes[ipt].fail = nil })
			w.wait(40 * time.Second)
			w.wants("the last word", fmt.Sprintf("iptables 1:80 a*%d open", weight))
		})
	}
}

func TestB58_PassAfterAFailureReadsTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		w.calls()
		w.says(svc("1:80 a*2"))
		w.pass()
		w.wantsCalls("trusts the cache", "shut, iptables, open")
		w.inject(func() { w.modes[ipt].fail = errors.New("half of it") })
		w.says(svc("1:80 a*3"), svc("2:80 b*1"))
		w.pass()
		w.calls()
		w.inject(func() { w.modes[ipt].fail = nil })
		w.wait(10 * time.Second)
		w.wantsCalls("reads all", "shut fresh, iptables fresh, open fresh")
		w.wants("whole", "iptables 1:80 a*3 open", "iptables 2:80 b*1 open")
	})
}

func TestOverdueWorkDoesNotBreakTheBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		w.inject(func() { w.modes[ipt].reject = reject("2:80") })
		w.says(svc("1:80 a*1"), svc("2:80 b*1")) // 2 is in quarantine, its next try is soon overdue
		w.pass()
		w.inject(func() { w.doorFail["shut"] = errors.New("no"); w.log = nil })
		w.says(svc("1:80 a*2"), svc("2:80 b*1"))
		w.wait(10 * time.Minute)
		if n := len(w.calls()); n > 25*len("shut fresh, ") {
			t.Errorf("%d passes in ten minutes of failure", n/len("shut fresh, "))
		}
	})
}

func TestDeadlineOfADrainMakesAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		w.says(svc("1:80 a*1 b*1"))
		w.pass()
		w.says(svc("1:80 a*1"))
		w.pass()
		w.inject(func() { w.modes[ipt].syncs = nil })
		w.wait(29*time.Second - time.Millisecond)
		w.wants("before", "iptables 1:80 a*1 b*drain open")
		w.wait(time.Millisecond)
		w.wants("on time", "iptables 1:80 a*1 open")
		w.wait(time.Hour)
		if n := w.passes(ipt); n != 1 {
			t.Errorf("%d passes for one deadline", n)
		}
	})
}
