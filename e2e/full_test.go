//go:build kernel

package e2e

import (
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
	"vipd/reconciler"
)

// TestF81_AFullConnectionTableIsTold fills the table: nobody new gets in then, on any
// load balancer. vipd says so and goes on, what is established lives, and when there
// is room again all is as before.
//
//lane:vm
func TestF81_AFullConnectionTableIsTold(t *testing.T) {
	kerneltest.LimitConnections(t)
	if !kerneltest.Isolate(t) {
		return
	}
	kerneltest.Need(t, kerneltest.SmallTable())
	w := newWorld(t, 1)
	w.serveAll(8080)
	w.run(
		service{name: "web", port: 80, backends: w.at(8080, 1)},
		service{name: "dns", port: 53, protocol: "udp", backends: w.at(8080, 1)})
	crowded := func(s reconciler.Status) bool {
		return slices.ContainsFunc(s.Findings, func(f string) bool { return strings.Contains(f, "nf_conntrack_max") })
	}
	if s := w.await("rest", idle); crowded(s) {
		t.Fatalf("told before the table is full: %q", s.Findings)
	}
	held := w.load(w.Client)
	for _, target := range targets(80) {
		held.Hold(loss.Hold{Target: target, Count: 2, Every: 20 * time.Millisecond})
	}
	fill := func() error {
		for range 1100 { // from as many ports
			c, err := net.Dial("udp", targets(53)[0].String())
			if err != nil {
				return err
			}
			_, err = c.Write([]byte("x"))
			if err := c.Close(); err != nil {
				return err
			}
			if err != nil && !strings.Contains(err.Error(), "refused") {
				return err
			}
		}
		return nil
	}
	if err := w.Client.Do(fill); err != nil {
		t.Fatal(err)
	}
	w.await("the finding", crowded)
	w.eventually("the log tells", func() bool { return strings.Contains(w.logged(), "Connection tracking holds") })
	lossless(t, "established connections", held.Stop())
	w.LB.Run(t, "conntrack", "-D", "-p", "udp")
	w.await("room", func(s reconciler.Status) bool { return !crowded(s) && s.Ready })
	for _, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b1")
	}
}
