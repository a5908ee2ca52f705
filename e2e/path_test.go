//go:build kernel

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
)

// narrow is the MTU of the link that a path leads over; those at its ends know
// nothing of it.
const narrow = 1300

// behind attaches a host to the load balancer over two routers:
//
//	lb 10.3.0.1 - 10.3.0.2 r1 10.4.0.1 - 10.4.0.2 r2 10.5.0.1 - 10.5.0.10 far
//
// and alike in IPv6. One of the links is narrow: 3 (that of lb) or 4.
func (w *world) behind(narrowLink int) *kerneltest.Host {
	t := w.t
	r1, r2, far := kerneltest.NewHost(t, "r1"), kerneltest.NewHost(t, "r2"), kerneltest.NewHost(t, "far")
	far.Addr4, far.Addr6 = netip.MustParseAddr("10.5.0.10"), netip.MustParseAddr("fd00:5::10")
	ends := func(n int, a, b *kerneltest.Host, ofA, ofB string) {
		pair := fmt.Sprintf("p%d", n)
		w.LB.Run(t, "ip", "link", "add", pair+"a", "type", "veth", "peer", "name", pair+"b")
		for _, end := range []struct {
			h         *kerneltest.Host
			dev, last string
		}{{a, pair + "a", ofA}, {b, pair + "b", ofB}} {
			if end.h != w.LB {
				w.LB.Run(t, "ip", "link", "set", end.dev, "netns", end.h.Name)
			}
			end.h.Run(t, "ip", "addr", "add", fmt.Sprintf("10.%d.0.%s/24", n, end.last), "dev", end.dev)
			end.h.Run(t, "ip", "addr", "add", fmt.Sprintf("fd00:%d::%s/64", n, end.last), "dev", end.dev, "nodad")
			if n == narrowLink {
				end.h.Run(t, "ip", "link", "set", end.dev, "mtu", fmt.Sprint(narrow))
			}
			end.h.Run(t, "ip", "link", "set", end.dev, "up")
		}
	}
	ends(3, w.LB, r1, "1", "2")
	ends(4, r1, r2, "1", "2")
	ends(5, r2, far, "1", "10")
	route := func(h *kerneltest.Host, to4, to6, via string) {
		h.Run(t, "ip", "route", "add", to4, "via", "10."+via)
		h.Run(t, "ip", "route", "add", to6, "via", "fd00:"+strings.Replace(via, ".0.", "::", 1))
	}
	route(w.LB, "10.5.0.0/24", "fd00:5::/64", "3.0.2")
	route(r1, "10.5.0.0/24", "fd00:5::/64", "4.0.2")
	route(r1, "0.0.0.0/0", "::/0", "3.0.1")
	route(r2, "0.0.0.0/0", "::/0", "4.0.1")
	route(far, "0.0.0.0/0", "::/0", "5.0.1")
	// The routers speak of the narrow link: they need a way to those who asked.
	route(w.LB, "10.4.0.0/24", "fd00:4::/64", "3.0.2")
	for _, r := range []*kerneltest.Host{r1, r2} {
		r.SetSysctl(t, "net.ipv4.ip_forward", "1")
		r.SetSysctl(t, "net.ipv6.conf.all.forwarding", "1")
	}
	return far
}

// learned reports whether a host has learned the narrow path to an address.
func learned(t *testing.T, h *kerneltest.Host, to netip.Addr) bool {
	return strings.Contains(h.Run(t, "ip", "route", "get", to.String()), fmt.Sprintf("mtu %d", narrow))
}

// transfer sends much over TCP, and back, and a datagram in fragments.
func (w *world) transfer(from *kerneltest.Host, target netip.AddrPort) {
	w.t.Helper()
	if _, err := (loss.Request{In: from.Do, Network: "tcp", Target: target, Size: 500_000}).Ask(w.t.Context()); err != nil {
		w.t.Errorf("%s/tcp: %v", target, err)
	}
	w.eventually("a datagram in fragments comes back", func() bool { // the first ones tell of the narrow link
		_, err := loss.Request{In: from.Do, Network: "udp", Target: target, Size: 6000}.Ask(w.t.Context())
		return err == nil
	})
}

// TestPathMTUThroughTranslation has a narrow link on the way that only ICMP errors
// tell of: they come from a router, are about the translated packets, and must
// reach the right end, about the packets that it sent. FORWARD lets nothing else
// through than what is vipd's.
func TestPathMTUThroughTranslation(t *testing.T) {
	for teller, link := range map[string]int{"a router": 4, "the load balancer itself": 3} {
		for _, masquerade := range []string{"always", "never"} {
			t.Run("backend far away, "+teller+" tells, "+masquerade, func(t *testing.T) { backendFarAway(t, link, masquerade) })
			t.Run("client far away, "+teller+" tells, "+masquerade, func(t *testing.T) { clientFarAway(t, link, masquerade) })
		}
	}
}

func backendFarAway(t *testing.T, link int, masquerade string) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 0)
	far := w.behind(link)
	w.serve(far, "far", 8080)
	w.dropForwarded()
	w.run(overTCPAndUDP("web", 80, masquerade, hostPorts(far, 8080))...)
	for _, target := range targets(80) {
		w.transfer(w.Client, target)
		if !learned(t, w.Client, target.Addr()) {
			t.Errorf("the client has not learned how narrow the path to %s is", target.Addr())
		}
	}
}

func clientFarAway(t *testing.T, link int, masquerade string) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 1)
	far := w.behind(link)
	w.serveAll(8080)
	w.dropForwarded()
	w.run(overTCPAndUDP("web", 80, masquerade, w.at(8080, 1))...)
	peers := []netip.Addr{far.Addr4, far.Addr6}
	if masquerade == "always" {
		peers = []netip.Addr{netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("fd00:2::1")}
	}
	for i, target := range targets(80) {
		w.transfer(far, target)
		if !learned(t, w.Backends[0], peers[i]) {
			t.Errorf("the backend has not learned how narrow the path to the client of %s is", target.Addr())
		}
	}
}

// dropForwarded makes DROP the policy of FORWARD.
func (w *world) dropForwarded() {
	for _, tool := range []string{"iptables", "ip6tables"} {
		w.LB.Run(w.t, tool, "-P", "FORWARD", "DROP")
	}
}

// TestF70 has other rules drop all that is forwarded: by policy, as Docker does.
func TestF70_ForwardingWhoseOtherRulesDropEverything(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 1)
	w.serveAll(8080)
	w.dropForwarded()
	w.runEveryMasquerade()
	for port := 80; port <= 82; port++ {
		for _, target := range targets(port) {
			for _, network := range []string{"tcp", "udp"} {
				w.answeredBy(w.Client, network, target, "b1")
			}
		}
	}
	// Nothing else is let through.
	for _, direct := range w.at(8080, 1) {
		w.unreachable(mustAddrPort(direct))
	}
}

// TestB28 counts packets behind the last translation, where our bit must be gone
// and the bits of others still there.
//
//lane:vm ipvs
func TestB28_TheMarkIsConfigurableClearedAndLeavesForeignBitsAlone(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 1)
	w.serveAll(8080)
	for _, tool := range []string{"iptables", "ip6tables"} {
		w.LB.Run(t, tool, "-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-xmark", "0x40/0x40")
		w.LB.Run(t, tool, "-t", "mangle", "-A", "PREROUTING", "-j", "CONNMARK", "--set-xmark", "0x1/0x1")
	}
	const probe = `table inet probe {
	counter used {}
	counter left {}
	counter foreign {}
	counter lost {}
	chain before { type filter hook postrouting priority 0; meta mark & 0x10000 != 0 counter name used; }
	chain after {
		type filter hook postrouting priority 300
		meta mark & 0x10000 != 0 counter name left
		tcp dport 8080 meta mark & 0x40 != 0 counter name foreign
		tcp dport 8080 meta mark & 0x40 == 0 counter name lost
	}
}
`
	if err := os.WriteFile("/run/probe.nft", []byte(probe), 0o600); err != nil {
		t.Fatal(err)
	}
	w.LB.Run(t, "nft", "-f", "/run/probe.nft")
	w.write(strings.Replace(config(service{name: "web", port: 80, backends: w.at(8080, 1)}), "[proxy]\n", "[proxy]\nmark = \"0x10000\"\n", 1))
	w.start()
	for i, target := range targets(80) {
		for range 5 {
			w.answeredBy(w.Client, "tcp", target, "b1")
		}
		flows := w.LB.Run(t, "conntrack", "-L", "-f", []string{"ipv4", "ipv6"}[i], "-p", "tcp", "--dport", "80")
		if !strings.Contains(flows, fmt.Sprintf("mark=%d", 0x10001)) {
			t.Errorf("the connections to %s have other marks than ours beside that of others:\n%s", target, flows)
		}
	}
	for name, some := range map[string]bool{"used": true, "left": false, "foreign": true, "lost": false} {
		if out := w.LB.Run(t, "nft", "list", "counter", "inet", "probe", name); strings.Contains(out, "packets 0 ") == some {
			t.Errorf("packets seen: %t\n%s", !some, out)
		}
	}
	for _, tool := range []string{"iptables-save", "ip6tables-save"} {
		if out := w.LB.Run(t, tool); strings.Contains(out, "0x2000") || !strings.Contains(out, "0x10000/0x10000") {
			t.Errorf("%s shows the default mark in place of ours:\n%s", tool, out)
		}
	}
}

// takesAnyPort asks the kernel's own listing; the unit tests have the fallback.
func takesAnyPort(w *world) {
	w.serveAll(8080)
	w.run(service{name: "web", port: 80, backends: w.at(8080, 1)})
	for _, tool := range []string{"iptables-save", "ip6tables-save"} {
		out := w.LB.Run(w.t, tool, "-t", "nat")
		if n := strings.Count(out, "-j MASQUERADE"); n == 0 || n != strings.Count(out, "-j MASQUERADE --random-fully") {
			w.t.Errorf("%s:\n%s", tool, out)
		}
	}
}
