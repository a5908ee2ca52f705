//go:build kernel

package e2e

import (
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
)

// bystanders are the services that a walk leaves alone: one of each kind, on a VIP
// that others share.
func (w *walk) bystanders() []service {
	all := w.at(8080, 1, 2, 3, 4)
	return []service{
		{name: "plain", port: 80, backends: all},
		{name: "turns", port: 81, more: []string{`scheduler = "rr"`, `masquerade = "never"`}, backends: all},
		{name: "affine", port: 82, more: []string{`affinity_timeout = "1h"`}, backends: all},
		{name: "allowed", port: 83, more: []string{`allow = ["10.1.0.0/24", "fd00:1::/64"]`}, backends: all},
		{name: "dns", port: 53, protocol: "udp", backends: all},
		{name: "affine-dns", port: 54, protocol: "udp", more: []string{`affinity_timeout = "1h"`}, backends: all},
	}
}

// TestB63_F74_F75_ARandomWalkLosesNothingOfItsBystanders walks from configuration to
// configuration, with restarts, kill -9 of vipd and of its tools in the middle of
// passes, and others at work beside it. Not one packet of the services that do not
// change is lost meanwhile.
func TestB63_F74_F75_ARandomWalkLosesNothingOfItsBystanders(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWalk(t)
	w.kept = w.bystanders()
	w.edit()
	w.start()
	l, affine := w.load(w.Client), w.load(w.Client)
	for i, target := range targets(80) {
		for _, port := range []int{80, 81, 83} {
			at := targets(port)[i]
			l.Connect(loss.Connections{Target: at, Rate: 25})
			l.Hold(loss.Hold{Target: at, Count: 3, Every: 50 * time.Millisecond})
			l.Hold(loss.Hold{Target: at, Count: 2})
		}
		for _, port := range []int{53, 54} {
			l.Send(loss.Flows{Target: targets(port)[i], Count: 5, Every: 50 * time.Millisecond})
		}
		if target.Addr().Is4() { // which has one backend for the one client
			affine.Connect(loss.Connections{Target: targets(82)[i], Rate: 50})
		}
	}
	for range soak(50, 500) {
		w.undamaged()
	}
	lossless(t, "services that do not change", l.Stop())
	report := affine.Stop()
	lossless(t, "a service with affinity", report)
	if len(report.Connections.Backends) != 1 {
		t.Errorf("the one client of the service with affinity came to %v", report.Connections.Backends)
	}
}

// undamaged does one thing that takes nothing away from the bystanders.
func (w *walk) undamaged() {
	w.t.Helper()
	if n := w.random.IntN(6); n < 5 {
		w.do(n)
		return
	}
	for _, tool := range []string{"iptables-nft", "ip6tables-nft"} { // others at work
		w.LB.Run(w.t, tool, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "9", "-j", "ACCEPT")
		w.LB.Run(w.t, tool, "-t", "nat", "-I", "PREROUTING", "1", "-p", "tcp", "--dport", "9", "-j", "ACCEPT")
		w.LB.Run(w.t, tool, "-t", "nat", "-D", "PREROUTING", "-p", "tcp", "--dport", "9", "-j", "ACCEPT")
	}
}
