//go:build kernel

//lane:vm

package vip

import (
	"context"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// Rules and sets that somebody else touches are told, with the culprit where the
// kernel tells; our own writes are not, and what is told is repaired.
func TestB61_WatchOfRulesAndSetsOnTheKernel(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	for _, backend := range []netfilter.Backend{netfilter.NFT, netfilter.Legacy} {
		w := worldWith(backend)
		w.sh(t, strings.ReplaceAll(uplink, "nic0", "nic-"+string(backend)))
		d := w.door(t)
		ctx, cancel := context.WithCancel(t.Context())
		drifts, ended := make(chan proxier.Drift, 1000), make(chan error, 1)
		go func() { ended <- d.Watch(ctx, func(drift proxier.Drift) { drifts <- drift }) }()
		told := func(wait time.Duration) (d proxier.Drift, ok bool) {
			select {
			case d = <-drifts:
				return d, true
			case <-time.After(wait):
				return d, false
			}
		}
		for _, want := range []lb.Snapshot{pair(), {}, pair()} {
			clean(t, d, want, prune)
		}
		if told, any := told(1100 * time.Millisecond); any {
			t.Errorf("%s: our own writes are told: %v", backend, told)
		}
		for _, c := range []struct{ damage, object string }{
			{"iptables -t filter -F VIPD-IN", "IPv4 table filter"},
			{"ip6tables -t nat -F POSTROUTING", "IPv6 table nat"},
			{"iptables -I INPUT 1 -j ACCEPT", "IPv4 table filter"},
			{"ipset flush vipd-vip4", "set vipd-vip4"},
		} {
			begin := time.Now()
			w.sh(t, c.damage)
			drift, any := told(10 * time.Second)
			if !any || !strings.HasPrefix(drift.Object, c.object) {
				t.Fatalf("%s: %s: told %+v", backend, c.damage, drift)
			}
			if words := strings.Fields(c.damage); backend == netfilter.NFT && words[0] != "ipset" && !strings.HasPrefix(drift.By, words[0]+"-nft (pid ") {
				t.Errorf("%s: by %q", c.damage, drift.By)
			}
			clean(t, d, pair(), proxier.How{Fresh: true, Prune: true})
			t.Logf("%s: %s: told %+v, repaired after %v", backend, c.damage, drift, time.Since(begin).Round(time.Millisecond))
			for len(drifts) > 0 {
				<-drifts
			}
			if told, any := told(1100 * time.Millisecond); any {
				t.Errorf("%s: %s: the repair is told: %v", backend, c.damage, told)
			}
		}
		clean(t, d, lb.Snapshot{}, prune)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
