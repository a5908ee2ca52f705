//go:build kernel

package e2e

import (
	"fmt"
	"slices"
	"time"

	"vipd/desired"
	"vipd/internal/loss"
	"vipd/reconciler"
)

func portsComeAndGo(w *world) {
	w.serveAll(8080)
	first := service{name: "first", port: 80, backends: w.at(8080, 1, 2)}
	second := service{name: "second", port: 81, backends: w.at(8080, 1, 2)}
	w.run(first)
	l := w.load(w.Client)
	for _, target := range targets(80) {
		l.Hold(loss.Hold{Target: target, Count: 4, Every: slower(50 * time.Millisecond)})
		l.Connect(loss.Connections{Target: target, Rate: fewer(100)})
	}
	for range max(1, fewer(3)) {
		w.change(first, second)
		w.answeredBy(w.Client, "tcp", targets(81)[0], "b1", "b2")
		w.change(first)
		w.refused(w.Client, "tcp", targets(81)[0])
	}
	lossless(w.t, "while a port of the VIP came and went", l.Stop())
}

func upAndDown(w *world) {
	w.serveAll(8080)
	keeper := service{name: "keeper", vips: []string{"192.0.2.99"}, port: 80, backends: w.at(8080, 1)[:1]}
	one := service{name: "one", port: 80, backends: w.at(8080, 1)}
	two := service{name: "two", vips: []string{"192.0.2.11", "2001:db8::11"}, port: 80, backends: w.at(8080, 2)}
	other := targets(80)
	for i := range other {
		other[i] = addrPort(two.vips[i], 80)
	}
	w.run(keeper, one)
	for range max(1, fewer(3)) {
		for i, target := range targets(80) {
			w.answeredBy(w.Client, "tcp", target, "b1")
			w.unreachable(other[i])
		}
		w.change(keeper, two)
		for i, target := range targets(80) {
			w.eventually("the first service is gone", func() bool { return !w.hasAddress(vips[i]) })
			w.unreachable(target)
			w.answeredBy(w.Client, "tcp", other[i], "b2")
		}
		w.change(keeper, one)
		for i := range other {
			w.eventually("the second service is gone", func() bool { return !w.hasAddress(two.vips[i]) })
		}
	}
}

func madeAgain(w *world) {
	w.serveAll(8080)
	keeper := service{name: "keeper", vips: []string{"192.0.2.99"}, port: 80, backends: w.at(8080, 1)[:1]}
	for round, b := range []int{1, 2, 1, 2}[:max(2, fewer(4))] {
		tcp := service{name: "web", port: 80, backends: w.at(8080, b)}
		udp := service{name: "dns", port: 80, protocol: "udp", backends: w.at(8080, b)}
		if round == 0 {
			w.run(keeper, tcp, udp)
		} else {
			w.change(keeper, tcp, udp)
		}
		name := w.Backends[b-1].Name
		for _, target := range targets(80) {
			w.answeredBy(w.Client, "tcp", target, name)
			// The same flow each time, so that an old entry would be seen.
			w.eventually("the UDP flow comes to "+name, func() bool {
				a, err := loss.Request{In: w.Client.Do, Network: "udp", Target: target, Port: 5353, Deadline: 200 * time.Millisecond}.Ask(w.t.Context())
				return err == nil && a.Backend == name
			})
		}
		w.change(keeper)
		for _, v := range vips {
			w.eventually("the VIP is gone", func() bool { return !w.hasAddress(v) })
		}
	}
}

func inForceWhenReloaded(w *world) {
	w.serveAll(8080)
	w.run(service{name: "web", port: 80, backends: w.at(8080, 1)})
	for _, b := range []int{2, 1, 2, 1}[:max(2, fewer(4))] {
		begin := time.Now()
		w.change(service{name: "web", port: 80, backends: w.at(8080, b)})
		took := time.Since(begin)
		for _, target := range targets(80) {
			w.answeredBy(w.Client, "tcp", target, w.Backends[b-1].Name)
		}
		w.t.Logf("a reload took %s", took.Round(time.Millisecond))
		if took > 10*time.Second {
			w.t.Errorf("the change took %s", took)
		}
	}
}

func busyIsReset(w *world) { drainsAndIsReset(w, slower(20*time.Millisecond)) }

func idleIsReset(w *world) { drainsAndIsReset(w, 0) }

// drainsAndIsReset takes a backend away under load. With drain_timeout its established
// connections, which ask every so often, live on for that long and are then reset.
func drainsAndIsReset(w *world, every time.Duration) {
	drain := slower(2 * time.Second)
	w.serveAll(8080)
	web := service{name: "web", port: 80, more: []string{fmt.Sprintf("drain_timeout = %q", drain)}, backends: w.at(8080, 1, 2)}
	w.run(web)
	held := w.load(w.Client)
	var handles []*loss.Held
	for _, target := range targets(80) {
		handles = append(handles, held.Hold(loss.Hold{Target: target, Count: 16, Every: every}))
	}
	fresh := w.load(w.Client)
	for _, target := range targets(80) {
		fresh.Connect(loss.Connections{Target: target, Rate: fewer(100)})
	}
	standing := func(backend string) (n int) {
		for _, h := range handles {
			n += h.By()[backend]
		}
		return n
	}
	before := standing("b1")
	if before == 0 || standing("b2") == 0 {
		w.t.Fatalf("held by b1 %d, by b2 %d", before, standing("b2"))
	}
	web.backends = w.at(8080, 2)
	removed := time.Now()
	w.change(web)
	fresh.Forbid("b1")
	s := w.await("drain", func(s reconciler.Status) bool { return true })
	if n := standing("b1"); n != before {
		w.t.Errorf("%d of %d connections of the drained backend stand after the removal", n, before)
	}
	if !shows(s, "draining", w.at(8080, 1)[0]) {
		w.t.Errorf("status does not show the draining backend: %+v", s.Services)
	}
	w.eventually("the drained connections end", func() bool { return standing("b1") == 0 })
	if took := time.Since(removed); took < drain || took > drain+slower(10*time.Second) {
		w.t.Errorf("the drained connections ended after %s, want %s", took, drain)
	}
	for _, h := range handles {
		for _, c := range h.Conns() {
			if c.Backend == "b1" && loss.ClassOf(c.Err) != loss.Reset || c.Backend == "b2" && c.Err != nil {
				w.t.Errorf("a connection of %s: %v", c.Backend, c.Err)
			}
		}
	}
	lossless(w.t, "new connections", fresh.Stop())
	if r := held.Stop(); r.Held.Classes[loss.Reset] != before {
		w.t.Errorf("%d were on the drained backend:\n%s", before, r)
	}
}

// shows tells whether a status shows a backend in a state.
func shows(s reconciler.Status, state, backend string) bool {
	return slices.ContainsFunc(s.Services, func(s reconciler.ServiceStatus) bool {
		return slices.ContainsFunc(s.Backends, func(b desired.Backend) bool { return b.State == state && b.Addr.String() == backend })
	})
}
