//go:build kernel

package e2e

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
)

// A backend of dr or of a tunnel that was set up by the commands of the documentation
// serves, over IPv4 and IPv6, by TCP and UDP, at its first packet and with packets that
// fill the link; and does not before. The client is a neighbour of the backends, since
// answers cannot pass the load balancer.
//
//lane:vm ipvs
func TestB1_B2_BackendsOfDRAndTunnelAsDocumented(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	kerneltest.Need(t, kerneltest.IPVS())
	w := newWorld(t, 4)
	client := w.Backends[3]
	ways := []struct {
		name  string
		lines []string // of the service
		needs []string // what to do on the backend
	}{
		{"dr", []string{`forward = "dr"`}, documented(t, "dr")},
		{"tunnel", []string{`forward = "tunnel"`}, documented(t, "tunnel")[:2]},
		{"gue", []string{`forward = "tunnel"`, `tunnel = "gue"`}, documented(t, "tunnel")},
	}
	var services []service
	for i, way := range ways {
		for _, protocol := range []string{"tcp", "udp"} {
			services = append(services, service{name: way.name + "-" + protocol, port: 80 + i, protocol: protocol,
				more: append([]string{`mode = "ipvs"`}, way.lines...), backends: w.at(80+i, i+1)})
		}
	}
	w.run(services...)
	for i, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			b := w.Backends[i]
			b.SetSysctl(t, "net.ipv4.conf.all.rp_filter", "1") // as careful hosts have it
			for _, target := range targets(80 + i) {
				if a, err := (loss.Request{In: client.Do, Network: "tcp", Target: target, Deadline: time.Second}).Ask(t.Context()); err == nil {
					t.Errorf("%s answers before anything was done: %+v", target, a)
				}
			}
			for _, commands := range way.needs {
				b.Run(t, "sh", "-eux", "-c", commands)
			}
			w.listen(b, b.Name, targets(80+i), targets(80+i))
			for _, target := range targets(80 + i) {
				for _, network := range []string{"tcp", "udp"} {
					w.answeredBy(client, network, target, b.Name)
				}
				if a, err := (loss.Request{In: client.Do, Network: "tcp", Target: target, Size: 60000, Deadline: 10 * time.Second}).Ask(t.Context()); err != nil {
					t.Errorf("a request of 60,000 bytes to %s: %+v, %v", target, a, err)
				}
			}
			if way.name != "gue" { // which adds nothing that could speak
				silentForVIPs(t, w, client, b)
			}
		})
	}
}

// documented returns the blocks of commands in the part of the documentation that tells
// what a backend needs.
func documented(t *testing.T, forward string) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile("../proxier/ipvs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, _ := strings.Cut(string(text), "\n### What a backend of "+forward+" needs\n")
	part, _, _ = strings.Cut(part, "\n##")
	for _, after := range strings.Split(part, "\n```sh\n")[1:] {
		block, _, _ := strings.Cut(after, "\n```\n")
		blocks = append(blocks, block)
	}
	if want := map[string]int{"dr": 1, "tunnel": 3}[forward]; len(blocks) != want {
		t.Fatalf("%d blocks of commands for a backend of %s, want %d", len(blocks), forward, want)
	}
	return blocks
}

// silentForVIPs wants that a backend answers nobody who asks on the link where a VIP is.
// The load balancer, which would answer in IPv4, is silent meanwhile.
func silentForVIPs(t *testing.T, w *world, client, b *kerneltest.Host) {
	t.Helper()
	w.LB.SetSysctl(t, "net.ipv4.conf.br0.arp_ignore", "8")
	defer w.LB.SetSysctl(t, "net.ipv4.conf.br0.arp_ignore", "0")
	if said := whoHas(t, client, b.Addr4); !strings.Contains(said, "lladdr") { // the control
		t.Errorf("%s does not answer for its own address: %q", b.Name, said)
	}
	for _, vip := range vips {
		client.Run(t, "ip", "route", "add", vip, "dev", "eth0")
		if said := whoHas(t, client, netip.MustParseAddr(vip)); strings.Contains(said, "lladdr") {
			t.Errorf("somebody on the link answers for %s: %s", vip, said)
		}
		client.Run(t, "ip", "route", "del", vip, "dev", "eth0")
	}
}

// whoHas has a host ask on its link for an address, and returns what it learned.
func whoHas(t *testing.T, h *kerneltest.Host, addr netip.Addr) string {
	t.Helper()
	h.Run(t, "ip", "neigh", "flush", "to", addr.String())
	_, _ = loss.Request{In: h.Do, Network: "tcp", Target: netip.AddrPortFrom(addr, 9), Deadline: 2 * time.Second}.Ask(t.Context())
	return h.Run(t, "ip", "neigh", "show", "to", addr.String())
}
