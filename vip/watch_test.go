package vip

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// listener collects what Watch tells.
type listener struct {
	mu   sync.Mutex
	told []string
}

func (l *listener) drift(d proxier.Drift) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d.By != "" {
		d.Object += " by " + d.By
	}
	l.told = append(l.told, d.Object)
}

func (l *listener) taken() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	told := l.told
	l.told = nil
	return told
}

// watching runs f beside a Watch of the door. settled waits until all is told.
func watching(t *testing.T, d *Door, f func(t *testing.T, l *listener, settled func())) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d.busy = make(chan struct{}, 1) // of this bubble
		ctx, cancel := context.WithCancel(t.Context())
		l := &listener{}
		done := make(chan error)
		go func() { done <- d.Watch(ctx, l.drift) }()
		settled := func() {
			synctest.Wait()
			time.Sleep(2 * settle)
			synctest.Wait()
		}
		settled()
		f(t, l, settled)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch = %v", err)
		}
	})
}

func TestF95_F96_WatchTellsOfDamage(t *testing.T) {
	w := newFakeWorld()
	w.sh(t, uplink)
	d := w.door(t)
	clean(t, d, pair(), prune)
	watching(t, d, func(t *testing.T, l *listener, settled func()) {
		for _, c := range []struct {
			command string
			told    []string
		}{
			{"ip link set vipd0 down", []string{"device vipd0", "address 2001:db8::10 dev vipd0"}},
			{"ip link set vipd0 arp on", []string{"device vipd0"}},
			{"ip addr del 192.0.2.10/32 dev vipd0", []string{"address 192.0.2.10 dev vipd0"}},
			{"ip addr change 2001:db8::10/128 dev vipd0", []string{"address 2001:db8::10 dev vipd0"}},
			{"ip addr add 192.0.2.55/32 dev vipd0 scope host", []string{"address 192.0.2.55 dev vipd0"}},
			{"ip link del vipd0", []string{"device vipd0", "address 192.0.2.10 dev vipd0", "address 2001:db8::10 dev vipd0"}},
			{"ip link add vipd9 type veth", nil}, // none of ours
			{"ip addr add 203.0.113.7/24 dev nic0", nil},
			{"ip addr add 198.51.100.1/24 dev vipd0", nil},
		} {
			clean(t, d, pair(), prune) // not fresh: Watch has told the door as well
			settled()
			if told := l.taken(); told != nil {
				t.Fatalf("our own writes were told: %v", told)
			}
			w.sh(t, c.command)
			settled()
			if told := l.taken(); !slices.Equal(told, c.told) {
				t.Errorf("%s: told %v, want %v", c.command, told, c.told)
			}
		}
	})
}

// The reconciler hears when an address that keeps a service out goes, and tries
// the service again.
func TestF99_WatchTellsOfVIPsElsewhere(t *testing.T) {
	w := newFakeWorld()
	w.sh(t, uplink+"\nip addr add 192.0.2.10/32 dev nic0")
	d := w.door(t)
	if failed := onePass(t, d, pair(), prune); len(failed) != 1 {
		t.Fatalf("failed: %v", failed)
	}
	watching(t, d, func(t *testing.T, l *listener, settled func()) {
		w.sh(t, "ip addr del 192.0.2.10/32 dev nic0")
		settled()
		if told := l.taken(); !slices.Equal(told, []string{"address 192.0.2.10 of this host"}) {
			t.Errorf("gone: told %v", told)
		}
		clean(t, d, pair(), prune)
		w.sh(t, "ip addr add 192.0.2.10/32 dev nic0")
		settled()
		if told := l.taken(); !slices.Equal(told, []string{"address 192.0.2.10 of this host"}) {
			t.Errorf("came: told %v", told)
		}
	})
}

func TestWatchDoesNotCountOurOwnWrites(t *testing.T) {
	w := newFakeWorld()
	w.sh(t, uplink)
	d := w.door(t)
	watching(t, d, func(t *testing.T, l *listener, settled func()) {
		for _, want := range []lb.Snapshot{pair(), services(svc("192.0.2.11:80/tcp", auto)), {}, pair(), {}} {
			clean(t, d, want, prune)
			settled()
			if told := l.taken(); told != nil {
				t.Errorf("told %v", told)
			}
		}
		clean(t, d, services(svc("192.0.2.11:80/tcp", auto, "10.3.0.1:80")), prune)
		w.sh(t, "ip addr add 10.3.0.9/16 dev nic0")
		settled()
		if told := l.taken(); !slices.Equal(told, []string{"connected subnets"}) {
			t.Errorf("told %v", told)
		}
		clean(t, d, services(svc("192.0.2.11:80/tcp", auto, "10.3.0.1:80")), prune)
		w.holds(t, []string{"vip", "hair", "auto"}, "vipd-vip4 192.0.2.11", "vipd-auto4 192.0.2.11,tcp:80,10.3.0.0/16", "vipd-hair4 10.3.0.1,tcp:80,10.3.0.1")
	})
}

func TestWatchGoesOnAfterLostEvents(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t)
	clean(t, d, pair(), prune)
	watching(t, d, func(t *testing.T, l *listener, settled func()) {
		links := w.fake.links
		links.mu.Lock()
		close(links.hearers[0])
		links.hearers = nil
		links.dropAddrs(func(a address) bool { return a.Prefix.Addr().String() == "192.0.2.10" }) // unheard
		links.mu.Unlock()
		settled()
		if told := l.taken(); !slices.Equal(told, []string{"address 192.0.2.10 dev vipd0"}) {
			t.Errorf("told %v", told)
		}
		w.fake.links.fail = func(op string) error { return errors.New("no " + op) }
		w.sh(t, "ip link del vipd0")
		settled()
		if told := l.taken(); !slices.Equal(told, []string{"addresses of this host"}) {
			t.Errorf("told %v", told)
		}
		w.fake.links.fail = nil
		clean(t, d, pair(), prune) // a reading that failed is made again
		w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true", "2001:db8::10/128 dev vipd0 shaped=true")
	})
}

// A watch that loses events as soon as it begins begins again, but leaves the
// processor to others.
func TestWatchThatAlwaysLosesEventsKeepsItsPace(t *testing.T) {
	w := newFakeWorld()
	var begun atomic.Int64
	w.fake.links.fail = func(op string) error {
		if op != "watch" {
			return nil
		}
		if begun.Add(1) > 1000 {
			return errors.New("too often")
		}
		return errEventsLost
	}
	watching(t, w.door(t), func(t *testing.T, _ *listener, _ func()) {
		begun.Store(0)
		time.Sleep(time.Second)
		synctest.Wait()
		if n := begun.Load(); n == 0 || n > int64(time.Second/settle)+1 {
			t.Errorf("begun %d times in a second", n)
		}
	})
}

func TestWatchEndsWithItsError(t *testing.T) {
	w := newFakeWorld()
	w.fake.links.fail = func(op string) error { return errors.New("no " + op) }
	if err := w.door(t).Watch(t.Context(), func(proxier.Drift) {}); err == nil || err.Error() != "no watch" {
		t.Errorf("Watch = %v", err)
	}
}

func TestB61_WatchTellsOfRulesAndOfTheirCulprit(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t)
	watching(t, d, func(t *testing.T, l *listener, settled func()) {
		w.fake.tell(netfilter.Drift{Object: "IPv4 table nat", By: "iptables (pid 7)"})
		settled()
		if told := l.taken(); !slices.Equal(told, []string{"IPv4 table nat by iptables (pid 7)"}) {
			t.Errorf("told %v", told)
		}
	})
}

func TestB61_WatchTellsOfSets(t *testing.T) {
	w := newFakeWorld()
	w.sh(t, uplink)
	d := w.door(t)
	watching(t, d, func(t *testing.T, l *listener, settled func()) {
		for _, c := range []struct {
			command string
			told    []string
		}{
			{"ipset flush vipd-vip4", []string{"set vipd-vip4 (0 entries in place of 1)"}},
			{"ipset add vipd-vip6 2001:db8::99", []string{"set vipd-vip6 (2 entries in place of 1)"}},
			{"ipset flush vipd-hair4", nil}, // it was empty
		} {
			clean(t, d, pair(), prune)
			time.Sleep(2 * setInterval)
			settled()
			if told := l.taken(); told != nil {
				t.Fatalf("our own writes were told: %v", told)
			}
			w.sh(t, c.command)
			time.Sleep(3 * setInterval) // once is enough
			settled()
			if told := l.taken(); !slices.Equal(told, c.told) {
				t.Errorf("%s: told %v, want %v", c.command, told, c.told)
			}
			clean(t, d, pair(), prune)
			w.has(t, "entry", pairEntries...)
		}
	})
}

// What was found before a look failed is told: the door does not look at it again.
func TestWatchTellsOfSetsBeforeItsError(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t)
	clean(t, d, pair(), prune)
	w.sh(t, "ipset flush vipd-vip4")
	w.fake.sets.Fail = func(op, set string) error {
		if op == "size" && set == "vipd-vip6" {
			return errors.New("no size")
		}
		return nil
	}
	synctest.Test(t, func(t *testing.T) {
		d.busy = make(chan struct{}, 1) // of this bubble
		l := &listener{}
		if err := d.Watch(t.Context(), l.drift); err == nil || !strings.Contains(err.Error(), "no size") {
			t.Errorf("Watch = %v", err)
		}
		if told := l.taken(); !slices.Equal(told, []string{"set vipd-vip4 (0 entries in place of 1)"}) {
			t.Errorf("told %v", told)
		}
	})
}
