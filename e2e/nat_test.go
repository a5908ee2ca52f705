//go:build kernel

package e2e

import (
	"net/netip"
	"testing"

	"vipd/internal/kerneltest"
)

// TestB25 asks which client address a backend sees. b2 is a client on the subnet
// of the backend b1: without masquerade the answer would go to it directly.
func TestB25_MasqueradeAlwaysNeverAuto(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	var services []service
	for i, masquerade := range []string{"always", "never", "auto"} {
		for _, network := range []string{"tcp", "udp"} {
			services = append(services, service{name: network + masquerade, port: 80 + i, protocol: network, more: []string{`masquerade = "` + masquerade + `"`}, backends: w.at(8080, 1)})
		}
	}
	w.run(services...)
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
					t.Errorf("%s: %s/%s sees %s, want %s", tt.situation, target, network, a.Client.Addr(), tt.want[i])
				}
			}
		}
	}
}

func TestB26_ABackendReachesItselfThroughItsVIP(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 1)
	w.serveAll(8080)
	var services []service
	for i, masquerade := range []string{"always", "never", "auto"} {
		for _, network := range []string{"tcp", "udp"} {
			services = append(services, service{name: network + masquerade, port: 80 + i, protocol: network, more: []string{`masquerade = "` + masquerade + `"`}, backends: w.at(8080, 1)})
		}
	}
	w.run(services...)
	for i := range 3 {
		for _, target := range targets(80 + i) {
			w.answeredBy(w.Backends[0], "tcp", target, "b1")
			w.answeredBy(w.Backends[0], "udp", target, "b1")
		}
	}
}

func TestB27_TheHostIsAClientOfItsOwnVIPWithASourceThatCanBeAnswered(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 1)
	w.serveAll(8080)
	for _, masquerade := range []string{"never", "auto", "always"} {
		s := service{name: "web", port: 80, more: []string{`masquerade = "` + masquerade + `"`}, backends: w.at(8080, 1)}
		u := s
		u.name, u.protocol = "dns", "udp"
		if w.cmd == nil {
			w.run(s, u)
		} else {
			w.change(s, u)
		}
		for i, target := range targets(80) {
			for _, network := range []string{"tcp", "udp"} {
				a := w.ask(w.LB, network, target)
				if want := []string{"10.2.0.1", "fd00:2::1"}[i]; a.Client.Addr().String() != want {
					t.Errorf("masquerade %s: %s/%s sees the host as %s, want %s", masquerade, target, network, a.Client.Addr(), want)
				}
			}
		}
	}
}
