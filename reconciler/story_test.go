package reconciler

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vipd/discovery"
	"vipd/lb"
	"vipd/proxier"
)

// watched is a mode that hears of changes by others.
type watched struct {
	*fakeMode
	mu    sync.Mutex
	drift func(proxier.Drift)
	fail  chan error
	dead  bool // every watch fails at once
	began []time.Time
}

func (w *watched) Watch(ctx context.Context, drift func(proxier.Drift)) error {
	w.mu.Lock()
	w.drift = drift
	w.began = append(w.began, time.Now())
	dead := w.dead
	w.mu.Unlock()
	if dead {
		return errors.New("operation not permitted")
	}
	select {
	case err := <-w.fail:
		return err
	case <-ctx.Done():
		return nil
	}
}

func (w *watched) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.began)
}

func newWatched(t *testing.T) (*world, *watched) {
	w := newWorld(t, []string{"static"})
	w.s.SyncPeriod = 24 * time.Hour
	mode := &watched{fakeMode: w.modes[ipt], fail: make(chan error)}
	w.watches = map[lb.Mode]proxier.Proxier{ipt: mode}
	w.start()
	w.says(svc("1:80 a*1"))
	w.wait(time.Minute)
	w.calls()
	return w, mode
}

func TestB61_DriftIsRepairedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, mode := newWatched(t)
		w.inject(func() { delete(w.modes[ipt].kernel, key("1:80")) })
		for range 1000 { // a flush tells of every rule
			mode.drift(proxier.Drift{Object: "chain VIPD-SVC", By: "iptables (pid 7)"})
		}
		w.wants("repaired in no time", "iptables 1:80 a*1 open")
		w.wait(time.Minute)
		if n := w.passes(ipt); n > 3 {
			t.Errorf("%d passes for one flush", n)
		}
		if !strings.HasPrefix(w.calls(), "shut fresh, iptables fresh, open fresh") {
			t.Error("the pass trusted its cache")
		}
	})
}

func TestWatchThatBreaksOffBeginsAgainAndLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, mode := newWatched(t)
		w.inject(func() { delete(w.modes[ipt].kernel, key("1:80")) }) // and nobody told
		mode.fail <- errors.New("no buffer space available")
		w.wait(2 * time.Second)
		w.wants("what was missed is found", "iptables 1:80 a*1 open")
		if n := mode.count(); n != 2 {
			t.Fatalf("watched %d times", n)
		}
		before := w.passes(ipt)
		mode.mu.Lock()
		mode.dead = true
		mode.mu.Unlock()
		mode.fail <- errors.New("closed")
		w.wait(10 * time.Minute)
		if n := w.passes(ipt) - before; n < 10 || n > 26 {
			t.Errorf("%d passes in ten minutes for a watch that cannot be had", n)
		}
	})
}

func (w *world) await(revision string) (result func() (bool, error)) {
	var mu sync.Mutex
	var done bool
	var err error
	go func() {
		e := w.r.Await(context.Background(), func(v *discovery.View) bool { return v.Sources[0].Revision == revision })
		mu.Lock()
		defer mu.Unlock()
		done, err = true, e
	}()
	return func() (bool, error) {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return done, err
	}
}

func (w *world) revises(revision string) {
	w.changeView("static", func(s *discovery.SourceView) { s.Revision = revision })
}

func TestAwaitReturnsWithThePassThatServedTheView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		early := w.await("2")
		if done, _ := early(); done {
			t.Fatal("it did not wait")
		}
		w.inject(func() { w.modes[ipt].took = 3 * time.Second })
		w.revises("2")
		if done, _ := early(); done {
			t.Fatal("it did not wait for the end of the pass")
		}
		w.wait(3 * time.Second)
		if done, err := early(); !done || err != nil {
			t.Fatalf("done %v, error %v", done, err)
		}
		late := w.await("2") // the pass has been
		if done, err := late(); !done || err != nil {
			t.Fatalf("asked after the pass: done %v, error %v", done, err)
		}
		w.inject(func() { w.modes[ipt].fail = errors.New("no") })
		failed := w.await("3")
		w.revises("3")
		w.wait(5 * time.Second)
		if done, err := failed(); !done || err == nil || !strings.Contains(err.Error(), "mode iptables: no") {
			t.Fatalf("done %v, error %v", done, err)
		}
		never := w.await("4")
		w.kill()
		if done, err := never(); !done || !errors.Is(err, errEnded) {
			t.Errorf("at the end: done %v, error %v", done, err)
		}
		if err := w.r.Await(t.Context(), func(*discovery.View) bool { return true }); !errors.Is(err, errEnded) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestAwaitThatGivesUpIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.r.Await(ctx, func(*discovery.View) bool { return false }); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error %v", err)
		}
		w.says(svc("1:80 a*2"))
		w.pass()
		w.kill()
		if len(w.r.waiters) != 0 {
			t.Errorf("%d waiters are kept", len(w.r.waiters))
		}
	})
}

func TestApplyChangesTheSettingsWithAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		s := w.s
		s.Allowed = nil
		if err := w.r.Apply(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if err := w.r.Await(t.Context(), func(*discovery.View) bool { return true }); err != nil {
			t.Fatal(err)
		}
		w.wants("outside allowed now", "iptables 1:80 a*drain open")
		if p := w.r.Status().Problems; len(p) != 1 || !strings.Contains(p[0].Reason, "allowed") {
			t.Errorf("problems %+v", p)
		}
		if got := strings.Count(w.diary.String(), "entries of the sources are not served"); got != 1 {
			t.Errorf("told %d times, want once:\n%s", got, &w.diary)
		}
		if err := w.r.Apply(t.Context(), w.s); err != nil {
			t.Fatal(err)
		}
		if err := w.r.Await(t.Context(), func(*discovery.View) bool { return true }); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(w.diary.String(), "all entries of the sources are served") {
			t.Errorf("not told that all is well again:\n%s", &w.diary)
		}
	})
}

// wrote lists what is different between two states of a host.
func wrote(before, after []string) []string {
	var lines []string
	for _, l := range before {
		if !slices.Contains(after, l) {
			lines = append(lines, "- "+l)
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			lines = append(lines, "+ "+l)
		}
	}
	return lines
}

func TestF152_PlanIsWhatTheNextPassDoes(t *testing.T) {
	steps := [][]*lb.Spec{
		{svc("1:80 a*1"), svc("2:80 b*1")},
		{svc("1:80 a*2"), svc("3:80 c*1")},
		{svc("1:80 a*2"), svc("3:80 c*1"), svc("4:80 d*1")}, // 4 is rejected
		{inMode(svc("1:80 a*2"), ipvs), svc("3:80 c*1"), svc("4:80 d*1")},
		{},
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"}, ipt, ipvs)
		w.inject(func() { w.modes[ipt].reject = reject("4:80"); w.doorReject["shut"] = reject("2:80") })
		w.start()
		w.says()
		w.pass()
		for i, specs := range steps {
			w.wait(4 * time.Second) // so that what follows is one pass
			old := w.view
			next := &discovery.View{Seq: old.Seq, Sources: slices.Clone(old.Sources)}
			next.Sources[0].Services = specs
			before := w.shows()
			w.written()
			w.calls()
			plan, err := w.r.Plan(t.Context(), next, w.s)
			if err != nil {
				t.Fatal(err)
			}
			w.wantsWrites("a plan", 0)
			if got := wrote(before, w.shows()); len(got) != 0 {
				t.Fatalf("step %d: the plan wrote %q", i, got)
			}
			w.says(specs...)
			w.r.Trigger("as the plan, read the kernel")
			synctest.Wait()
			if n := w.written(); n != len(plan.Changes) {
				t.Errorf("step %d: planned %d writes %+v, the pass made %d: %q", i, len(plan.Changes), plan.Changes, n, wrote(before, w.shows()))
			}
			if i == 0 && plan.Rejected[key("2:80")] == nil || i == 2 && plan.Rejected[key("4:80")] == nil {
				t.Errorf("step %d: the plan does not tell what would be rejected: %v", i, plan.Rejected)
			}
		}
	})
}

func TestF152_PlanWithoutADaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static"})
		w.start()
		w.says(svc("1:80 a*1"))
		w.pass()
		w.kill()
		w.written()
		p, err := PlanOnce(t.Context(), w.options())
		if err != nil || len(p.Changes) != 0 {
			t.Errorf("unchanged: %+v, %v", p, err)
		}
		w.says(svc("1:80 a*2"), svc("2:80 b*1"))
		p, err = PlanOnce(t.Context(), w.options())
		if err != nil || len(p.Changes) != 3 { // a chain each, and the VIP
			t.Errorf("changed: %+v, %v", p, err)
		}
		w.wantsWrites("a plan", 0)
	})
}

func TestPlanHearsItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := w.r.Plan(ctx, w.view, w.s); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

func TestF116_PanicIsAFailedPassInEverybodysSight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		w.written()
		poison := append(slices.Clone(w.view.Sources[0].Services), nil) // Compute cannot read it
		w.changeView("static", func(s *discovery.SourceView) { s.Services = poison })
		w.wait(10 * time.Minute)
		w.wantsWrites("while the input is poisoned", 0)
		w.wants("what is in place serves", "iptables 1:80 a*1 open")
		if s := w.r.Status(); !strings.Contains(s.Pass.Error, "panic") || s.Ready {
			t.Errorf("status %+v", s.Pass)
		}
		if _, err := w.r.Plan(t.Context(), w.view, w.s); err == nil || !strings.Contains(err.Error(), "panic") {
			t.Errorf("plan: %v", err)
		}
		w.says(svc("1:80 a*3"))
		w.pass()
		w.wants("the poison is gone", "iptables 1:80 a*3 open")
		w.inject(func() { w.modes[ipt].poison = true })
		w.says(svc("1:80 a*4"))
		w.wait(time.Minute)
		if s := w.r.Status(); !strings.Contains(s.Pass.Error, "panic") {
			t.Errorf("status %+v", s.Pass)
		}
		w.inject(func() { w.modes[ipt].poison = false })
		w.wait(time.Minute)
		w.wants("recovered", "iptables 1:80 a*4 open")
	})
}

func TestStopInTheMiddleOfAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := quiet(t)
		w.inject(func() { w.modes[ipt].took = 5 * time.Second; w.modes[ipt].fail = context.Canceled })
		answer := w.await("2")
		w.revises("2")
		w.wait(time.Second)
		w.kill()
		if done, err := answer(); !done || err == nil {
			t.Errorf("done %v, error %v", done, err)
		}
	})
}

func TestStatusTellsTheStateOfEachService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"static", "etcd"}, ipt, ipvs)
		w.start()
		w.says(svc("1:80 a*1 b*1"), svc("2:80"), svc("3:80 c*1"), svc("4:80 d*1"))
		w.sourceSays("etcd", svc("1:80 z*1"))
		w.changeView("etcd", func(s *discovery.SourceView) {
			s.Held = map[lb.Key]discovery.Hold{key("1:80"): {Kind: discovery.HoldBackends}}
		})
		w.pass()
		w.says(svc("1:80 a*1 b*draining"), svc("2:80"), inMode(svc("4:80 d*1"), ipvs))
		w.pass()
		for text, want := range map[string]string{
			"1:80": "iptables serving", "2:80": "iptables refusing", "3:80": "iptables draining",
			"4:80": "iptables moving, ipvs serving",
		} {
			if got := w.state(text); got != want {
				t.Errorf("%s is %q, want %q", text, got, want)
			}
		}
		s := w.r.Status()
		if len(s.Problems) != 1 || s.Problems[0].Source != "etcd" || s.Sources[1].Held[key("1:80")] != "last-backend" {
			t.Errorf("problems %+v, sources %+v", s.Problems, s.Sources)
		}
		if s.Pass.Pending || s.Pass.Count == 0 || s.Pass.Next.Before(time.Now()) {
			t.Errorf("pass %+v", s.Pass)
		}
	})
}
