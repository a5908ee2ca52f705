//go:build kernel

package e2e

import (
	"net/netip"
	"time"

	"vipd/internal/loss"
)

// dns is the UDP service of these tests.
func (w *world) dns(port int, backends ...int) service {
	return service{name: "dns", port: 53, protocol: "udp", backends: w.at(port, backends...)}
}

// sourcePort is that of the one flow that a test watches.
const sourcePort = 5300

// flow asks once from the same source port as all times before, and returns who
// answered, or the class of the fault.
func (w *world) flow(target netip.AddrPort) string {
	a, err := loss.Request{In: w.Client.Do, Network: "udp", Target: target, Port: sourcePort, Deadline: slower(150 * time.Millisecond)}.Ask(w.t.Context())
	if err != nil {
		return string(loss.ClassOf(err))
	}
	return a.Backend
}

// flowsTo waits until the watched flows of both families are answered by that
// backend, and makes sure that they stay there.
func (w *world) flowsTo(backend string) {
	w.t.Helper()
	for _, target := range targets(53) {
		took := w.eventually("the flow comes to "+backend, func() bool { return w.flow(target) == backend })
		w.t.Logf("the flow to %s came to %s after %s", target, backend, took.Round(time.Millisecond))
		for range 5 {
			if got := w.flow(target); got != backend {
				w.t.Errorf("the flow to %s is answered by %s, want %s", target, got, backend)
			}
		}
	}
}

// nothingComesTo sends on the watched flows; none of it may reach that server.
func (w *world) nothingComesTo(server *loss.Server) {
	w.t.Helper()
	before := server.Requests()
	for range 10 {
		for _, target := range targets(53) {
			w.flow(target)
		}
	}
	if n := server.Requests() - before; n != 0 {
		w.t.Errorf("%d datagrams came to a backend that is gone", n)
	}
}

func flowMoves(w *world) {
	w.serveAll(8080)
	w.run(w.dns(8080, 1))
	for _, b := range []int{1, 2, 1, 2} {
		w.change(w.dns(8080, b))
		w.flowsTo(w.Backends[b-1].Name)
	}
}

// flowRecovers has a flow that goes on while the service has no backends, then some.
func flowRecovers(w *world) {
	w.serveAll(8080)
	w.run(w.dns(8080))
	l := w.load(w.Client)
	for _, target := range targets(53) {
		l.Send(loss.Flows{Target: target, Count: 5, Every: slower(20 * time.Millisecond)})
		for range 3 {
			w.flow(target)
		}
	}
	w.change(w.dns(8080, 1))
	w.flowsTo("b1")
	before := l.Report().Datagrams.Backends["b1"]
	w.eventually("all flows are answered", func() bool { return l.Report().Datagrams.Backends["b1"] > before+100 })
	w.change(w.dns(8080))
	w.change(w.dns(8080, 1))
	w.flowsTo("b1")
}

func flowIsRefused(w *world) {
	server := w.serveAll(8080)[0]
	w.run(w.dns(8080, 1))
	w.flowsTo("b1")
	w.change(w.dns(8080))
	for _, target := range targets(53) {
		w.eventually("the flow is refused", func() bool { return w.flow(target) == string(loss.Refused) })
	}
	w.nothingComesTo(server)
	if left := w.flows("udp", "dport=53", "sport=8080"); len(left) != 0 {
		w.t.Errorf("entries are left: %v", left)
	}
}

func noEntriesAreLeft(w *world) {
	server := w.serveAll(8080)[0]
	keeper := service{name: "keeper", port: 80, backends: w.at(8080, 1)} // the VIP stays
	w.run(keeper, w.dns(8080, 1))
	w.flowsTo("b1")
	w.change(keeper)
	w.eventually("the entries are gone", func() bool { return len(w.flows("udp", "dport=53", "sport=8080")) == 0 })
	w.nothingComesTo(server)
}

func flowFollowsThePort(w *world) {
	w.serve(w.Backends[0], "old", 8080)
	w.serve(w.Backends[0], "new", 8081)
	w.run(w.dns(8080, 1))
	w.flowsTo("old")
	w.change(w.dns(8081, 1))
	w.flowsTo("new")
	w.change(w.dns(8080, 1))
	w.flowsTo("old")
}

// twoUDPServices changes one of two UDP services on a VIP, which share a backend.
func twoUDPServices(w *world) {
	w.serveAll(8080)
	other := service{name: "other", port: 54, protocol: "udp", backends: w.at(8080, 1, 2)}
	w.run(other, w.dns(8080, 1))
	l := w.load(w.Client)
	for _, target := range targets(54) {
		l.Send(loss.Flows{Target: target, Count: 10, Every: slower(20 * time.Millisecond)})
	}
	w.eventually("the flows run", func() bool { return l.Report().Datagrams.Total > 100 })
	before := w.entryIDs("udp", "dport=54")
	for _, b := range []int{2, 1, 2, 1}[:max(2, fewer(4))] {
		w.change(other, w.dns(8080, b))
		w.flowsTo(w.Backends[b-1].Name)
	}
	w.change(other)
	lossless(w.t, "the flows of the service that did not change", l.Stop())
	w.sameEntries(before, w.entryIDs("udp", "dport=54"))
}

// restartKeepsEntries restarts vipd under live flows: their entries stay, the very same ones.
func restartKeepsEntries(w *world) {
	w.serveAll(8080)
	w.run(w.dns(8080, 1, 2, 3))
	l := w.load(w.Client)
	for _, target := range targets(53) {
		l.Send(loss.Flows{Target: target, Count: 20, Every: slower(20 * time.Millisecond)})
	}
	w.eventually("the flows run", func() bool { return l.Report().Datagrams.Total > 200 })
	before := w.entryIDs("udp", "dport=53")
	for i := range max(2, fewer(4)) {
		if i%2 == 0 {
			w.stop()
		} else {
			w.kill()
		}
		w.start()
	}
	total := l.Report().Datagrams.Total
	w.eventually("the flows go on", func() bool { return l.Report().Datagrams.Total > total+200 })
	lossless(w.t, "over restarts", l.Stop())
	w.sameEntries(before, w.entryIDs("udp", "dport=53"))
}
