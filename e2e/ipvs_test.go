//go:build kernel

package e2e

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
	"vipd/reconciler"
)

// newIPVS is newWorld for the tests of what only mode ipvs has.
func newIPVS(t *testing.T, backends int) *world {
	t.Helper()
	kerneltest.Need(t, kerneltest.IPVS())
	w := newWorld(t, backends)
	if kerneltest.Mode() != "ipvs" {
		t.Fatalf("mode is %s, and this test is marked //lane:vm ipvs", kerneltest.Mode())
	}
	return w
}

// quarantined tells whether a status shows the service at a VIP to be quarantined, with
// words that say what to do.
func quarantined(s reconciler.Status, vip string, words ...string) bool {
	for _, svc := range s.Services {
		if svc.Key.Addr.String() != vip || svc.State != "quarantined" {
			continue
		}
		for _, word := range words {
			if !strings.Contains(svc.Error, word) {
				return false
			}
		}
		return true
	}
	return false
}

// TestB61_F86_F95 has somebody clear IPVS, delete one virtual server, and delete the
// device with all VIPs, under a load: all comes back. A kernel since 5.9 ends the
// connections of a destination that goes, at once (expire_nodest_conn), so those of the
// virtual servers that were deleted cannot live; all others do.
//
//lane:vm ipvs
func TestB61_F86_F95_WhatSomebodyDeletesComesBack(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newIPVS(t, 2)
	w.serveAll(8080)
	w.write(calm(config(
		service{name: "web", port: 80, backends: w.at(8080, 1, 2)},
		service{name: "dns", port: 53, protocol: "udp", backends: w.at(8080, 1, 2)})))
	w.start()
	w.await("rest", idle)
	whole := w.kernelState()
	for what, spared := range map[string][]netip.AddrPort{
		"ipvsadm -C":                  nil,
		"ipvsadm -D -t 192.0.2.10:80": targets(80)[1:],
		"ip link del vipd0":           targets(80),
	} {
		held, fresh := w.load(w.Client), w.load(w.Client)
		for _, target := range spared {
			held.Hold(loss.Hold{Target: target, Count: 3})
		}
		for _, target := range targets(80) {
			fresh.Connect(loss.Connections{Target: target, Rate: 10})
		}
		w.LB.Run(t, "sh", "-c", what)
		took := w.eventually("all is back after "+what, func() bool { return w.kernelState() == whole })
		t.Logf("%s: all was back after at most %s", what, took.Round(time.Millisecond))
		for i, target := range targets(80) {
			w.answeredBy(w.Client, "tcp", target, "b1", "b2")
			w.answeredBy(w.Client, "udp", targets(53)[i], "b1", "b2")
		}
		if r := held.Stop(); len(spared) > 0 {
			lossless(t, what+": established connections that were idle meanwhile", r)
		}
		t.Logf("%s: new connections:\n%s", what, fresh.Stop())
	}
	w.must(0, "plan")
}

// TestF93 has virtual servers of somebody else on this host, one of them where a service
// of ours is to be: none is touched, not by a start, a change, a restart or a cleanup.
//
//lane:vm ipvs
func TestB60_B66_F93_VirtualServersOfOthersAreLeftAlone(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newIPVS(t, 2)
	w.serveAll(8080)
	for _, args := range []string{
		"-A -t 192.0.2.10:80 -s sh -p 77", "-a -t 192.0.2.10:80 -r 10.2.0.12:8080 -m -w 7",
		"-A -u 198.51.100.1:53 -s rr", "-a -u 198.51.100.1:53 -r 10.2.0.12:53 -g -w 3", "-A -f 5 -s wlc",
	} {
		w.LB.Run(t, "ipvsadm", strings.Fields(args)...)
	}
	strangers := w.LB.Run(t, "ipvsadm", "-S", "-n")
	untouched := func(when string) {
		t.Helper()
		if now := w.LB.Run(t, "ipvsadm", "-S", "-n"); !containsAll(now, strangers) {
			t.Errorf("%s IPVS has\n%s\nand of others there was\n%s", when, now, strangers)
		}
	}
	web := service{name: "web", port: 80, backends: w.at(8080, 1)}
	w.write(config(web))
	w.begin()
	w.await("quarantine what is somebody else's", func(s reconciler.Status) bool {
		return quarantined(s, vips[0], "ipvsadm -D -t 192.0.2.10:80") && !s.Pass.Pending && s.Services[1].State == "serving"
	})
	untouched("after the start")
	w.answeredBy(w.Client, "tcp", targets(80)[1], "b1")
	web.backends = w.at(8080, 2)
	w.write(config(web))
	w.vipd("reload")
	w.kill()
	w.begin()
	w.await("quarantine it again", func(s reconciler.Status) bool {
		return quarantined(s, vips[0]) && !s.Pass.Pending && s.Services[1].State == "serving"
	})
	w.answeredBy(w.Client, "tcp", targets(80)[1], "b2")
	untouched("after a change and a restart")
	w.stop()
	w.must(0, "cleanup")
	if now := w.LB.Run(t, "ipvsadm", "-S", "-n"); now != strangers {
		t.Errorf("after a cleanup IPVS has\n%s\nand had\n%s", now, strangers)
	}
	w.LB.Run(t, "ipvsadm", "-D", "-t", "192.0.2.10:80")
	w.start()
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b2")
}

// containsAll tells whether every line of some is among all.
func containsAll(all, some string) bool {
	for line := range strings.Lines(some) {
		if !strings.Contains("\n"+all, "\n"+line) {
			return false
		}
	}
	return true
}

// TestB67_F90 has a host that lacks the module of one scheduler: the services that want
// it are quarantined, with what to do, and served when it is there.
//
//lane:vm ipvs
func TestB67_F90_AMissingSchedulerIsToldAndTakenWhenItComes(t *testing.T) {
	barred := "/etc/modprobe.d/vipd-e2e.conf"
	if os.Getenv(kerneltest.LaneEnv) == "vm" && os.Getpid() != 1 { // once, outside the namespaces
		t.Cleanup(func() { _ = os.Remove(barred) })
	}
	if !kerneltest.Isolate(t) {
		return
	}
	w := newIPVS(t, 2)
	w.serveAll(8080)
	_ = exec.CommandContext(t.Context(), "modprobe", "-r", "ip_vs_mh").Run() // which may not be loaded
	if err := os.WriteFile(barred, []byte("install ip_vs_mh /bin/false\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	hashed := service{name: "hashed", port: 80, vips: vips[:1], more: []string{`scheduler = "mh"`, `scheduler_flags = ["mh-port"]`}, backends: w.at(8080, 1)[:1]}
	other := service{name: "other", port: 81, backends: w.at(8080, 2)}
	w.write(config(hashed, other))
	w.begin()
	w.await("quarantine the service", func(s reconciler.Status) bool {
		return len(s.Services) == 3 && quarantined(s, vips[0], "modprobe ip_vs_mh") && !s.Pass.Pending
	})
	w.answeredBy(w.Client, "tcp", targets(81)[0], "b2")
	if out, _ := w.vipd("status"); !strings.Contains(out, "modprobe ip_vs_mh") {
		t.Errorf("status does not say what to do:\n%s", out)
	}
	if err := os.Remove(barred); err != nil {
		t.Fatal(err)
	}
	w.await("serve it", func(s reconciler.Status) bool { return s.Ready && !quarantined(s, vips[0]) && !s.Pass.Pending })
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b1")
	w.answeredBy(w.Client, "tcp", targets(81)[0], "b2")
}
