//go:build kernel

package vip

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime/pprof"
	"sync"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/lb"
	"vipd/proxier"
)

// TestScaleOfVIPs prints what thousands of VIPs with a service of ten backends
// each cost, beside a Watch as in the daemon.
func TestScaleOfVIPs(t *testing.T) {
	for _, n := range []int{1000, 5000, 10_000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			if !kerneltest.Isolate(t) {
				return
			}
			if at := os.Getenv("VIPD_PROFILE"); at != "" {
				f, err := os.Create(fmt.Sprintf("%s.%d", at, n))
				fatal(t, err)
				fatal(t, pprof.StartCPUProfile(f))
				defer pprof.StopCPUProfile()
			}
			d := realWorld().door(t)
			ctx, cancel := context.WithCancel(t.Context())
			var watch sync.WaitGroup
			watch.Go(func() {
				if err := d.Watch(ctx, func(drift proxier.Drift) { t.Errorf("drift of our own: %v", drift) }); err != nil {
					t.Error(err)
				}
			})
			defer watch.Wait()
			defer cancel()
			edit := lb.Snapshot{}.Edit()
			for i := range n {
				s := oneOfMany(i, 10, 0)
				s.Key.Addr = netip.AddrFrom4([4]byte{10, 64, byte(i >> 8), byte(i)})
				edit.Put(s)
			}
			want := edit.Snapshot()
			step := func(name string, how proxier.How) {
				begin := time.Now()
				fatal(t, d.Shut(t.Context(), want, how))
				shut := time.Since(begin)
				fatal(t, d.Open(t.Context(), want, how))
				t.Logf("%-8s shut %v, open %v", name, shut.Round(10*time.Microsecond), (time.Since(begin) - shut).Round(10*time.Microsecond))
			}
			step("load", prune)
			step("no-op", prune)
			edit.Delete(lb.Key{Addr: netip.MustParseAddr("10.64.2.2"), Port: 80 + 514%50, Protocol: lb.TCP})
			want = edit.Snapshot()
			step("one gone", prune)
			step("resync", fresh)
			want = lb.Snapshot{}
			step("all gone", prune)
		})
	}
}

// TestScaleOfRanges prints what many ranges of clients cost, to put up and to
// change, on one service and on many.
func TestScaleOfRanges(t *testing.T) {
	for _, c := range []struct{ services, ranges int }{{1, 10_000}, {1000, 10}} {
		t.Run(fmt.Sprintf("%d services of %d", c.services, c.ranges), func(t *testing.T) {
			if !kerneltest.Isolate(t) {
				return
			}
			d := realWorld().door(t)
			edit := lb.Snapshot{}.Edit()
			for i := range c.services {
				s := oneOfMany(i, 1, 0)
				for j := range c.ranges {
					s.Clients = append(s.Clients, netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(j >> 8), byte(j), byte(j % 4 * 64)}), 26+j%6))
				}
				s.Clients = lb.NormalizeClients(s.Clients)
				edit.Put(s)
			}
			step := func(name string) {
				begin := time.Now()
				clean(t, d, edit.Snapshot(), prune)
				t.Logf("%-10s %v", name, time.Since(begin).Round(10*time.Microsecond))
			}
			step("load")
			first := *oneOfMany(0, 1, 0)
			first.Clients = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
			edit.Put(&first)
			step("one change")
			edit.Delete(first.Key)
			step("one gone")
		})
	}
}
