//go:build kernel

//lane:vm

package vip

import (
	"fmt"
	"log/slog"
	"testing"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
)

// A service moves from iptables to ipvs and back, each time new first. After every
// single step a new connection is answered at once, and those that stand go on, also
// when the flows of the mode that it left are ended.
func TestEveryStepOfAMoveBetweenModesServes(t *testing.T) {
	inLab(t, never, 1, func(t *testing.T, w *world, lab *kerneltest.Lab, p place) {
		kerneltest.Need(t, kerneltest.IPVS())
		lab.LB.SetSysctl(t, "net.ipv4.vs.conntrack", "1")
		flows, err := netfilter.OpenConntrack(slog.New(slog.DiscardHandler))
		fatal(t, err)
		defer func() { _ = flows.Close() }()
		d := w.door(t, atInput)
		edit := lb.Snapshot{}.Edit()
		for _, q := range places(lab) {
			edit.Put(svc(at(q.vip, 80), never, at(q.backends[0], 8080)))
		}
		translated := edit.Snapshot()
		taken := nat(at(p.vip, 80), never, at(p.backends[0], 8080))
		edit.Put(taken)
		open := edit.Snapshot()
		rule := fmt.Sprintf("SVC -p tcp -d %s --dport 80 -j DNAT --to-destination %s", p.vip, at(p.backends[0], 8080))
		do := func(line string) func() { return func() { w.sh(t, line) } }
		shut := func(want lb.Snapshot) func() { return func() { fatal(t, d.Shut(t.Context(), want, prune)) } }
		opened := func(want lb.Snapshot) func() { return func() { fatal(t, d.Open(t.Context(), want, prune)) } }
		end := func(w netfilter.Way) func() {
			return func() {
				done, err := flows.Evict(t.Context(), netfilter.Eviction{Key: taken.Key, Backend: taken.Backends[0].Addr, Way: w})
				if err != nil || done.Deleted == 0 {
					t.Errorf("ended %d flows: %v", done.Deleted, err)
				}
			}
		}
		clean(t, d, translated, prune)

		old := answered(t, lab.Client, at(p.vip, 80), "b1 "+p.client)
		for _, step := range []struct {
			name string
			make func()
		}{
			{"shut for ipvs", shut(open)},
			{"the virtual server", func() { virtual(t, w, taken) }},
			{"open for ipvs", opened(open)},
			{"the rule goes", do(p.tool + " -t nat -D " + rule)},
			{"the flows of iptables end", end(netfilter.ByNAT)},
			{"shut for iptables", shut(translated)},
			{"the rule", do(p.tool + " -t nat -A " + rule)},
			{"the virtual server gets nothing new", do(fmt.Sprintf("ipvsadm -e %s -r %s -m -w 0", ipvsService(taken), taken.Backends[0].Addr))},
			{"open for iptables", opened(translated)},
			{"the flows of ipvs end", end(netfilter.ByIPVS)},
		} {
			step.make()
			t.Log("after: ", step.name)
			c := answered(t, lab.Client, at(p.vip, 80), "b1 "+p.client)
			echoes(t, old)
			echoes(t, c)
			old = c
		}
	})
}
