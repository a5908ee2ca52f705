//go:build kernel

//lane:vm

package vip

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// realWorld is the network namespace of the test, with the nft backend.
func realWorld() *world { return worldWith(netfilter.NFT) }

func worldWith(backend netfilter.Backend) *world {
	return worldOf(netfilter.ToolOptions{Backend: backend})
}

// worldLogging is realWorld with tools that log.
func worldLogging(log *slog.Logger) *world {
	return worldOf(netfilter.ToolOptions{Backend: netfilter.NFT, Log: log})
}

func worldOf(o netfilter.ToolOptions) *world {
	tools, err := netfilter.FindTools(context.Background(), o)
	if err != nil {
		tools = nil // which every pass will tell
	}
	return &world{raw: running(tools), shell: func(t *testing.T, words []string) {
		t.Helper()
		switch words[0] {
		case "iptables", "ip6tables":
			words = append([]string{words[0] + "-" + string(o.Backend)}, words[1:]...)
		case "ip":
			if words[1] == "addr" && slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(w, "fd00") }) {
				words = append(words, "nodad")
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
		}
	}}
}

// deviceScenarios are those that show what a real dummy device does. They are
// enough for the virtual machine, where a tool takes twenty times as long; the
// others are run on every other kernel.
var deviceScenarios = []string{"B69_VIPsAreOnTheDeviceIfWanted", "B69_ForeignAddressesAreNotTouched", "B66_EmptyRemovesAll",
	"F95_DeviceDeleted", "F99_VIPOnAnotherDevice", "ForeignDeviceOfOurNameIsRefused", "F103_DeviceGoesBetweenShutAndOpen"}

// TestKernelHost runs the scenarios of TestFakeHost on the real kernel, each in
// namespaces of its own.
func TestKernelHost(t *testing.T) {
	names := slices.Sorted(maps.Keys(scenarios))
	if os.Getenv(kerneltest.LaneEnv) == "vm" {
		names = deviceScenarios
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			if kerneltest.Isolate(t) {
				scenarios[name](t, realWorld())
			}
		})
	}
}

// TestKernelHostLegacy runs those scenarios with the legacy backend that touch
// rules.
func TestKernelHostLegacy(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(scenarios)) {
		if slices.Contains(deviceScenarios, name) && name != "B66_EmptyRemovesAll" || strings.Contains(name, "Anchor") {
			continue // legacy rules have none
		}
		t.Run(name, func(t *testing.T) {
			if kerneltest.Isolate(t) {
				scenarios[name](t, worldWith(netfilter.Legacy))
			}
		})
	}
}

// The device is of the kind that the kernel offers.
func TestF101_DeviceKind(t *testing.T) {
	check := func(t *testing.T, kind string) {
		d := realWorld().door(t)
		clean(t, d, pair(), prune)
		h, err := kernelLinks{}.Read(t.Context())
		fatal(t, err)
		if dev, _ := h.named("vipd0"); dev.Kind != kind || !dev.enabled() {
			t.Errorf("the device is %+v, want a %s", dev, kind)
		}
		stated := slices.ContainsFunc(d.Findings(t.Context()), func(f string) bool { return strings.Contains(f, "bridge vipd0 without ports") })
		if stated != (kind == kindBridge) {
			t.Errorf("a %s, and the findings are %q", kind, d.Findings(t.Context()))
		}
	}
	t.Run("dummy", func(t *testing.T) {
		if kerneltest.Isolate(t) {
			kerneltest.Need(t, kerneltest.Dummy())
			check(t, kindDummy)
		}
	})
	t.Run("bridge", func(t *testing.T) {
		if kerneltest.Isolate(t) {
			kerneltest.Without(t, kerneltest.Dummy())
			check(t, kindBridge)
		}
	})
}

func TestF85_IPv6DisabledInTheKernelsSettings(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := realWorld()
	fatal(t, w.raw.sysctls.Set("net/ipv6/conf/default/disable_ipv6", "1"))
	d := w.door(t)
	for range 2 {
		if failed := onePass(t, d, pair(), prune); len(failed) != 1 {
			t.Fatalf("failed: %v", failed)
		}
	}
	w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true")
	fatal(t, w.raw.sysctls.Set("net/ipv6/conf/vipd0/disable_ipv6", "0"))
	clean(t, d, pair(), prune)
	w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true", "2001:db8::10/128 dev vipd0 shaped=true")
}

// Somebody deletes and makes the device while passes run: no pass may end in
// anything else than an error or success, and the last one mends all.
func TestF103_DeviceRaces(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := realWorld()
	d := w.door(t)
	edit := lb.Snapshot{}.Edit()
	for i := range 200 {
		edit.Put(svc(fmt.Sprintf("192.0.2.%d:80/tcp", i+1), always, "10.0.0.11:80"))
	}
	want := edit.Snapshot()
	ctx, cancel := context.WithCancel(t.Context())
	var others sync.WaitGroup
	for _, command := range [][]string{{"link", "del", "vipd0"}, {"addr", "flush", "dev", "vipd0"}, {"link", "set", "vipd0", "down"}} {
		others.Go(func() {
			for range 20 {
				_ = exec.CommandContext(ctx, "ip", command...).Run() // often there is no device
			}
		})
	}
	for range 10 {
		if _, err := tryPass(ctx, d, want, fresh); err != nil {
			t.Logf("a pass in the storm: %v", err)
		}
	}
	cancel()
	others.Wait()
	clean(t, d, want, fresh)
	w.quiet(t, d, want)
	if n := strings.Count(strings.Join(w.dump(t), "\n"), "dev vipd0 shaped=true"); n != 200 {
		t.Errorf("%d VIPs are up", n)
	}
}

// Watch tells of damage by others, and never of our own writes: what it tells
// first, after passes that write, is the damage.
func TestF95_F96_WatchOnTheKernel(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := realWorld()
	w.sh(t, uplink)
	d := w.door(t)
	ctx, cancel := context.WithCancel(t.Context())
	drifts := make(chan string, 1000)
	var watch sync.WaitGroup
	watch.Go(func() {
		if err := d.Watch(ctx, func(drift proxier.Drift) { drifts <- drift.Object }); err != nil {
			t.Errorf("Watch = %v", err)
		}
	})
	defer watch.Wait()
	defer cancel()
	more := services(svc("192.0.2.10:80/tcp", always), svc("192.0.2.12:80/tcp", always), svc("[2001:db8::10]:53/udp", always))
	for _, c := range []struct{ damage, told string }{
		{"ip addr del 192.0.2.10/32 dev vipd0", "address 192.0.2.10 dev vipd0"},
		{"ip link del vipd0", "device vipd0"},
		{"ip addr flush dev vipd0", "address 192.0.2.10 dev vipd0"},
		{"ip link set vipd0 down", "device vipd0"},
		{"ip addr add 192.0.2.10/32 dev nic0", "address 192.0.2.10 of this host"},
		{"ip addr del 192.0.2.10/32 dev nic0", "address 192.0.2.10 of this host"},
	} {
		for _, want := range []lb.Snapshot{more, pair(), more} { // our own writes
			if _, err := tryPass(ctx, d, want, prune); err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		w.sh(t, c.damage)
		select {
		case told := <-drifts:
			if told != c.told {
				t.Errorf("%s: first told %q, want %q", c.damage, told, c.told)
			}
			t.Logf("%s: told after %v", c.damage, time.Since(begin).Round(time.Millisecond))
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: nothing told", c.damage)
		}
		if _, err := d.look(ctx, &news{all: true}); err != nil { // a look of our own: whatever is still to be told is told by then
			t.Fatal(err)
		}
		for len(drifts) > 0 {
			<-drifts
		}
	}
}

// Nothing of others changes while a door is up, and after it is gone.
func TestB60_F147_ForeignStateIsUntouched(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	lab := kerneltest.NewLab(t, 0)
	w := realWorld()
	w.sh(t, `
		iptables -A INPUT -p tcp --dport 22 -j ACCEPT
		iptables -N DOCKER-USER
		iptables -I FORWARD -j DOCKER-USER
		iptables -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE
		ip6tables -A FORWARD -j DROP
		ipset create blocked hash:ip`)
	before := lab.LB.Foreign(t)
	d := w.door(t)
	clean(t, d, pair(), prune)
	if diff := lab.LB.Foreign(t).Diff(before); diff != "" {
		t.Errorf("while it is up:\n%s", diff)
	}
	for _, end := range []func(){
		func() { clean(t, d, lb.Snapshot{}, prune) },
		func() { fatal(t, Cleanup(t.Context(), Options{kernel: w.recording()})) },
	} {
		clean(t, d, pair(), fresh)
		end()
		if diff := lab.LB.Foreign(t).Diff(before); diff != "" {
			t.Errorf("afterwards:\n%s", diff)
		}
	}
}

// The walk of the fake host, on the kernel.
func TestB63_RandomWalkOnTheKernel(t *testing.T) {
	seeds, steps := uint64(3), 15
	if os.Getenv(kerneltest.LaneEnv) == "vm" {
		seeds, steps = 1, 8
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			if kerneltest.Isolate(t) {
				walk(t, realWorld(), rand.New(rand.NewPCG(seed, 2)), steps, nil)
			}
		})
	}
}
