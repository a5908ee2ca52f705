//go:build kernel

package e2e

import (
	"time"
)

func deniesTCP(w *world) {
	deny(w, "tcp")
}

func deniesUDP(w *world) {
	deny(w, "udp")
}

func deny(w *world, network string) {
	w.serveAll(8080)
	w.serve(w.LB, "host", 80) // on the host's own addresses, not on the VIP
	empty := service{name: "empty", port: 80, protocol: network}
	w.run(empty)
	check := func() {
		w.t.Helper()
		for _, target := range targets(80) {
			w.refused(w.Client, network, target)
			w.refused(w.LB, network, target)
		}
	}
	check()
	full := empty
	full.backends = w.at(8080, 1)
	w.change(full)
	for _, target := range targets(80) {
		w.answeredBy(w.Client, network, target, "b1")
	}
	time.Sleep(time.Second) // the kernel sends one ICMP error a second and client
	w.change(empty)
	check()
}

func guardsUnusedPorts(w *world) {
	w.serveAll(8080)
	any := wildcards(22, 80)
	w.listen(w.LB, "host", any, any)
	w.run(service{name: "web", port: 80, backends: w.at(8080, 1)})
	for _, target := range targets(22) {
		for _, network := range []string{"tcp", "udp"} {
			w.refused(w.Client, network, target)
			w.refused(w.LB, network, target)
		}
	}
	for _, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b1")
		w.refused(w.Client, "udp", target)
	}
	for _, own := range hostPorts(w.LB, 22) {
		w.answeredBy(w.Client, "tcp", mustAddrPort(own), "host")
	}
}

func answersPings(w *world) {
	w.serveAll(8080)
	w.run(service{name: "web", port: 80, backends: w.at(8080, 1)}, service{name: "empty", vips: []string{"192.0.2.11", "2001:db8::11"}, port: 80})
	for _, v := range append([]string{"192.0.2.11", "2001:db8::11"}, vips...) {
		if err := ping(w.Client, addrPort(v, 0).Addr()); err != nil {
			w.t.Errorf("the client pings %s: %v", v, err)
		}
	}
	if err := ping(w.Client, addrPort("192.0.2.77", 0).Addr()); err == nil {
		w.t.Error("an address that is no VIP answers")
	}
}
