//go:build kernel

package e2e

import (
	"errors"
	"slices"
	"time"

	"vipd/internal/loss"
	"vipd/reconciler"
)

// returns takes a backend away and gives it back while it drains: what was connected
// stays, and it gets new connections again. The second time vipd is killed meanwhile.
func returns(w *world) {
	w.serveAll(8080)
	web := service{name: "web", port: 80, more: []string{`drain_timeout = "1h"`}, backends: w.at(8080, 1, 2)}
	less := web
	less.backends = w.at(8080, 2)
	w.run(web)
	held := w.load(w.Client)
	for _, target := range targets(80) {
		held.Hold(loss.Hold{Target: target, Count: 6, Every: slower(20 * time.Millisecond)})
	}
	for _, killed := range []bool{false, true} {
		w.change(less)
		for range 5 {
			w.answeredBy(w.Client, "tcp", targets(80)[0], "b2")
		}
		if s := w.await("drain", func(reconciler.Status) bool { return true }); !shows(s, "draining", w.at(8080, 1)[0]) {
			w.t.Errorf("status does not show the draining backend: %+v", s.Services)
		}
		if killed {
			w.kill()
			w.write(config(web))
			w.start()
		} else {
			w.change(web)
		}
		for _, target := range targets(80) {
			w.answeredBy(w.Client, "tcp", target, "b1", "b2")
		}
	}
	lossless(w.t, "connections held meanwhile", held.Stop())
}

// drainsUntilIdle takes a backend away that has connections, and an hour of time. It
// stays while one of them stands, and goes soon after the last has ended.
func drainsUntilIdle(w *world) {
	w.serveAll(8080)
	web := service{name: "web", port: 80, more: []string{`drain_timeout = "1h"`}, backends: w.at(8080, 1, 2)}
	w.run(web)
	some, last := w.load(w.Client), w.load(w.Client)
	var ends, stays []*loss.Held
	for _, target := range targets(80) {
		ends = append(ends, some.Hold(loss.Hold{Target: target, Count: 12}))
		stays = append(stays, last.Hold(loss.Hold{Target: target, Count: 12, Every: slower(20 * time.Millisecond)}))
	}
	web.backends = w.at(8080, 2)
	w.change(web)
	of := func(held ...*loss.Held) (n int) {
		for _, h := range held {
			n += h.By()["b1"]
		}
		return n
	}
	w.await("all connections are counted", func(s reconciler.Status) bool { return activeOf(s, w.at(8080, 1)) == of(ends...)+of(stays...) })
	lossless(w.t, "some of the connections", some.Stop())
	rest := of(stays...)
	if rest == 0 {
		w.t.Fatal("the backend that drains has no connection")
	}
	w.await("only the rest is counted", func(s reconciler.Status) bool { return activeOf(s, w.at(8080, 1)) == rest })
	lossless(w.t, "the last connections, which a drained backend had to the end", last.Stop())
	ended := time.Now()
	w.await("the drain ends", func(s reconciler.Status) bool {
		return !slices.ContainsFunc(w.at(8080, 1), func(b string) bool { return shows(s, "draining", b) })
	})
	w.t.Logf("%d connections drained; the drain ended %s after the last", rest, time.Since(ended).Round(time.Millisecond))
	for _, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b2")
	}
}

// flowsLeave takes a backend of flows away that has an hour to drain: they leave it at
// once, and so does the status.
func flowsLeave(w *world) {
	w.serveAll(8080)
	dns := w.dns(8080, 1)
	dns.more = []string{`drain_timeout = "1h"`}
	w.run(dns)
	w.flowsTo("b1")
	dns.backends = w.at(8080, 2)
	w.change(dns)
	w.flowsTo("b2")
	s := w.await("rest", idle)
	for _, backend := range w.at(8080, 1) {
		if shows(s, "draining", backend) {
			w.t.Errorf("a backend of flows drains: %+v", s.Services)
		}
	}
}

// activeOf adds up the connections to backends.
func activeOf(s reconciler.Status, backends []string) (n int) {
	for _, svc := range s.Services {
		for _, b := range svc.Backends {
			if b.Connections != nil && slices.Contains(backends, b.Addr.String()) {
				n += int(b.Connections.Active)
			}
		}
	}
	return n
}

// reusesPorts is a client that connects from the same few ports again and again, while
// the backends are replaced one after the other. Each connection stands at once: a SYN
// that had to be sent again is a fault (loss.Retransmit), and who answers is one of
// those that are there.
func reusesPorts(w *world) {
	w.serveAll(8080)
	asked := 0
	for _, drain := range []string{"0s", "1h"} {
		for _, now := range [][]int{{1}, {1, 2}, {2}, {2, 3}, {3}, {1, 3}} {
			w.run(service{name: "web", port: 80, more: []string{`drain_timeout = "` + drain + `"`}, backends: w.at(8080, now...)})
			there := map[string]bool{}
			for _, n := range now {
				there[w.Backends[n-1].Name] = true
			}
			for port := range max(3, fewer(8)) {
				for _, target := range targets(80) {
					a, err := loss.Request{In: w.Client.Do, Network: "tcp", Target: target, Port: uint16(6000 + port)}.Ask(w.t.Context())
					if asked++; err == nil && !there[a.Backend] {
						err = errors.New("answered by " + a.Backend)
					}
					if err != nil {
						w.t.Errorf("drain %s, backends %v, from port %d to %s: %v", drain, now, 6000+port, target, err)
					}
				}
			}
		}
	}
	w.t.Logf("%d connections from few ports", asked)
}
