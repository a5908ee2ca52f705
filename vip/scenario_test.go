package vip

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vipd/lb"
	"vipd/proxier"
)

// scenarios run on the fake host and on the real kernel. Names carry the rows
// they prove.
var scenarios = map[string]func(*testing.T, *world){
	"B69_VIPsAreOnTheDeviceIfWanted":            vipsIfWanted,
	"B69_ForeignAddressesAreNotTouched":         foreignAddresses,
	"F11_VIPLivesUntilItsLastServiceGoes":       sharedVIP,
	"B54_B64_NothingIsWrittenWithoutAChange":    noChange,
	"B55_AChangeTouchesOnlyItsOwn":              smallChange,
	"F95_DeviceDeleted":                         deviceDeleted,
	"F96_DeviceDownAndAddressesFlushed":         deviceFlushed,
	"B61_RulesAndSetsAreRepaired":               rulesRepaired,
	"F99_VIPOnAnotherDevice":                    vipElsewhere,
	"F99_VIPOnAnotherDeviceLater":               vipElsewhereLater,
	"F105_B71_NetworkBroadcastAndPeerAddresses": reservedAddresses,
	"B53_NothingIsRemovedBeforePrune":           noPrune,
	"B66_EmptyRemovesAll":                       emptyRemovesAll,
	"B66_CleanupRemovesAllOfOurs":               cleanupAll,
	"ForeignDeviceOfOurNameIsRefused":           foreignDevice,
	"DeviceOfAnotherNameIsTakenOver":            renamedDevice,
	"SetOfAnotherTypeFailsItsFamily":            foreignSet,
	"PlanIsWhatAPassDoes":                       planIsPass,
	"B25_B26_SetsSayWhoIsMasqueraded":           masqueradeSets,
	"B21_ClientRangesChangeInOrder":             clientRanges,
	"B17_ServedServicesAreKnownToTheGuard":      servedServices,
	"B17_OpenServicesAreKnownToTheGuard":        openServices,
	"ServicesMoveBetweenModes":                  movingServices,
	"B25_DirectServicesAreNeverMasqueraded":     directServices,
	"AModeAtINPUTComesAndGoes":                  arrivalComesAndGoes,
	"B70_F104_ARPSettings":                      arpSettingsKept,
	"F148_OthersThatUseTheMarkAreFound":         markCollision,
	"F103_DeviceGoesBetweenShutAndOpen":         deviceGoesMeanwhile,
	"B61_TheAnchorIsRepaired":                   anchorStands,
}

func TestFakeHost(t *testing.T) {
	for name, run := range scenarios {
		t.Run(name, func(t *testing.T) { run(t, newFakeWorld()) })
	}
}

const always, never, auto = lb.MasqueradeAlways, lb.MasqueradeNever, lb.MasqueradeAuto

// uplink gives the host a device with addresses of its own.
const uplink = `
	ip link add nic0 type bridge
	ip link set nic0 up
	ip addr add 10.0.0.1/24 dev nic0`

func pair() lb.Snapshot {
	return services(svc("192.0.2.10:80/tcp", always, "10.0.0.11:8080"), svc("[2001:db8::10]:53/udp", always, "[fd00::11]:53"))
}

// pairEntries is what the sets hold for pair.
var pairEntries = []string{"vipd-vip4 192.0.2.10", "vipd-vip6 2001:db8::10", "vipd-masq4 192.0.2.10,tcp:80", "vipd-masq6 2001:db8::10,udp:53",
	"vipd-served4 192.0.2.10,tcp:80", "vipd-served6 2001:db8::10,udp:53", "vipd-be4 10.0.0.11,tcp:8080"}

func vipsIfWanted(t *testing.T, w *world) {
	d := w.door(t)
	clean(t, d, pair(), prune)
	w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true", "2001:db8::10/128 dev vipd0 shaped=true")
	w.has(t, "device", "vipd0 ours=true up=true arp=false")
	w.has(t, "entry", pairEntries...)
	w.has(t, "jump", "IPv4 mangle PREROUTING 0 VIPD-PRE", "IPv6 mangle PREROUTING 0 VIPD-PRE", "IPv4 filter INPUT 0 VIPD-IN", "IPv4 filter FORWARD 0 VIPD-FWD", "IPv4 nat POSTROUTING 0 VIPD-POST",
		"IPv6 filter INPUT 0 VIPD-IN", "IPv6 filter FORWARD 0 VIPD-FWD", "IPv6 nat POSTROUTING 0 VIPD-POST")
	w.quiet(t, d, pair())

	clean(t, d, services(svc("192.0.2.11:80/tcp", always)), prune)
	w.has(t, "address", "192.0.2.11/32 dev vipd0 shaped=true")
	w.has(t, "entry", "vipd-vip4 192.0.2.11", "vipd-masq4 192.0.2.11,tcp:80")
	w.has(t, "set", "vipd-auto4 hash:ip,port,net IPv4", "vipd-hair4 hash:ip,port,ip IPv4", "vipd-masq4 hash:ip,port IPv4", "vipd-vip4 hash:ip IPv4",
		"vipd-acl4 hash:ip,port IPv4", "vipd-allow4 hash:ip,port,net IPv4", "vipd-be4 hash:ip,port IPv4", "vipd-served4 hash:ip,port IPv4")
}

func foreignAddresses(t *testing.T, w *world) {
	d := w.door(t)
	clean(t, d, pair(), prune)
	w.sh(t, `
		ip addr add 198.51.100.1/24 dev vipd0
		ip addr add 192.0.2.77/32 dev vipd0
		ip addr add fd00:9::1/64 dev vipd0
		ip addr add 192.0.2.10/24 dev vipd0`)
	foreign := []string{"198.51.100.1/24 dev vipd0 shaped=false", "192.0.2.77/32 dev vipd0 shaped=false",
		"fd00:9::1/64 dev vipd0 shaped=false", "192.0.2.10/24 dev vipd0 shaped=false"}
	clean(t, d, services(svc("192.0.2.10:80/tcp", always)), fresh)
	w.has(t, "address", append(foreign, "192.0.2.10/32 dev vipd0 shaped=true")...)
	clean(t, d, lb.Snapshot{}, fresh)
	w.has(t, "address", foreign...) // the device stays for them
	w.has(t, "set")
	clean(t, d, services(svc("192.0.2.77:80/tcp", always)), fresh)
	w.has(t, "address", foreign[0], foreign[2], foreign[3], "192.0.2.77/32 dev vipd0 shaped=true") // wanted now, so put into our shape
}

func sharedVIP(t *testing.T, w *world) {
	d := w.door(t)
	both := services(svc("192.0.2.10:80/tcp", always), svc("192.0.2.10:443/tcp", always), svc("192.0.2.10:80/udp", always))
	clean(t, d, both, prune)
	w.taken()
	clean(t, d, services(svc("192.0.2.10:443/tcp", always)), prune)
	w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true")
	w.has(t, "entry", "vipd-vip4 192.0.2.10", "vipd-masq4 192.0.2.10,tcp:443")
	for _, wrote := range w.taken() {
		if strings.Contains(wrote, "address") || strings.Contains(wrote, "vipd-vip4") {
			t.Errorf("the VIP was touched: %s", wrote)
		}
	}
	clean(t, d, services(svc("192.0.2.11:443/tcp", always)), prune)
	w.has(t, "address", "192.0.2.11/32 dev vipd0 shaped=true")
}

func noChange(t *testing.T, w *world) {
	w.sh(t, uplink)
	d := w.door(t)
	want := services(svc("192.0.2.10:80/tcp", always, "10.0.0.11:8080"), svc("192.0.2.10:81/tcp", never, "10.0.0.11:8080", "10.9.0.1:80"),
		svc("192.0.2.12:80/udp", auto, "10.0.0.12:8080"), svc("[2001:db8::10]:53/udp", auto, "[fd00::11]:53"))
	clean(t, d, want, prune)
	w.quiet(t, d, want)
	clean(t, d, lb.Snapshot{}, prune)
	w.quiet(t, d, lb.Snapshot{})
}

func smallChange(t *testing.T, w *world) {
	d := w.door(t)
	var list []*lb.Service
	for i := range 50 {
		list = append(list, svc(fmt.Sprintf("192.0.2.%d:80/tcp", i+1), always, "10.0.0.11:8080"))
	}
	clean(t, d, services(list...), prune)
	w.taken()
	clean(t, d, services(append(list[1:], svc("192.0.2.99:80/tcp", always))...), prune)
	want := []string{"+ vipd-masq4 [192.0.2.99,tcp:80]", "- vipd-served4 [192.0.2.1,tcp:80]", "- address [192.0.2.1]", "- vipd-vip4 [192.0.2.1]",
		"+ vipd-vip4 [192.0.2.99]", "+ address [192.0.2.99]", "- vipd-masq4 [192.0.2.1,tcp:80]"}
	if got := w.taken(); !slices.Equal(got, want) {
		t.Errorf("writes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func deviceDeleted(t *testing.T, w *world) {
	d := w.door(t)
	clean(t, d, pair(), prune)
	before := w.dump(t)
	w.sh(t, "ip link del vipd0")
	clean(t, d, pair(), fresh)
	same(t, w.dump(t), before)
	w.quiet(t, d, pair())
}

func deviceFlushed(t *testing.T, w *world) {
	d := w.door(t)
	clean(t, d, pair(), prune)
	before := w.dump(t)
	for _, damage := range []string{
		"ip link set vipd0 down", "ip addr flush dev vipd0", "ip addr del 192.0.2.10/32 dev vipd0", "ip link set vipd0 arp on",
		"ip addr del 2001:db8::10/128 dev vipd0", "ip addr change 2001:db8::10/128 dev vipd0 preferred_lft forever valid_lft forever",
		"ip addr del 192.0.2.10/32 dev vipd0\nip addr add 192.0.2.10/32 dev vipd0",
	} {
		w.sh(t, damage)
		if slices.Equal(w.dump(t), before) {
			t.Fatalf("%q changed nothing", damage)
		}
		clean(t, d, pair(), fresh)
		same(t, w.dump(t), before)
	}
	w.quiet(t, d, pair())
}

func rulesRepaired(t *testing.T, w *world) {
	d := w.door(t)
	want := services(svc("192.0.2.10:80/tcp", always), ranged(svc("192.0.2.10:81/tcp", never, "10.0.0.11:80"), "198.51.100.0/24"))
	clean(t, d, want, prune)
	before := w.dump(t)
	for _, damage := range []string{
		"iptables -t filter -D INPUT 1", "iptables -t filter -D FORWARD 1", "iptables -t nat -D POSTROUTING 1",
		"iptables -t filter -F VIPD-IN", "iptables -t mangle -F VIPD-PRE", "iptables -t mangle -D PREROUTING 1", "iptables -t nat -F VIPD-MASQ", "iptables -t filter -D VIPD-IN 1",
		"iptables -t filter -I VIPD-IN 1 -p tcp -j ACCEPT", "iptables -t filter -I INPUT 1 -j ACCEPT", "iptables -t nat -F POSTROUTING",
		"ipset flush vipd-vip4", "ipset flush vipd-masq4", "ipset flush vipd-acl4", "ipset flush vipd-allow4", "ipset flush vipd-be4", "ipset flush vipd-served4", "ipset del vipd-hair4 10.0.0.11,tcp:80,10.0.0.11",
	} {
		w.sh(t, damage)
		if slices.Equal(w.dump(t), before) {
			t.Fatalf("%q changed nothing", damage)
		}
		clean(t, d, want, fresh)
		same(t, w.dump(t), before)
	}
	w.quiet(t, d, want)
}

func noPrune(t *testing.T, w *world) {
	clean(t, w.door(t), pair(), prune)
	before := w.dump(t)
	d := w.door(t) // as after a restart, with a source that has not spoken
	for range 2 {
		clean(t, d, lb.Snapshot{}, proxier.How{Fresh: true})
		same(t, w.dump(t), before)
	}
	clean(t, d, services(svc("192.0.2.11:80/tcp", always)), proxier.How{})
	w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true", "192.0.2.11/32 dev vipd0 shaped=true", "2001:db8::10/128 dev vipd0 shaped=true")
	clean(t, d, services(svc("192.0.2.11:80/tcp", always)), prune)
	w.has(t, "address", "192.0.2.11/32 dev vipd0 shaped=true")
}

func emptyRemovesAll(t *testing.T, w *world) {
	w.sh(t, uplink+"\nipset create foreign hash:ip\niptables -t filter -I INPUT 1 -p udp -j ACCEPT")
	before := w.dump(t)
	d := w.door(t)
	clean(t, d, pair(), prune)
	clean(t, d, lb.Snapshot{}, prune)
	same(t, w.dump(t), before)
	w.quiet(t, d, lb.Snapshot{})
	clean(t, d, pair(), prune)
	clean(t, w.door(t), lb.Snapshot{}, prune) // leftovers of an earlier run
	same(t, w.dump(t), before)
}

func cleanupAll(t *testing.T, w *world) {
	w.sh(t, uplink)
	before := w.dump(t)
	for _, device := range []string{"vipd0", "vipd7"} {
		clean(t, w.door(t, func(o *Options) { o.Device = device }), pair(), proxier.How{})
		w.sh(t, "iptables -t nat -N VIPD-OLD\niptables -t nat -I PREROUTING 1 -j VIPD-OLD\niptables -t nat -I VIPD-OLD 1 -j ACCEPT")
		for range 2 {
			fatal(t, Cleanup(t.Context(), Options{Device: "vipd0", Log: slog.New(slog.DiscardHandler), kernel: w.recording()}))
			same(t, w.dump(t), before)
		}
	}
	clean(t, w.door(t), pair(), prune)
	w.sh(t, "ip addr add 198.51.100.1/24 dev vipd0")
	fatal(t, Cleanup(t.Context(), Options{Log: slog.New(slog.DiscardHandler), kernel: w.recording()}))
	w.has(t, "address", "10.0.0.1/24 dev nic0 shaped=false", "198.51.100.1/24 dev vipd0 shaped=false")
}

// planIsPass holds a plan against what a pass then writes, and that a plan
// changes nothing.
func planIsPass(t *testing.T, w *world) {
	w.sh(t, uplink)
	d := w.door(t, func(o *Options) { o.ARP = ARPIgnore })
	steps := []lb.Snapshot{pair(), services(svc("192.0.2.11:80/tcp", auto, "10.0.0.11:80")), {}}
	for _, want := range steps {
		before := w.dump(t)
		w.taken()
		changes, err := d.Plan(t.Context(), want, fresh)
		fatal(t, err)
		if wrote := w.taken(); len(wrote) > 0 {
			t.Fatalf("the plan wrote %v", wrote)
		}
		same(t, w.dump(t), before)
		if len(changes) == 0 {
			t.Fatal("an empty plan before a change")
		}
		clean(t, d, want, prune)
		for _, a := range []string{"192.0.2.10", "192.0.2.11", "2001:db8::10"} {
			was, is := holds(before, a), holds(w.dump(t), a)
			planned := slices.ContainsFunc(changes, func(c proxier.Change) bool {
				return c.Object == "VIP "+a && strings.HasPrefix(c.Detail, "address ") && (c.Op == proxier.Add) == is
			})
			if planned != (was != is) {
				t.Errorf("VIP %s: up before %t, after %t; the plan was %v", a, was, is, changes)
			}
		}
		if again, err := d.Plan(t.Context(), want, fresh); err != nil || len(again) > 0 {
			t.Fatalf("plan after the pass = %v, %v", again, err)
		}
	}
}

func holds(dump []string, vip string) bool {
	a := netip.MustParseAddr(vip)
	return slices.Contains(dump, fmt.Sprintf("address %s/%d dev vipd0 shaped=true", a, a.BitLen()))
}

func arpSettingsKept(t *testing.T, w *world) {
	get := func(key string) string {
		v, err := w.raw.sysctls.Get(key)
		fatal(t, err)
		return v
	}
	const ignore, announce = "net/ipv4/conf/all/arp_ignore", "net/ipv4/conf/all/arp_announce"
	clean(t, w.door(t), pair(), prune)
	if get(ignore) != "0" || get(announce) != "0" {
		t.Error("unmanaged ARP settings were changed")
	}
	d := w.door(t, func(o *Options) { o.ARP = ARPIgnore })
	clean(t, d, pair(), prune)
	if get(ignore) != "1" || get(announce) != "2" {
		t.Errorf("arp_ignore = %s, arp_announce = %s", get(ignore), get(announce))
	}
	w.quiet(t, d, pair())
	fatal(t, w.raw.sysctls.Set(ignore, "0"))
	if found := strings.Join(d.Findings(t.Context()), "\n"); !strings.Contains(found, "net.ipv4.conf.all.arp_ignore is 0") {
		t.Errorf("the drift is not found: %q", found)
	}
	clean(t, d, pair(), fresh)
	fatal(t, w.raw.sysctls.Set(announce, "2"))
	fatal(t, w.raw.sysctls.Set(ignore, "8")) // stricter than asked for is left alone
	clean(t, d, pair(), fresh)
	if get(ignore) != "8" {
		t.Errorf("arp_ignore = %s", get(ignore))
	}
}

func deviceGoesMeanwhile(t *testing.T, w *world) {
	d := w.door(t)
	fatal(t, d.Shut(t.Context(), pair(), prune))
	w.sh(t, "ip link del vipd0")
	fatal(t, d.Open(t.Context(), pair(), prune))
	w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true", "2001:db8::10/128 dev vipd0 shaped=true")

	fatal(t, d.Shut(t.Context(), lb.Snapshot{}, proxier.How{}))
	w.sh(t, "ip link del vipd0") // gone when it is to be removed
	clean(t, d, lb.Snapshot{}, prune)
	w.has(t, "device")
	w.has(t, "set")
}

func same(t *testing.T, got, want []string) {
	t.Helper()
	var errs []error
	for _, line := range got {
		if !slices.Contains(want, line) {
			errs = append(errs, errors.New("+ "+line))
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			errs = append(errs, errors.New("- "+line))
		}
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("the host differs:\n%v", err)
	}
}

func markCollision(t *testing.T, w *world) {
	d := w.door(t)
	w.sh(t, `
		iptables -t filter -I INPUT 1 -m mark --mark 0x4000/0x4000 -j ACCEPT
		iptables -t mangle -I PREROUTING 1 -j MARK --set-xmark 0x10/0xff
		ip rule add fwmark 0x4000/0x4000 lookup 100`)
	clean(t, d, pair(), fresh)
	if found := d.Findings(t.Context()); slices.ContainsFunc(found, func(f string) bool { return strings.Contains(f, "0x2000") }) {
		t.Errorf("other bits are no collision: %q", found)
	}
	w.sh(t, `
		iptables -t filter -I INPUT 1 -m mark --mark 0x2000/0x2000 -j ACCEPT
		iptables -t mangle -I PREROUTING 1 -j MARK --set-xmark 0x1/0xffffffff
		iptables -t mangle -I PREROUTING 1 -j CONNMARK --restore-mark --nfmask 0xff00 --ctmask 0xff00
		ip rule add fwmark 0x2000/0xf000 lookup 100`)
	clean(t, d, pair(), fresh)
	var found []string
	for _, f := range d.Findings(t.Context()) {
		if strings.Contains(f, "the bit 0x2000") || strings.Contains(f, "mark bit 0x2000") {
			found = append(found, f)
		}
	}
	if len(found) != 4 {
		t.Errorf("findings: %q", found)
	}
	moved := w.door(t, func(o *Options) { o.Mark = 0x20000 })
	clean(t, moved, pair(), fresh)
	if found := strings.Join(moved.Findings(t.Context()), " "); !strings.Contains(found, "set-xmark 0x1/0xffffffff") || strings.Contains(found, "fwmark") {
		t.Errorf("with another bit: %q", found)
	}
}
