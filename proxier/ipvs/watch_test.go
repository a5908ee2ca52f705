package ipvs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	vs "vipd/internal/ipvs"
	"vipd/lb"
	"vipd/proxier"
)

// heard are the drifts that were told.
type heard struct {
	mu  sync.Mutex
	all []string
}

func (h *heard) drift(d proxier.Drift) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, d.Object)
}

// take returns what was told since it was asked last.
func (h *heard) take() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer func() { h.all = nil }()
	return strings.Join(h.all, "; ")
}

// watching runs f beside the Watch of a proxier.
func watching(t *testing.T, fake *vs.Fake, f func(h *harness, p *Proxier, drifts *heard)) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(fake)
		p := h.proxier()
		drifts := &heard{}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- p.Watch(ctx, drifts.drift) }()
		f(h, p, drifts)
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
	watching(t, fake, func(h *harness, p *Proxier, drifts *heard) {
		rest(time.Minute)
		var all []*lb.Service
		for i := range 1000 {
			all = append(all, svc(fmt.Sprintf("192.0.%d.%d:80 10.0.0.1:80", i/200, i%200)))
		}
		h.sync(t, p, prune, all)
		rest(time.Minute)
		h.sync(t, p, prune, all[1:])
		rest(time.Minute)
		if got := drifts.take(); got != "" {
			t.Fatalf("told of %s, and nobody else did anything", got)
		}
		fake.Clear()
		rest(time.Second)
		if got := drifts.take(); !strings.HasPrefix(got, "virtual server 192.0.") || strings.Contains(got, ";") {
			t.Fatalf("told of %q", got)
		}
		looks := h.kernel.looks.Load()
		rest(time.Minute)
		h.sync(t, p, prune, all[1:]) // which reads nothing
		rest(time.Minute)
		if got, n := drifts.take(), h.kernel.looks.Load()-looks; got != "" || n > 0 {
			t.Errorf("told of %q again, after %d looks", got, n)
		}
		h.sync(t, p, fresh, all[1:])
		rest(time.Minute)
		if got := drifts.take(); got != "" || h.kernel.looks.Load() == looks {
			t.Errorf("after the repair: told of %q", got)
		}
	})
}

// What somebody does to a destination is seen as soon, unless the virtual server has very
// many: then a pass finds it.
func TestB61_WatchSeesDestinations(t *testing.T) {
	fake := vs.NewFake()
	watching(t, fake, func(h *harness, p *Proxier, drifts *heard) {
		all := services("192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*2", "192.0.2.2:80 10.0.0.1:80*draining", "192.0.2.3:53/udp 10.0.0.1:53 10.0.0.2:53*draining")
		big := svc("192.0.2.9:80")
		for i := range watchDestinations + 1 {
			big.Backends = append(big.Backends, backend(fmt.Sprintf("10.1.%d.%d:80", i/200, i%200)))
		}
		all = append(all, big)
		h.sync(t, p, prune, all)
		rest(time.Minute)
		if got := drifts.take(); got != "" {
			t.Fatalf("told of %s, and nobody else did anything", got)
		}
		change := func(op vs.Op, service int, b string) vs.Command {
			return vs.Command{Op: op, Server: serverOf(all[service]), Destination: destinationOf(all[service], backend(b), weights(all[service]))}
		}
		for _, step := range []struct {
			command vs.Command
			want    string
		}{
			{change(vs.EditDestination, 0, "10.0.0.2:80*3"), "192.0.2.1:80/tcp"},
			{change(vs.DeleteDestination, 0, "10.0.0.1:80"), "192.0.2.1:80/tcp"},
			{change(vs.AddDestination, 2, "10.0.0.3:53"), "192.0.2.3:53/udp"},
			{change(vs.EditDestination, 1, "10.0.0.1:80"), "192.0.2.2:80/tcp"},
			{change(vs.DeleteDestination, 3, "10.1.0.0:80"), ""},
		} {
			h.foreign(t, step.command)
			rest(time.Second)
			if got := strings.TrimPrefix(drifts.take(), "virtual server "); got != step.want {
				t.Errorf("%s: told of %q, want %q", step.command, got, step.want)
			}
			if got := h.sync(t, p, fresh, all); got == "" {
				t.Error("not repaired")
			}
		}
	})
}

// However many there are, a look is bounded, and each is looked at in its turn.
func TestWatchLooksAtEachInTurn(t *testing.T) {
	fake := vs.NewFake()
	watching(t, fake, func(h *harness, p *Proxier, drifts *heard) {
		var all []*lb.Service
		for i := range 2*watchCount + 10 {
			all = append(all, svc(fmt.Sprintf("192.0.%d.%d:80 10.0.0.1:80", i/200, i%200)))
		}
		h.sync(t, p, prune, all)
		rest(watchInterval)
		if n := h.kernel.looks.Load(); n != watchCount {
			t.Errorf("looked at %d at once", n)
		}
		for _, i := range []int{len(all) - 1, 0, watchCount} {
			changed := serverOf(all[i])
			changed.Scheduler = "lc"
			h.foreign(t, vs.Command{Op: vs.EditServer, Server: changed})
			rest(3 * watchInterval)
			if got, want := drifts.take(), "virtual server "+all[i].Key.String(); got != want {
				t.Errorf("told of %q, want %q", got, want)
			}
			if got := h.sync(t, p, fresh, all); got == "" {
				t.Error("not repaired")
			}
		}
	})
}

// What a pass changes while the watch looks is no drift.
func TestWatchBesideAPass(t *testing.T) {
	watching(t, vs.NewFake(), func(h *harness, p *Proxier, drifts *heard) {
		all := services("192.0.2.1:80 10.0.0.1:80", "192.0.2.2:80 10.0.0.1:80")
		h.sync(t, p, prune, all)
		looks, goOn := make(chan struct{}), make(chan struct{})
		look := func() {
			h.kernel.look.Store(nil)
			looks <- struct{}{}
			<-goOn
		}
		h.kernel.look.Store(&look)
		<-looks
		h.sync(t, p, prune, all[1:])
		close(goOn)
		rest(time.Minute)
		if got := drifts.take(); got != "" {
			t.Errorf("told of %s", got)
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
