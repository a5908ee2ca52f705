package vip

import (
	"log/slog"
	"strings"
	"testing"

	"vipd/lb"
	"vipd/proxier"
)

func vipElsewhere(t *testing.T, w *world) {
	w.sh(t, uplink+"\nip addr add 192.0.2.10/32 dev nic0")
	d := w.door(t)
	for range 2 {
		failed := onePass(t, d, services(svc("192.0.2.10:80/tcp", always), svc("192.0.2.11:80/tcp", always)), prune)
		if len(failed) != 1 || !strings.Contains(failed[svc("192.0.2.10:80/tcp", always).Key].Error(), "address of nic0") {
			t.Fatalf("failed: %v", failed)
		}
		w.has(t, "address", "10.0.0.1/24 dev nic0 shaped=false", "192.0.2.10/32 dev nic0 shaped=false", "192.0.2.11/32 dev vipd0 shaped=true")
		w.has(t, "entry", "vipd-vip4 192.0.2.11", "vipd-masq4 192.0.2.11,tcp:80")
	}
	w.sh(t, "ip addr del 192.0.2.10/32 dev nic0")
	clean(t, d, services(svc("192.0.2.10:80/tcp", always), svc("192.0.2.11:80/tcp", always)), fresh)
	w.has(t, "address", "10.0.0.1/24 dev nic0 shaped=false", "192.0.2.10/32 dev vipd0 shaped=true", "192.0.2.11/32 dev vipd0 shaped=true")
}

// A service that stands is named, but not taken down, when its VIP appears on
// another device; and what appeared is left alone when the service goes.
func vipElsewhereLater(t *testing.T, w *world) {
	w.sh(t, uplink)
	d := w.door(t)
	want := services(svc("192.0.2.10:80/tcp", always))
	clean(t, d, want, prune)
	w.sh(t, "ip addr add 192.0.2.10/32 dev nic0")
	err := d.Shut(t.Context(), want, fresh)
	if failed, _ := proxier.FailedServices(err); len(failed) != 1 {
		t.Fatalf("Shut = %v", err)
	}
	fatal(t, d.Open(t.Context(), want, fresh)) // the reconciler puts in the last applied version
	w.has(t, "address", "10.0.0.1/24 dev nic0 shaped=false", "192.0.2.10/32 dev nic0 shaped=false", "192.0.2.10/32 dev vipd0 shaped=true")
	clean(t, d, lb.Snapshot{}, prune)
	w.has(t, "address", "10.0.0.1/24 dev nic0 shaped=false", "192.0.2.10/32 dev nic0 shaped=false")
}

func reservedAddresses(t *testing.T, w *world) {
	w.sh(t, uplink+`
		ip addr add 192.0.2.1/28 dev nic0
		ip addr add fd00:7::1/64 dev nic0
		ip addr add 198.51.100.1/32 peer 198.51.100.9 dev nic0`)
	d := w.door(t)
	reasons := map[string]string{"192.0.2.0:80": "network address of 192.0.2.0/28", "192.0.2.15:80": "broadcast address of 192.0.2.0/28",
		"192.0.2.1:80": "address of nic0", "10.0.0.255:80": "broadcast address", "[fd00:7::]:80": "network address", "[fd00:7::1]:80": "address of nic0",
		"198.51.100.9:80": "peer of nic0"}
	list := []*lb.Service{svc("192.0.2.14:80/tcp", always), svc("10.0.0.254:80/tcp", always), svc("[fd00:7::2]:80/tcp", always)}
	for key := range reasons {
		list = append(list, svc(key, always))
	}
	failed := onePass(t, d, services(list...), prune)
	if len(failed) != len(reasons) {
		t.Errorf("%d failed: %v", len(failed), failed)
	}
	for key, reason := range reasons {
		if err := failed[svc(key, always).Key]; err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %v, want %q", key, err, reason)
		}
	}
	w.has(t, "entry", "vipd-vip4 192.0.2.14", "vipd-masq4 192.0.2.14,tcp:80", "vipd-vip4 10.0.0.254", "vipd-masq4 10.0.0.254,tcp:80",
		"vipd-vip6 fd00:7::2", "vipd-masq6 fd00:7::2,tcp:80")
}

func foreignDevice(t *testing.T, w *world) {
	w.sh(t, "ip link add vipd0 type bridge\nip addr add 198.51.100.1/24 dev vipd0")
	before := w.dump(t)
	d := w.door(t)
	for range 2 {
		_, err := tryPass(t.Context(), d, pair(), prune)
		if err == nil || !strings.Contains(err.Error(), "vipd0 is a bridge that vipd did not make") {
			t.Fatalf("error = %v", err)
		}
	}
	fatal(t, Cleanup(t.Context(), Options{Log: slog.New(slog.DiscardHandler), kernel: w.recording()}))
	same(t, w.dump(t), before)
}

func renamedDevice(t *testing.T, w *world) {
	clean(t, w.door(t, func(o *Options) { o.Device = "vipd7" }), pair(), prune)
	d := w.door(t)
	clean(t, d, pair(), prune)
	w.has(t, "device", "vipd0 ours=true up=true arp=false")
	w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true", "2001:db8::10/128 dev vipd0 shaped=true")
}

func foreignSet(t *testing.T, w *world) {
	w.sh(t, "ipset create vipd-masq4 hash:ip")
	d := w.door(t)
	failed := onePass(t, d, pair(), prune)
	if len(failed) != 1 || !strings.Contains(failed[svc("192.0.2.10:80/tcp", always).Key].Error(), "vipd-masq4 is a hash:ip") {
		t.Fatalf("failed: %v", failed)
	}
	w.has(t, "address", "2001:db8::10/128 dev vipd0 shaped=true") // IPv6 is served
}
