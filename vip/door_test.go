package vip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewRefusesBadOptions(t *testing.T) {
	for _, o := range []Options{{Mark: 0x3000}, {ARP: "reply"}} {
		if _, err := New(o); err == nil {
			t.Errorf("New(%+v) = no error", o)
		}
	}
}

// Everything that a packet to a VIP depends on stands before the VIP is up, and
// goes after it: sets, masquerade, chains, then (elsewhere) the rules of the
// proxier, then the guard's set, then the address.
func TestB30_OrderOfWrites(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t, func(o *Options) { o.ARP = ARPIgnore })
	want := services(svc("192.0.2.10:80/tcp", never, "10.0.0.11:80"), ranged(svc("192.0.2.10:81/tcp", always), "198.51.100.0/24"))
	steps := func(want lb.Snapshot) []string {
		fatal(t, d.Shut(t.Context(), want, prune))
		w.note("the proxier's rules")
		fatal(t, d.Open(t.Context(), want, prune))
		return w.taken()
	}
	got := steps(want)
	expect := []string{
		"create vipd0", "enable", "sysctl net/ipv4/conf/all/arp_ignore=1", "sysctl net/ipv4/conf/all/arp_announce=2",
		"create vipd-vip4", "create vipd-masq4", "create vipd-auto4", "create vipd-hair4",
		"create vipd-allow4", "create vipd-acl4", "create vipd-be4", "create vipd-served4",
		"+ vipd-masq4 [192.0.2.10,tcp:81]", "+ vipd-hair4 [10.0.0.11,tcp:80,10.0.0.11]", "+ vipd-be4 [10.0.0.11,tcp:80]",
		"+ vipd-allow4 [192.0.2.10,tcp:81,198.51.100.0/24]", "+ vipd-acl4 [192.0.2.10,tcp:81]",
		"commit IPv4 mangle", "commit IPv4 filter", "commit IPv4 nat", "anchor IPv4",
		"the proxier's rules", "+ vipd-served4 [192.0.2.10,tcp:80]", "+ vipd-vip4 [192.0.2.10]", "+ address [192.0.2.10]",
	}
	if !slices.Equal(got, expect) {
		t.Errorf("up:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(expect, "\n"))
	}
	got = steps(lb.Snapshot{})
	expect = []string{
		"- vipd-served4 [192.0.2.10,tcp:80]", "- address [192.0.2.10]", "- vipd-vip4 [192.0.2.10]", "the proxier's rules",
		"- vipd-acl4 [192.0.2.10,tcp:81]", "- vipd-allow4 [192.0.2.10,tcp:81,198.51.100.0/24]",
		"- vipd-be4 [10.0.0.11,tcp:80]", "- vipd-hair4 [10.0.0.11,tcp:80,10.0.0.11]", "- vipd-masq4 [192.0.2.10,tcp:81]",
		"commit IPv4 mangle", "commit IPv4 filter", "commit IPv4 nat", "remove anchor IPv4",
		"destroy vipd-vip4", "destroy vipd-masq4", "destroy vipd-auto4", "destroy vipd-hair4",
		"destroy vipd-allow4", "destroy vipd-acl4", "destroy vipd-be4", "destroy vipd-served4", "remove",
	}
	if !slices.Equal(got, expect) {
		t.Errorf("down:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(expect, "\n"))
	}
}

// A VIP that is up but was taken out of the guard's set is guarded again before
// anything else of the pass takes its time.
func TestGuardIsRegainedInShut(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t)
	clean(t, d, pair(), prune)
	w.sh(t, "ipset flush vipd-vip4")
	fatal(t, d.Shut(t.Context(), lb.Snapshot{}, proxier.How{Fresh: true})) // the start gate: nothing is known yet
	w.has(t, "entry", pairEntries...)
}

func TestB7_FamiliesFailApart(t *testing.T) {
	missing := fmt.Errorf("ip6tables-nft is %w", netfilter.ErrNotInstalled)
	for name, breakIt := range map[string]func(w *world){
		"tool missing": func(w *world) {
			whole := w.raw.tables
			w.raw.tables = func(f netfilter.Family) (tables, error) {
				if f == netfilter.IPv6 {
					return nil, missing
				}
				return whole(f)
			}
		},
		"commit refused": func(w *world) {
			w.fake.tables[1].fail = func(op string) error {
				if op == "restore" {
					return errors.New("refused")
				}
				return nil
			}
		},
		"sets refused": func(w *world) {
			w.fake.sets.Fail = func(op, set string) error {
				if op == "create" && strings.HasSuffix(set, "6") {
					return netfilter.ErrNoIPSet
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFakeWorld()
			breakIt(w)
			d := w.door(t)
			for range 3 {
				failed := onePass(t, d, pair(), prune)
				if len(failed) != 1 || failed[svc("[2001:db8::10]:53/udp", always).Key] == nil {
					t.Fatalf("failed: %v", failed)
				}
				w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true")
			}
			clean(t, d, services(svc("192.0.2.10:80/tcp", always)), prune)
			clean(t, d, lb.Snapshot{}, prune) // what is left of the family that failed goes as well
			w.has(t, "set")
			w.has(t, "device")
		})
	}
}

func TestF85_IPv6Disabled(t *testing.T) {
	for name, c := range map[string]struct{ key, value, reason string }{
		"by default":    {"net/ipv6/conf/default/disable_ipv6", "1", "net.ipv6.conf.default.disable_ipv6 is 1"},
		"on the device": {"net/ipv6/conf/vipd0/disable_ipv6", "1", "net.ipv6.conf.vipd0.disable_ipv6 is 1"},
		"in the kernel": {"net/ipv6/conf/default/disable_ipv6", "", "without IPv6"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFakeWorld()
			w.fake.sys.values[c.key] = c.value
			if c.value == "" {
				delete(w.fake.sys.values, c.key)
			}
			failed := onePass(t, w.door(t), pair(), prune)
			if err := failed[svc("[2001:db8::10]:53/udp", always).Key]; len(failed) != 1 || err == nil || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("failed: %v", failed)
			}
			w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true")
		})
	}
}

// When putting up fails for one family as a whole, its services are named.
func TestB7_PutUpFailsForOneFamily(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t)
	fatal(t, d.Shut(t.Context(), pair(), prune))
	calls := 0
	w.fake.links.fail = func(op string) error {
		if op == "add" {
			if calls++; calls == 2 { // IPv6 is the second
				return errors.New("no buffer space")
			}
		}
		return nil
	}
	err := d.Open(t.Context(), pair(), prune)
	if failed, partial := proxier.FailedServices(err); !partial || len(failed) != 1 || failed[svc("[2001:db8::10]:53/udp", always).Key] == nil {
		t.Errorf("Open = %v", err)
	}
	w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true")
	clean(t, d, pair(), prune)
	w.quiet(t, d, pair())
}

// A failed listing, of whatever, removes nothing and opens nothing.
func TestB72_ListingErrorRemovesNothing(t *testing.T) {
	broken := errors.New("the dump was interrupted")
	for name, breakIt := range map[string]func(h *fakeHost, err error){
		"addresses": func(h *fakeHost, err error) {
			h.links.fail = func(op string) error {
				if op == "read" {
					return err
				}
				return nil
			}
		},
		"set names": func(h *fakeHost, err error) {
			h.sets.Fail = func(op, _ string) error {
				if op == "list" {
					return err
				}
				return nil
			}
		},
		"set entries": func(h *fakeHost, err error) {
			h.sets.Fail = func(op, _ string) error {
				if op == "entries" {
					return err
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFakeWorld()
			d := w.door(t)
			clean(t, d, pair(), prune)
			before := w.dump(t)
			for _, want := range []lb.Snapshot{{}, services(svc("192.0.2.11:80/tcp", always))} {
				for _, door := range []*Door{d, w.door(t)} {
					breakIt(w.fake, broken)
					failed, err := tryPass(t.Context(), door, want, fresh)
					breakIt(w.fake, nil)
					if err == nil && len(failed) == 0 {
						t.Fatal("no error")
					}
					same(t, w.dump(t), before)
				}
			}
			clean(t, d, pair(), fresh)
			same(t, w.dump(t), before)
		})
	}
}

// No VIP is opened while it is not known whether its guard stands.
func TestNoVIPWithoutItsGuard(t *testing.T) {
	w := newFakeWorld()
	w.fake.tables[0].fail = func(string) error { return errors.New("no answer in 30s") }
	failed := onePass(t, w.door(t), pair(), prune)
	if len(failed) != 1 {
		t.Fatalf("failed: %v", failed)
	}
	w.fake.tables[0].fail = nil
	w.has(t, "address", "2001:db8::10/128 dev vipd0 shaped=true")

	d := w.door(t)
	if err := d.Open(t.Context(), pair(), prune); err == nil {
		t.Error("Open before Shut = no error")
	}
}

func TestF101_BridgeStandsIn(t *testing.T) {
	w := newFakeWorld()
	w.fake.links.noDummy = true
	d := w.door(t)
	clean(t, d, pair(), prune)
	w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true", "2001:db8::10/128 dev vipd0 shaped=true")
	if found := d.Findings(t.Context()); len(found) != 1 || !strings.Contains(found[0], "the bridge vipd0 without ports holds the VIPs") {
		t.Errorf("findings: %q", found)
	}
	w.quiet(t, d, pair())
	clean(t, d, lb.Snapshot{}, prune)
	w.has(t, "device")
}

// A dummy device that somebody else made is used, and stays.
func TestForeignDummyIsUsedAndStays(t *testing.T) {
	w := newFakeWorld()
	w.sh(t, "ip link add vipd0 type dummy")
	d := w.door(t)
	clean(t, d, pair(), prune)
	w.has(t, "device", "vipd0 ours=false up=true arp=false")
	if found := d.Findings(t.Context()); len(found) != 1 || !strings.Contains(found[0], "made by somebody else") {
		t.Errorf("findings: %q", found)
	}
	clean(t, d, lb.Snapshot{}, prune)
	w.has(t, "device", "vipd0 ours=false up=true arp=false")
	w.has(t, "address")
	clean(t, d, pair(), prune)
	fatal(t, Cleanup(t.Context(), Options{Log: slog.New(slog.DiscardHandler), kernel: w.recording()}))
	w.has(t, "device", "vipd0 ours=false up=true arp=false")
	w.has(t, "address")
}

func TestARPThatCannotBeSetFailsIPv4(t *testing.T) {
	w := newFakeWorld()
	w.fake.sys.fail = syscall.EROFS
	d := w.door(t, func(o *Options) { o.ARP = ARPIgnore })
	failed := onePass(t, d, pair(), prune)
	if len(failed) != 1 || !errors.Is(failed[svc("192.0.2.10:80/tcp", always).Key], syscall.EROFS) {
		t.Fatalf("failed: %v", failed)
	}
}

func TestARefusedAddressFailsItsServicesOnly(t *testing.T) {
	w := newFakeWorld()
	failed := onePass(t, w.door(t), services(svc("224.0.0.1:80/tcp", always), svc("224.0.0.1:81/tcp", always), svc("192.0.2.10:80/tcp", always)), prune)
	if len(failed) != 2 || !errors.Is(failed[svc("224.0.0.1:81/tcp", always).Key], syscall.EINVAL) {
		t.Fatalf("failed: %v", failed)
	}
	w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true")
}

func TestSetInUseStaysAndIsNotTriedAgain(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t)
	clean(t, d, pair(), prune)
	w.sh(t, "iptables -t nat -I PREROUTING 1 -m set --match-set vipd-vip4 dst -j ACCEPT")
	clean(t, d, lb.Snapshot{}, prune)
	w.has(t, "set", "vipd-vip4 hash:ip IPv4")
	w.taken()
	clean(t, d, lb.Snapshot{}, prune)
	if wrote := w.taken(); len(wrote) > 0 {
		t.Errorf("wrote %v", wrote)
	}
	w.sh(t, "iptables -t nat -D PREROUTING 1")
	clean(t, d, lb.Snapshot{}, fresh)
	w.has(t, "set")
}

func TestEveryWaitHearsTheContext(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Shut(ctx, pair(), prune); !errors.Is(err, context.Canceled) {
		t.Errorf("Shut = %v", err)
	}
	if err := d.Open(ctx, pair(), prune); err == nil {
		t.Errorf("Open = %v", err)
	}
	if err := Cleanup(ctx, Options{Log: slog.New(slog.DiscardHandler), kernel: w.recording()}); !errors.Is(err, context.Canceled) {
		t.Errorf("Cleanup = %v", err)
	}
	d.busy <- struct{}{} // a pass that does not end
	if err := d.Shut(ctx, pair(), prune); !errors.Is(err, context.Canceled) {
		t.Errorf("Shut = %v", err)
	}
	d.unlock()
	clean(t, d, pair(), prune)
}

// A pass costs what changed: without a change nothing, at any number of services.
func TestB54_AQuietPassAllocatesLittle(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t)
	edit := lb.Snapshot{}.Edit()
	for i := range 5000 {
		edit.Put(svc(fmt.Sprintf("10.%d.%d.1:80/tcp", i/250, i%250), always, "192.0.2.1:80"))
	}
	want := edit.Snapshot()
	clean(t, d, want, prune)
	allocs := testing.AllocsPerRun(5, func() { clean(t, d, want, prune) })
	if allocs > 200 {
		t.Errorf("%v allocations in a pass without a change", allocs)
	}
}
