//go:build kernel

package e2e

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
	"vipd/reconciler"
)

func reachesTCP(w *world) {
	reaches(w, "tcp")
}

func reachesUDP(w *world) {
	reaches(w, "udp")
}

func reaches(w *world, network string) {
	w.serveAll(8080)
	w.run(service{name: "web", port: 80, protocol: network, backends: w.at(8080, 1, 2)})
	for _, target := range targets(80) {
		w.answeredBy(w.Client, network, target, "b1", "b2")
		w.answeredBy(w.LB, network, target, "b1", "b2")
	}
}

func portsOfOneVIP(w *world) {
	w.serveAll(8080)
	w.run(
		service{name: "one", port: 80, backends: w.at(8080, 1)},
		service{name: "two", port: 81, backends: w.at(8080, 2)})
	for i := range vips {
		w.answeredBy(w.Client, "tcp", targets(80)[i], "b1")
		w.answeredBy(w.Client, "tcp", targets(81)[i], "b2")
	}
}

func protocolsOfOnePort(w *world) {
	w.serveAll(53)
	w.run(
		service{name: "dns-tcp", port: 53, backends: w.at(53, 1)},
		service{name: "dns-udp", port: 53, protocol: "udp", backends: w.at(53, 2)})
	for _, target := range targets(53) {
		w.answeredBy(w.Client, "tcp", target, "b1")
		w.answeredBy(w.Client, "udp", target, "b2")
	}
}

func otherPort(w *world) {
	w.serve(w.Backends[0], "other-port", 80)
	w.serve(w.Backends[0], "right-port", 8080)
	w.run(
		service{name: "tcp", port: 80, backends: w.at(8080, 1)},
		service{name: "udp", port: 80, protocol: "udp", backends: w.at(8080, 1)})
	for _, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "right-port")
		w.answeredBy(w.Client, "udp", target, "right-port")
	}
}

// TestB7 turns IPv6 off on the load balancer: nothing of that family can be put in
// place then, and IPv4 must not care.
//
//lane:vm ipvs
func TestB7_OneFamilyThatFailsDoesNotStopTheOther(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	w.LB.SetSysctl(t, "net.ipv6.conf.all.disable_ipv6", "1")
	w.LB.SetSysctl(t, "net.ipv6.conf.default.disable_ipv6", "1")
	w.write(config(service{name: "web", port: 80, backends: w.at(8080, 1)}))
	w.begin()
	w.await("quarantine the IPv6 service", func(s reconciler.Status) bool {
		states := map[bool]string{}
		for _, svc := range s.Services {
			states[svc.Key.Addr.Is4()] = svc.State
		}
		return states[true] == "serving" && states[false] == "quarantined"
	})
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b1")
	w.write(config(service{name: "web", port: 80, backends: w.at(8080, 2)}))
	w.vipd("reload") // its exit status tells of the quarantine
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b2")
}

func manyVIPs(w *world) {
	w.serveAll(8080)
	var many []string
	for n := range 40 {
		many = append(many, fmt.Sprintf("192.0.2.%d", 100+n), fmt.Sprintf("2001:db8::1:%d", n))
	}
	w.run(service{name: "web", vips: many, port: 80, backends: w.at(8080, 1, 2)})
	for _, v := range many {
		w.ask(w.Client, "tcp", netip.AddrPortFrom(netip.MustParseAddr(v), 80))
	}
	w.refused(w.Client, "tcp", netip.AddrPortFrom(netip.MustParseAddr(many[7]), 81))
}

func backendIsTheHost(w *world) {
	w.serveAll(8080)
	w.serve(w.LB, "lb", 8080)
	for _, masquerade := range []string{"always", "never", "auto"} {
		w.masquerade(masquerade, append(w.at(8080, 1), hostPorts(w.LB, 8080)...))
		for _, target := range targets(80) {
			for _, network := range []string{"tcp", "udp"} {
				w.answeredBy(w.Client, network, target, "b1", "lb")
				w.answeredBy(w.LB, network, target, "b1", "lb")
			}
		}
	}
}

func largeRequests(w *world) {
	w.serveAll(8080)
	w.run(
		service{name: "tcp", port: 80, backends: w.at(8080, 1)},
		service{name: "udp", port: 80, protocol: "udp", backends: w.at(8080, 1)})
	for _, target := range targets(80) {
		for _, size := range []int{1400, 100_000, 2_000_000} {
			if _, err := (loss.Request{In: w.Client.Do, Network: "tcp", Target: target, Size: size}).Ask(w.t.Context()); err != nil {
				w.t.Errorf("%s/tcp, %d bytes: %v", target, size, err)
			}
		}
		for _, size := range []int{1400, 8000, 60_000} {
			if _, err := (loss.Request{In: w.Client.Do, Network: "udp", Target: target, Size: size}).Ask(w.t.Context()); err != nil {
				w.t.Errorf("%s/udp, %d bytes: %v", target, size, err)
			}
		}
	}
}

// spread asks that the deviation from the weights is one that chance produces
// once in a million (chi-square).
func spread(w *world) {
	b := w.Backends[0]
	for n := range 50 {
		w.serve(b, fmt.Sprintf("s%d", n), 9000+n)
	}
	var services []service
	sizes := []int{1, 2, 3, 7, 50}
	for i, n := range sizes {
		s := service{name: fmt.Sprintf("n%d", n), vips: vips[:1], port: 80 + i}
		for k := range n {
			s.backends = append(s.backends, hostPorts(b, 9000+k)[0])
		}
		services = append(services, s)
	}
	// Long forms: weights 1 to 20, beyond what one chain holds in a row, and rr.
	weighted := service{name: "weighted", vips: vips[:1], port: 90}
	turns := service{name: "rr", vips: vips[:1], port: 91, more: []string{`scheduler = "rr"`}, backends: services[3].backends}
	text := config(append(services, turns)...) + "\n" + strings.Replace(weighted.String(), "backends = []\n", "", 1)
	for k := range 20 {
		text += fmt.Sprintf("[[service.backend]]\naddress = %q\nweight = %d\n", hostPorts(b, 9000+k)[0], k+1)
	}
	w.put(text)
	for i, n := range sizes {
		expect(w.t, fmt.Sprintf("%d backends", n), w.sample(80+i, fewer(40)*n), func(int) float64 { return 1 }, n)
	}
	expect(w.t, "20 backends of weight 1 to 20", w.sample(90, fewer(2000)), func(k int) float64 { return float64(k + 1) }, 20)
	each := fewer(100)
	for name, got := range w.sample(91, 7*each) {
		if got < each-3 || got > each+3 {
			w.t.Errorf("rr over 7 backends: %s has %d of %d", name, got, 7*each)
		}
	}
}

// sample makes so many connections and returns who answered.
func (w *world) sample(port, count int) map[string]int {
	w.t.Helper()
	l := w.load(w.Client)
	l.Connect(loss.Connections{Target: targets(port)[0], Rate: 800, Count: count})
	r := l.Wait()
	if r.Lost() > 0 {
		w.t.Errorf("port %d:\n%s", port, r)
	}
	return r.Connections.Backends
}

// expect compares a sample with weights, by chi-square at p = 1e-6 (the quantile
// by Wilson and Hilferty).
func expect(t *testing.T, what string, got map[string]int, weight func(int) float64, n int) {
	t.Helper()
	total, weights := 0.0, 0.0
	for k := range n {
		total += float64(got[fmt.Sprintf("s%d", k)])
		weights += weight(k)
	}
	chi := 0.0
	for k := range n {
		want := total * weight(k) / weights
		chi += math.Pow(float64(got[fmt.Sprintf("s%d", k)])-want, 2) / want
	}
	df := float64(max(n-1, 1))
	limit := df * math.Pow(1-2/(9*df)+4.75*math.Sqrt(2/(9*df)), 3)
	t.Logf("%s: chi-square %.1f, limit %.1f", what, chi, limit)
	if chi > limit || len(got) != n {
		t.Errorf("%s: chi-square %.1f, limit %.1f, %d answered: %v", what, chi, limit, len(got), got)
	}
}
