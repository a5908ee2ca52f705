//go:build kernel

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/reconciler"
)

// TestF80_FiftyThousandRules has 5,000 services with ten backends each: the load,
// one change, a restart, and the repair after somebody flushed the table. The times
// are told; how long a tool may take grows with what it is given.
func TestF80_FiftyThousandRules(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	ports := []int{8080, 8081, 8082, 8083, 8084}
	w.serveAll(ports...)
	var many []service
	for vip := range 250 {
		s := service{name: fmt.Sprintf("many%d", vip), vips: []string{fmt.Sprintf("192.0.2.%d", vip+1)}, protocol: "tcp", port: 1}
		for _, b := range w.Backends {
			for _, p := range ports {
				s.backends = append(s.backends, hostPorts(b, p)[0])
			}
		}
		many = append(many, s)
	}
	text := func() string {
		return strings.ReplaceAll(calm(config(many...)), "\nport = 1\n", "\nports = ["+numbers(1001, 1020)+"]\n")
	}
	took := func(what string, f func()) {
		began := time.Now()
		f()
		t.Logf("%s: %s", what, time.Since(began).Round(time.Millisecond))
	}
	last := addrPort("192.0.2.250", 1020)
	w.write(text())
	took("from the start of vipd to 50,000 rules in place", w.start)
	w.answeredBy(w.Client, "tcp", last, "b1", "b2")

	many[249].backends = many[249].backends[:5]
	took("a reload that changes twenty services", func() { w.reload(text()) })
	w.answeredBy(w.Client, "tcp", last, "b1")

	w.kill()
	generation := w.generation()
	took("from a restart to ready", w.start)
	if w.generation() != generation {
		t.Error("the restart wrote rules")
	}
	began := time.Now()
	w.LB.Run(t, "iptables-nft", "-t", "nat", "-F")
	flushed := time.Since(began)
	took(fmt.Sprintf("the repair after a flush, which itself took %s", flushed.Round(time.Millisecond)), func() {
		w.eventually("the last service answers", func() bool { return w.serves(last) })
		w.await("rest", func(s reconciler.Status) bool { return idle(s) && s.Pass.Error == "" })
	})
	w.answeredBy(w.Client, "tcp", addrPort("192.0.2.1", 1001), "b1", "b2")
}

// numbers lists the numbers from one to another.
func numbers(from, to int) string {
	var list []string
	for n := from; n <= to; n++ {
		list = append(list, fmt.Sprint(n))
	}
	return strings.Join(list, ", ")
}
