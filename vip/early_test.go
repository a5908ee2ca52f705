package vip

import (
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
