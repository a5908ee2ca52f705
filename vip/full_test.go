package vip

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// manyRanges returns a service with n ranges of clients.
func manyRanges(key string, n int) *lb.Service {
	s := svc(key, always, "10.0.0.11:80")
	for i := range n {
		s.Clients = append(s.Clients, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 0}), 24))
	}
	return s
}

// TestB59_AFullSetFailsOnlyTheServicesThatItHasNoRoomFor: all others get in, whatever
// their order, what stands stays as it is, and with room again all is as wanted.
func TestB59_AFullSetFailsOnlyTheServicesThatItHasNoRoomFor(t *testing.T) {
	const small, great, old, other = "192.0.2.20:80/tcp", "192.0.2.10:80/tcp", "192.0.2.1:80/tcp", "[2001:db8::10]:80/tcp"
	for name, c := range map[string]struct {
		set    string
		room   int
		before []*lb.Service
		want   []*lb.Service
		failed []string
		vips   []string // that stand
	}{
		"the greatest yields": {
			"allow4", 10, nil,
			[]*lb.Service{manyRanges(great, 20), manyRanges(small, 9), svc(other, always)},
			[]string{great}, []string{"192.0.2.20", "2001:db8::10"},
		},
		"what stands keeps its ranges": {
			"allow4", 10, []*lb.Service{manyRanges(old, 4)},
			[]*lb.Service{manyRanges(old, 12), manyRanges(small, 6)},
			[]string{old}, []string{"192.0.2.1", "192.0.2.20"},
		},
		"two do not fit": {
			"allow4", 10, []*lb.Service{manyRanges(old, 8)},
			[]*lb.Service{manyRanges(old, 8), manyRanges(great, 3), manyRanges(small, 3)},
			[]string{great, small}, []string{"192.0.2.1"},
		},
		"a set of backends": {
			"hair4", 1, nil,
			[]*lb.Service{svc(great, never, "10.0.0.11:80"), svc(small, never, "10.0.0.12:80"), svc("192.0.2.30:80/tcp", never, "10.0.0.12:80"), svc(old, always, "10.0.0.12:80")},
			[]string{small, "192.0.2.30:80/tcp"}, []string{"192.0.2.1", "192.0.2.10"},
		},
		"a set of services": {
			"masq4", 1, nil,
			[]*lb.Service{svc(great, always), svc(small, always), svc(other, always)},
			[]string{small}, []string{"192.0.2.10", "2001:db8::10"},
		},
		"the set of VIPs": {
			"vip4", 1, nil,
			[]*lb.Service{svc(great, always), svc(small, always), svc(other, always)},
			[]string{small}, []string{"192.0.2.10", "2001:db8::10"},
		},
		"the set of services that are served": {
			"served4", 1, nil,
			[]*lb.Service{svc(great, always, "10.0.0.11:80"), svc(small, always, "10.0.0.11:80")},
			[]string{small}, []string{"192.0.2.10", "192.0.2.20"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFakeWorld()
			d := w.door(t)
			clean(t, d, services(c.before...), prune)
			set := netfilter.SetPrefix + c.set
			w.fake.sets.Full[set] = c.room
			for range 2 { // and again: they are tried once more
				failed := passBeside(t, d, services(c.want...), services(c.before...))
				wantFailed(t, failed, c.failed)
				var addresses []string
				for _, v := range c.vips {
					a := netip.MustParseAddr(v)
					addresses = append(addresses, fmt.Sprintf("%s dev vipd0 shaped=true", netip.PrefixFrom(a, a.BitLen())))
				}
				w.has(t, "address", addresses...)
			}
			delete(w.fake.sets.Full, set)
			clean(t, d, services(c.want...), prune)
			w.quiet(t, d, services(c.want...))
		})
	}
}

func wantFailed(t *testing.T, failed map[lb.Key]error, want []string) {
	t.Helper()
	if len(failed) != len(want) {
		t.Fatalf("failed: %v, want %v", failed, want)
	}
	for _, s := range want {
		k, err := lb.ParseKey(s)
		fatal(t, err)
		if reason := failed[k]; !errors.Is(reason, netfilter.ErrSetFull) && (reason == nil || !strings.Contains(reason.Error(), "full")) {
			t.Errorf("%s: %v, want it to tell that the set is full", s, reason)
		}
	}
}

// passBeside makes a pass in which services that fail stay as they stand, as in the
// reconciler.
func passBeside(t *testing.T, d *Door, want, stands lb.Snapshot) map[lb.Key]error {
	t.Helper()
	failed, only := proxier.FailedServices(d.Shut(t.Context(), want, prune))
	if !only && failed != nil {
		t.Fatal("more than services failed")
	}
	left := want.Edit()
	for k := range failed {
		left.Delete(k)
		if old := stands.Get(k); old != nil {
			left.Put(old)
		}
	}
	more, _ := proxier.FailedServices(d.Open(t.Context(), left.Snapshot(), prune))
	return merged(maps.Clone(failed), more)
}

// Ranges that a service has had stay in force while its new ones do not fit.
func TestB21_RangesThatDoNotFitLeaveTheOldOnes(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t)
	before := services(manyRanges("192.0.2.1:80/tcp", 2))
	clean(t, d, before, prune)
	w.fake.sets.Full["vipd-allow4"] = 5
	wantFailed(t, passBeside(t, d, services(manyRanges("192.0.2.1:80/tcp", 9)), before), []string{"192.0.2.1:80/tcp"})
	w.holds(t, []string{"acl", "allow"}, "vipd-acl4 192.0.2.1,tcp:80", "vipd-allow4 192.0.2.1,tcp:80,198.18.0.0/24", "vipd-allow4 192.0.2.1,tcp:80,198.18.1.0/24")
}

// Sets of our names that somebody else made, or an earlier vipd, are made
// anew while the rules that name them stand.
func TestSetsThatSomebodyElseMadeAreReplaced(t *testing.T) {
	w := newFakeWorld()
	w.sh(t, "ipset create vipd-vip4 hash:ip\nipset add vipd-vip4 198.51.100.1")
	w.fake.sets.Odd["vipd-vip4"] = 1
	d := w.door(t)
	changes, err := d.Plan(t.Context(), pair(), fresh)
	fatal(t, err)
	if text := fmt.Sprint(changes); !strings.Contains(text, "in place of one made with maxelem 1") {
		t.Errorf("the plan does not tell: %s", text)
	}
	clean(t, d, pair(), prune)
	w.has(t, "entry", pairEntries...)
	w.quiet(t, d, pair())
	w.fake.sets.Odd["vipd-masq4"] = 1 // as by ipset swap
	w.taken()
	clean(t, d, pair(), fresh)
	if wrote := w.taken(); len(wrote) != 1 || wrote[0] != "replace vipd-masq4" {
		t.Errorf("wrote %q", wrote)
	}
	w.has(t, "entry", pairEntries...)
}
