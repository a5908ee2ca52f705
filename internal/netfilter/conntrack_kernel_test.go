//go:build kernel

package netfilter

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vipd/lb"
)

// Only the entries of the service and backend that are named go: not those of
// another port of the backend, of another backend, of another service.
//
//lane:vm
func TestEvictTakesExactlyTheFlowsThatAreNamed(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		targets := []netip.AddrPort{l.at(0, 8080), l.at(0, 8081), l.at(1, 8080)}
		var conns int
		for i, target := range targets {
			l.udpServer(l.Backends[i/2], target, target.String())
			tcp := l.tcpServer(l.Backends[i/2], target)
			for _, port := range []uint16{80, 81} {
				l.serve(port == 81, fmt.Sprintf("%d/udp", port), target.String(), fmt.Sprintf("%d/tcp", port), target.String())
				conns++
				client := l.udpClient(l.Client, uint16(5000+conns), port)
				if got := ask(t, client); got != target.String() {
					t.Fatalf("%s answers, want %s", got, target)
				}
				l.connect(l.Client, uint16(5000+conns), port, tcp)
			}
		}
		left := l.entries()
		if len(left) != 12 {
			t.Fatalf("%d entries to begin with, want 12: %v", len(left), left)
		}
		evict := func(key lb.Key, backends ...netip.AddrPort) {
			t.Helper()
			var all []Eviction
			for _, b := range backends {
				all = append(all, Eviction{Key: key, Backend: b})
			}
			done := l.evict(len(backends), all...)
			// IPv6 is filtered by port only, and two backends have the same.
			if most := 1 + key.Addr.BitLen()/128; len(backends) == 1 && done.Seen > most {
				t.Errorf("%s: the kernel handed over %d flows for one", key, done.Seen)
			}
			for _, b := range backends {
				maps.DeleteFunc(left, func(line string, _ bool) bool {
					return strings.HasPrefix(line, key.Protocol.String()) && strings.Contains(line, fmt.Sprintf("dport=%d src=%s ", key.Port, b.Addr())) &&
						strings.Contains(line, fmt.Sprintf("sport=%d dport", b.Port()))
				})
			}
			now := l.entries()
			maps.DeleteFunc(now, func(line string, _ bool) bool { return ofPokeLine(line) })
			if !maps.Equal(now, left) {
				t.Errorf("after the eviction of %s: left\n%s\nwant\n%s", key, lines(now), lines(left))
			}
		}
		evict(l.key(80, lb.UDP), targets[0])
		evict(l.key(80, lb.TCP), targets[1])
		evict(l.key(81, lb.UDP), targets[0], targets[2]) // one dump for both
		evict(l.key(81, lb.TCP), targets[2])
		if len(left) != 7 {
			t.Errorf("the test itself lost count: %d entries left", len(left))
		}
		l.evict(0, Eviction{Key: l.key(80, lb.UDP), Backend: targets[0]}) // gone already
	})
}

// Many services at once take one dump, and the same entries go.
func TestEvictOfManyServices(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		l.udpServer(l.Backends[0], l.at(0, 8080), "b1")
		var rules []string
		var evictions []Eviction
		for port := range uint16(wideFrom + 4) {
			rules = append(rules, fmt.Sprintf("%d/udp", 100+port), l.at(0, 8080).String())
			if port < wideFrom {
				evictions = append(evictions, Eviction{Key: l.key(100+port, lb.UDP), Backend: l.at(0, 8080)})
			}
		}
		l.serve(false, rules...)
		for port := range uint16(wideFrom + 4) {
			if got := ask(t, l.udpClient(l.Client, 6000+port, 100+port)); got != "b1" {
				t.Fatalf("port %d: %s", 100+port, got)
			}
		}
		l.evict(wideFrom, evictions...)
		if left := l.entries(); len(left) != 4 {
			t.Errorf("left: %s", lines(left))
		}
	})
}

func TestB44_FlowMovesToTheBackendThatReplacesItsOwn(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		l.udpServer(l.Backends[0], l.at(0, 8080), "b1")
		l.udpServer(l.Backends[1], l.at(1, 8080), "b2")
		client := l.udpClient(l.Client, 7000, 53)
		for i, masq := range []bool{false, true} {
			l.serve(masq, "53/udp", l.at(0, 8080).String())
			if i == 0 && ask(t, client) != "b1" {
				t.Fatal("no answer to begin with")
			}
			l.serve(masq, "53/udp", l.at(1, 8080).String())
			if got := ask(t, client); got != "b1" {
				t.Errorf("before the eviction %s answers, want b1: nothing to test", got)
			}
			l.evict(1, Eviction{Key: l.key(53, lb.UDP), Backend: l.at(0, 8080)})
			if got := ask(t, client); got != "b2" {
				t.Errorf("after the eviction %s answers, want b2", got)
			}
			l.serve(true, "53/udp", l.at(0, 8080).String())
			l.evict(1, Eviction{Key: l.key(53, lb.UDP), Backend: l.at(1, 8080)})
			if got := ask(t, client); got != "b1" {
				t.Errorf("back again, %s answers, want b1", got)
			}
		}
	})
}

// A flow that began before the service had a backend is an entry without NAT.
func TestB45_FlowThatWasSentToNobodyFindsTheFirstBackend(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		l.udpServer(l.Backends[0], l.at(0, 8080), "b1")
		// The guard would keep the entry from being made; nobody answers without it.
		l.rules("filter", "\n-I VIPD-IN -p udp -j ACCEPT")
		client := l.udpClient(l.Client, 7000, 53)
		if got := ask(t, client); got != "refused" {
			t.Fatalf("without a backend: %s", got)
		}
		l.serve(false, "53/udp", l.at(0, 8080).String())
		if got := ask(t, client); got != "refused" {
			t.Errorf("before the eviction: %s, so there is nothing to test", got)
		}
		l.evict(1, Eviction{Key: l.key(53, lb.UDP), Backend: netip.AddrPortFrom(l.vip, 53)})
		if got := ask(t, client); got != "b1" {
			t.Errorf("after the eviction: %s, want b1", got)
		}
	})
}

func TestB46_LastBackendGoneMeansRefused(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		l.udpServer(l.Backends[0], l.at(0, 8080), "b1")
		client := l.udpClient(l.Client, 7000, 53)
		l.serve(false, "53/udp", l.at(0, 8080).String())
		if got := ask(t, client); got != "b1" {
			t.Fatal(got)
		}
		l.serve(false)
		if got := ask(t, client); got != "b1" {
			t.Errorf("before the eviction: %s, so there is nothing to test", got)
		}
		l.evict(1, Eviction{Key: l.key(53, lb.UDP), Backend: l.at(0, 8080)})
		if got := ask(t, client); got != "refused" {
			t.Errorf("after the eviction: %s, want an ICMP error", got)
		}
	})
}

func TestB48_FlowFollowsTheTargetPort(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		l.udpServer(l.Backends[0], l.at(0, 8080), "old")
		l.udpServer(l.Backends[0], l.at(0, 8081), "new")
		client := l.udpClient(l.Client, 7000, 53)
		l.serve(false, "53/udp", l.at(0, 8080).String())
		if got := ask(t, client); got != "old" {
			t.Fatal(got)
		}
		l.serve(false, "53/udp", l.at(0, 8081).String())
		l.evict(1, Eviction{Key: l.key(53, lb.UDP), Backend: l.at(0, 8080)})
		if got := ask(t, client); got != "new" {
			t.Errorf("after the eviction %q answers, want the new port", got)
		}
	})
}

func TestB49_ServicesOnOneVIPDoNotDisturbEachOther(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		// Both services have the same backend, to make it harder.
		l.udpServer(l.Backends[0], l.at(0, 8080), "b1")
		l.udpServer(l.Backends[1], l.at(1, 8080), "b2")
		l.serve(false, "53/udp", l.at(0, 8080).String(), "54/udp", l.at(0, 8080).String())
		a, b := l.udpClient(l.Client, 7000, 53), l.udpClient(l.Client, 7001, 54)
		if ask(t, a) != "b1" || ask(t, b) != "b1" {
			t.Fatal("no answer to begin with")
		}
		// The rules of both change, but only the flows of one are evicted.
		l.serve(false, "53/udp", l.at(1, 8080).String(), "54/udp", l.at(1, 8080).String())
		l.evict(1, Eviction{l.key(53, lb.UDP), l.at(0, 8080), ByNAT})
		if got := ask(t, a); got != "b2" {
			t.Errorf("the evicted flow is answered by %s", got)
		}
		if got := ask(t, b); got != "b1" {
			t.Errorf("the flow of the other service is answered by %s", got)
		}
	})
}

func TestB50_SweepKeepsWhatIsWanted(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		l.udpServer(l.Backends[0], l.at(0, 8080), "b1")
		l.udpServer(l.Backends[1], l.at(1, 8080), "b2")
		l.serve(false, "53/udp", l.at(0, 8080).String(), "54/udp", l.at(1, 8080).String())
		if ask(t, l.udpClient(l.Client, 7000, 53)) != "b1" || ask(t, l.udpClient(l.Client, 7001, 54)) != "b2" {
			t.Fatal("no answer to begin with")
		}
		// A flow that no VIP took: to the load balancer itself.
		l.udpServer(l.LB, netip.AddrPortFrom(l.own(l.LB), 9000), "lb")
		foreign, err := l.Client.Dial(t.Context(), net.Dialer{}, "udp", netip.AddrPortFrom(l.own(l.LB), 9000).String())
		check(t, err)
		t.Cleanup(func() { check(t, foreign.Close()) })
		if ask(t, foreign) != "lb" {
			t.Fatal("no answer from the load balancer")
		}
		before := l.entries()
		sweep := func(keep func(lb.Key, netip.AddrPort) bool) Evicted {
			t.Helper()
			done, err := l.ct.Sweep(t.Context(), lb.UDP, testMark, map[Way]Keep{ByAny: keep})
			check(t, err)
			return done
		}
		var asked []string
		done := sweep(func(k lb.Key, b netip.AddrPort) bool {
			if FamilyOf(k.Addr) == FamilyOf(l.vip) { // those of the other family's lab are still there
				asked = append(asked, k.String()+" "+b.String())
			}
			return true
		})
		slices.Sort(asked)
		want := []string{l.key(53, lb.UDP).String() + " " + l.at(0, 8080).String(), l.key(54, lb.UDP).String() + " " + l.at(1, 8080).String()}
		if !slices.Equal(asked, want) || done.Deleted != 0 {
			t.Errorf("asked for %q, want %q; %+v", asked, want, done)
		}
		if after := l.entries(); !maps.Equal(before, after) {
			t.Errorf("a sweep that keeps everything changed\n%s to\n%s", lines(before), lines(after))
		}
		done, err = l.ct.Sweep(t.Context(), lb.UDP, testMark, map[Way]Keep{ByIPVS: func(lb.Key, netip.AddrPort) bool { return false }})
		if err != nil || done.Deleted != 0 {
			t.Errorf("a sweep of another way: %+v, %v; want no flow to go", done, err)
		}
		l.evict(0, Eviction{l.key(54, lb.UDP), l.at(1, 8080), ByIPVS})
		done = sweep(func(_ lb.Key, b netip.AddrPort) bool { return b != l.at(1, 8080) })
		if done.Deleted != 1 {
			t.Errorf("%+v, want one flow to go", done)
		}
		if after := l.entries(); len(after) != 2 || strings.Contains(lines(after), "src="+l.b[1].String()) {
			t.Errorf("left: %s", lines(after))
		}
	})
}

func lines(set map[string]bool) string { return strings.Join(slices.Sorted(maps.Keys(set)), "\n") }
