//go:build kernel

package e2e

import (
	"net/netip"

	"vipd/internal/kerneltest"
)

// overTCPAndUDP returns two services that differ in nothing but the protocol.
func overTCPAndUDP(name string, port int, masquerade string, backends []string) []service {
	s := service{name: name + "-tcp", port: port, more: []string{`masquerade = "` + masquerade + `"`}, backends: backends}
	u := s
	u.name, u.protocol = name+"-udp", "udp"
	return []service{s, u}
}

// runEveryMasquerade starts vipd with b1 behind port 80 with masquerade always, 81
// with never and 82 with auto.
func (w *world) runEveryMasquerade() {
	w.t.Helper()
	var services []service
	for i, masquerade := range []string{"always", "never", "auto"} {
		services = append(services, overTCPAndUDP(masquerade, 80+i, masquerade, w.at(8080, 1))...)
	}
	w.run(services...)
}

// masquerade serves port 80 that way from now on, and nothing else.
func (w *world) masquerade(masquerade string, backends []string) {
	w.t.Helper()
	services := overTCPAndUDP("web", 80, masquerade, backends)
	if w.cmd == nil {
		w.run(services...)
	} else {
		w.change(services...)
	}
}

// masquerades asks which client address a backend sees. b2 is a client on the subnet
// of the backend b1: without masquerade the answer would go to it directly.
func masquerades(w *world) {
	w.serveAll(8080)
	w.runEveryMasquerade()
	lb := []netip.Addr{netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("fd00:2::1")}
	client := []netip.Addr{w.Client.Addr4, w.Client.Addr6}
	tests := []struct {
		port      int
		from      *kerneltest.Host
		want      []netip.Addr
		situation string
	}{
		{80, w.Client, lb, "always, a client elsewhere"},
		{81, w.Client, client, "never, a client elsewhere"},
		{82, w.Client, client, "auto, a client elsewhere"},
		{80, w.Backends[1], lb, "always, a client on the backend's subnet"},
		{82, w.Backends[1], lb, "auto, a client on the backend's subnet"},
	}
	for _, tt := range tests {
		for i, target := range targets(tt.port) {
			for _, network := range []string{"tcp", "udp"} {
				if a := w.ask(tt.from, network, target); a.Client.Addr() != tt.want[i] {
					w.t.Errorf("%s: %s/%s sees %s, want %s", tt.situation, target, network, a.Client.Addr(), tt.want[i])
				}
			}
		}
	}
}

func hairpin(w *world) {
	w.serveAll(8080)
	w.runEveryMasquerade()
	for i := range 3 {
		for _, target := range targets(80 + i) {
			w.answeredBy(w.Backends[0], "tcp", target, "b1")
			w.answeredBy(w.Backends[0], "udp", target, "b1")
		}
	}
}

func hostIsClient(w *world) {
	w.serveAll(8080)
	for _, masquerade := range []string{"never", "auto", "always"} {
		w.masquerade(masquerade, w.at(8080, 1))
		for i, target := range targets(80) {
			for _, network := range []string{"tcp", "udp"} {
				a := w.ask(w.LB, network, target)
				if want := []string{"10.2.0.1", "fd00:2::1"}[i]; a.Client.Addr().String() != want {
					w.t.Errorf("masquerade %s: %s/%s sees the host as %s, want %s", masquerade, target, network, a.Client.Addr(), want)
				}
			}
		}
	}
}
