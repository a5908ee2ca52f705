//go:build kernel

//lane:vm

package vip

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
)

// inOpen has services that the guard lets through to IPVS, and daemons of the host at the
// port of one of them, on all addresses. There is no virtual server, as after "ipvsadm -C".
func inOpen(t *testing.T, f func(t *testing.T, w *world, lab *kerneltest.Lab, p place)) {
	if !kerneltest.Isolate(t) {
		return
	}
	kerneltest.InMode(t, "ipvs")
	lab := kerneltest.NewLab(t, 1)
	w := realWorld()
	var list []*lb.Service
	for _, p := range places(lab) {
		for _, key := range []string{at(p.vip, 80), at(p.vip, 80) + "/udp", at(p.vip, 81)} {
			list = append(list, nat(key, never, at(p.backends[0], 8080)))
		}
		serve(t, lab.Backends[0], at(p.backends[0], 8080))
	}
	clean(t, w.door(t, atInput), services(list...), prune)
	for _, p := range places(lab) {
		t.Run(p.family.String(), func(t *testing.T) {
			serve(t, lab.LB, at(daemons(p), 80))
			serveUDP(t, lab.LB, at(p.vip, 80)) // on all addresses it would answer from another one
			f(t, w, lab, p)
		})
	}
}

// A daemon answers for no service, neither to a client nor to the host itself; on the
// host's own addresses it does. Where there is no daemon the host refuses.
func TestB19_F86_DaemonsAreSilentWithoutTheVirtualServers(t *testing.T) {
	inOpen(t, func(t *testing.T, w *world, lab *kerneltest.Lab, p place) {
		timesOut(t, lab.Client, at(p.vip, 80))
		timesOut(t, lab.LB, at(p.vip, 80))
		if err := askUDP(t, lab.Client, at(p.vip, 80)); !isTimeout(err) {
			t.Errorf("UDP: %v, want no answer", err)
		}
		refusedTCP(t, lab.Client, at(p.vip, 81))
		answered(t, lab.Client, at(p.lb, 80), "lb "+p.client)
		w.sh(t, p.tool+" -t mangle -F VIPD-LOUT") // the control
		answered(t, lab.Client, at(p.vip, 80), "lb "+p.client)
		fatal(t, askUDP(t, lab.Client, at(p.vip, 80)))
	})
}

// Who called meanwhile is served once the virtual server is back, and the flow that went
// nowhere is forgotten, at its next try.
func TestF86_CallersAreServedAfterTheRepair(t *testing.T) {
	inOpen(t, func(t *testing.T, w *world, lab *kerneltest.Lab, p place) {
		kerneltest.Need(t, kerneltest.IPVS())
		lab.LB.SetSysctl(t, "net.ipv4.vs.conntrack", "1")
		flows, err := netfilter.OpenConntrack(slog.New(slog.DiscardHandler))
		fatal(t, err)
		defer func() { _ = flows.Close() }()
		s := nat(at(p.vip, 80), never, at(p.backends[0], 8080))
		called := make(chan string, 1)
		began := time.Now()
		go func() {
			got, _, err := ask(t, lab.Client, at(p.vip, 80), 20*time.Second)
			called <- fmt.Sprint(got, " ", err)
		}()
		for {
			list, err := lab.LB.Try(t.Context(), "conntrack", "-L", "-f", strings.ToLower(p.family.String()), "-p", "tcp", "-d", p.vip)
			if err == nil && strings.Contains(list, "SYN_RECV") {
				break
			}
			if t.Context().Err() != nil || time.Since(began) > 10*time.Second {
				t.Fatalf("the call is not seen: %v\n%s", err, list)
			}
		}
		virtual(t, w, s)
		done, err := flows.Evict(t.Context(), netfilter.Eviction{Key: s.Key, Backend: s.Key.AddrPort()})
		if err != nil || done.Deleted != 1 {
			t.Errorf("%+v, %v", done, err)
		}
		if got, want := <-called, "b1 "+p.client+" <nil>"; got != want {
			t.Errorf("the caller got %q, want %q", got, want)
		}
		t.Logf("served after %v", time.Since(began))
	})
}
