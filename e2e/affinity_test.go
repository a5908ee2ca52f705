//go:build kernel

package e2e

import (
	"fmt"
	"net/netip"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
)

// affine is a service whose clients stay with their backend.
func (w *world) affine(timeout string, more []string, backends ...int) service {
	return service{name: "web", port: 80, more: append(more, fmt.Sprintf("affinity_timeout = %q", timeout)), backends: w.at(8080, backends...)}
}

// affinityStays asks again and again, over a restart and over passes for others.
func affinityStays(w *world) {
	w.serveAll(8080)
	web := w.affine("1h", nil, 1, 2, 3)
	w.run(web)
	first := map[netip.AddrPort]string{}
	for _, target := range targets(80) {
		first[target] = w.stuck(w.Client, target)
	}
	same := func(when string) {
		w.t.Helper()
		for target, was := range first {
			if now := w.stuck(w.Client, target); now != was {
				w.t.Errorf("%s the client of %s went from %s to %s", when, target, was, now)
			}
		}
	}
	w.change(web, service{name: "other", port: 81, backends: w.at(8080, 1)})
	same("after a pass for another service")
	w.kill()
	w.start()
	same("after a restart")
}

// affinityExpires waits until the affinity must have ended: the timeout after the last
// connection. With a scheduler that takes turns the next client is at the other backend.
// IPVS remembers a connection for 10 s after its end, and keeps the affinity for a minute
// more if that began to expire meanwhile (ip_vs_conn_expire), so it is longer there.
func affinityExpires(w *world) {
	w.serveAll(8080)
	timeout := 2 * time.Second
	if kerneltest.Mode() == "ipvs" {
		timeout = 12 * time.Second
	}
	w.run(w.affine(timeout.String(), []string{`scheduler = "rr"`}, 1, 2))
	before := map[netip.AddrPort]string{}
	for _, target := range targets(80) {
		before[target] = w.stuck(w.Client, target)
	}
	for round := 1; len(before) > 0; round++ {
		if round > 3 {
			w.t.Fatalf("after %d times without a connection the client is still at %v", round-1, before)
		}
		time.Sleep(timeout + 5*time.Second)
		for target, was := range before {
			if now := w.ask(w.Client, "tcp", target).Backend; now != was {
				w.t.Logf("the client of %s went from %s to %s in round %d", target, was, now, round)
				delete(before, target)
			}
		}
	}
}

// affinityMoves takes backends away from clients that stick to them: at once, while
// they drain, and over TCP and UDP alike.
func affinityMoves(w *world) {
	w.serveAll(8080)
	for _, drain := range []string{`drain_timeout = "0s"`, `drain_timeout = "1h"`} {
		web := w.affine("1h", []string{drain}, 1, 2)
		dns := web
		dns.name, dns.protocol = "dns", "udp"
		w.run(web, dns)
		target := targets(80)[0]
		was := w.stuck(w.Client, target)
		flow := w.ask(w.Client, "udp", target).Backend
		for _, only := range []int{1, 2} {
			web.backends = w.at(8080, only)
			dns.backends = web.backends
			w.change(web, dns)
			name := w.Backends[only-1].Name
			for _, target := range targets(80) {
				for _, network := range []string{"tcp", "udp"} {
					w.answeredBy(w.Client, network, target, name)
				}
			}
		}
		w.t.Logf("%s: the client was at %s by TCP and at %s by UDP", drain, was, flow)
	}
}

// drainsUnderAffinity holds connections to a backend that drains: they stay, new ones of
// the very same client go elsewhere, and come back to no backend that came back only.
func drainsUnderAffinity(w *world) {
	w.serveAll(8080)
	long := []string{`drain_timeout = "1h"`}
	w.run(w.affine("1h", long, 1))
	held := w.load(w.Client)
	for _, target := range targets(80) {
		held.Hold(loss.Hold{Target: target, Count: 4, Every: slower(20 * time.Millisecond)})
	}
	w.change(w.affine("1h", long, 2))
	for _, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b2")
	}
	w.change(w.affine("1h", long, 1, 2))
	for _, target := range targets(80) {
		w.stuck(w.Client, target)
	}
	lossless(w.t, "connections held to the backend that drained", held.Stop())
}
