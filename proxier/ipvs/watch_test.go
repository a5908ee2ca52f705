package ipvs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	vs "vipd/internal/ipvs"
	"vipd/lb"
	"vipd/proxier"
)

// watching runs f beside the Watch of a proxier, whose drifts are noted.
func watching(t *testing.T, fake *vs.Fake, f func(h *harness, p *Proxier, drifts *[]string)) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(fake)
		p := h.proxier()
		var drifts []string
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- p.Watch(ctx, func(d proxier.Drift) { drifts = append(drifts, d.Object) }) }()
		f(h, p, &drifts)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
}

// rest lets time pass, and the watch look.
func rest(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestF86_ClearedTableIsSeenWithinASecond(t *testing.T) {
	fake := vs.NewFake()
	watching(t, fake, func(h *harness, p *Proxier, drifts *[]string) {
		rest(time.Minute)
		var all []*lb.Service
		for i := range 1000 {
			all = append(all, svc(fmt.Sprintf("192.0.%d.%d:80 10.0.0.1:80", i/200, i%200)))
		}
		h.sync(t, p, prune, all)
		rest(time.Minute)
		h.sync(t, p, prune, all[1:])
		rest(time.Minute)
		if len(*drifts) > 0 {
			t.Fatalf("told of %v, and nobody else did anything", *drifts)
		}
		fake.Clear()
		rest(time.Second)
		if len(*drifts) != 1 {
			t.Fatalf("told of %v", *drifts)
		}
		h.kernel.looks = 0
		rest(time.Minute)
		if len(*drifts) != 1 || h.kernel.looks > 0 {
			t.Errorf("told of %v, and looked at %d since", *drifts, h.kernel.looks)
		}
		h.sync(t, p, fresh, all[1:])
		rest(time.Minute)
		if len(*drifts) != 1 {
			t.Errorf("told of %v", *drifts)
		}
	})
}

// However many there are, a look is bounded, and each is looked at in its turn.
func TestWatchLooksAtEachInTurn(t *testing.T) {
	fake := vs.NewFake()
	watching(t, fake, func(h *harness, p *Proxier, drifts *[]string) {
		var all []*lb.Service
		for i := range 2*watchCount + 10 {
			all = append(all, svc(fmt.Sprintf("192.0.%d.%d:80 10.0.0.1:80", i/200, i%200)))
		}
		h.sync(t, p, prune, all)
		rest(watchInterval)
		if h.kernel.looks != watchCount {
			t.Errorf("looked at %d at once", h.kernel.looks)
		}
		for _, i := range []int{len(all) - 1, 0, watchCount} {
			changed := serverOf(all[i])
			changed.Scheduler = "lc"
			h.foreign(t, vs.Command{Op: vs.EditServer, Server: changed})
			*drifts = nil
			rest(3 * watchInterval)
			if want := []string{"virtual server " + all[i].Key.String()}; !slices.Equal(*drifts, want) {
				t.Errorf("told of %v, want %v", *drifts, want)
			}
			if got := h.sync(t, p, fresh, all); got == "" {
				t.Error("not repaired")
			}
		}
	})
}

func TestWatchEndsWhenTheKernelCannotBeAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := vs.NewFake()
		h := newHarness(fake)
		p := h.proxier()
		h.sync(t, p, prune, services("192.0.2.1:80 10.0.0.1:80"))
		broken := errors.New("broken by the test")
		fake.FailRead = func() error { return broken }
		if err := p.Watch(t.Context(), func(proxier.Drift) { t.Error("a drift") }); !errors.Is(err, broken) {
			t.Errorf("Watch: %v", err)
		}
	})
}
