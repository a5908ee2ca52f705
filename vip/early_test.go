package vip

import (
	"slices"
	"strings"
	"testing"

	"vipd/internal/netfilter"
)

// noted writes evictions into the journal of the world.
type noted struct{ w *world }

func (n noted) Evict(evictions ...netfilter.Eviction) {
	for _, e := range evictions {
		n.w.note("evict %s from %s", e.Key, e.Backend)
	}
}

// A datagram that came before its VIP was open left an entry in conntrack that is
// not translated. It goes when the VIP has come, and only then.
func TestB45_FlowsFromBeforeTheVIPWasOpenEnd(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t, func(o *Options) { o.Evict = noted{w} })
	want := services(
		svc("192.0.2.10:53/udp", always, "10.0.0.11:53"),
		svc("192.0.2.10:80/tcp", always, "10.0.0.11:80"))
	clean(t, d, want, prune)
	writes := w.taken()
	if last := writes[len(writes)-1]; last != "evict 192.0.2.10:53/udp from 192.0.2.10:53" {
		t.Errorf("the last thing done was %q", last)
	}
	more := want.Edit()
	more.Put(svc("192.0.2.11:53/udp", always, "10.0.0.11:53"))
	clean(t, d, more.Snapshot(), prune)
	writes = w.taken()
	evicted := 0
	for _, line := range writes {
		if line[:5] == "evict" {
			evicted++
		}
	}
	if last := writes[len(writes)-1]; evicted != 1 || last != "evict 192.0.2.11:53/udp from 192.0.2.11:53" {
		t.Errorf("one more VIP: %q", writes)
	}
	w.quiet(t, d, more.Snapshot())
}

// While the set of the guard, or the guard, was gone, flows could begin untranslated.
func TestB45_FlowsFromWhileTheGuardWasGoneEnd(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t, func(o *Options) { o.Evict = noted{w} })
	all := services(svc("192.0.2.10:53/udp", always, "10.0.0.11:53"), svc("192.0.2.11:53/udp", always, "10.0.0.11:53"))
	clean(t, d, all, prune)
	evicted := func() (keys []string) {
		for _, line := range w.taken() {
			if key, found := strings.CutPrefix(line, "evict "); found {
				keys = append(keys, key)
			}
		}
		return keys
	}
	evicted()
	for harm, want := range map[string][]string{
		"ipset del vipd-vip4 192.0.2.11":   {"192.0.2.11:53/udp from 192.0.2.11:53"},
		"iptables -t filter -F VIPD-IN":    {"192.0.2.10:53/udp from 192.0.2.10:53", "192.0.2.11:53/udp from 192.0.2.11:53"},
		"iptables -t filter -D INPUT 1":    {"192.0.2.10:53/udp from 192.0.2.10:53", "192.0.2.11:53/udp from 192.0.2.11:53"},
		"iptables -t nat -D POSTROUTING 1": nil,
		"nft delete table ip vipd-anchor":  nil,
	} {
		w.sh(t, harm)
		_, err := d.Plan(t.Context(), all, fresh)
		fatal(t, err)
		clean(t, d, all, fresh)
		if got := evicted(); !slices.Equal(got, want) {
			t.Errorf("%s: evicted %v, want %v", harm, got, want)
		}
		clean(t, d, all, fresh)
		if got := evicted(); got != nil {
			t.Errorf("%s: evicted again %v", harm, got)
		}
	}
}
