package vip

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vipd/proxier"
)

// settle is how long Watch waits for further events after the first, so that a
// flush of many addresses is one look.
const settle = 20 * time.Millisecond

// maxDrifts is how many drifts one look tells singly.
const maxDrifts = 20

// maxEvents is how many addresses with news are looked at singly.
const maxEvents = 1 << 16

// watchLinks calls drift when our device or an address of ours went or changed, when
// an address equal to a VIP of ours came or went elsewhere on this host, and when
// the subnets changed on which masquerade "auto" depends. An event only makes it
// look: what is found is compared with what the door left behind, so that our own
// writes do not count. It returns nil when ctx ends.
func (d *Door) watchLinks(ctx context.Context, drift func(proxier.Drift)) error {
	ctx, cancel := context.WithCancel(ctx)
	news := &news{changed: make(chan struct{}, 1)}
	var looking sync.WaitGroup
	defer looking.Wait()
	defer cancel()
	looking.Go(func() { d.lookOn(ctx, news, drift) })
	for {
		err := d.kernel.links.Watch(ctx, func(e event) {
			if e.Address || e.Name == d.device || e.Index == d.summary.Load().device.Index {
				news.add(e)
			}
		})
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, errEventsLost) {
			return err
		}
		news.add(event{})
		select { // a socket that fails at once, again and again, is not to take the processor
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
	}
}

// news is what was heard since the last look.
type news struct {
	changed chan struct{} // a look is due

	mu    sync.Mutex
	addrs map[where]event // the last event of each address
	all   bool            // or of something else, or too many
}

// where is an address on a device.
type where struct {
	index int
	addr  netip.Addr
}

func (n *news) add(e event) {
	n.mu.Lock()
	if !e.Addr.IsValid() || len(n.addrs) >= maxEvents {
		n.all = true
	} else {
		if n.addrs == nil {
			n.addrs = map[where]event{}
		}
		n.addrs[where{e.Index, e.Addr}] = e
	}
	n.mu.Unlock()
	select {
	case n.changed <- struct{}{}:
	default: // a look is due already
	}
}

// take returns what was heard; all: the addresses alone do not tell it.
func (n *news) take() (addrs map[where]event, all bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	addrs, all = n.addrs, n.all
	n.addrs, n.all = nil, false
	return addrs, all
}

// lookOn looks after each signal, until ctx ends.
func (d *Door) lookOn(ctx context.Context, news *news, drift func(proxier.Drift)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-news.changed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		objects, err := d.look(ctx, news)
		if err != nil && ctx.Err() == nil {
			d.log.Warn("a change of the addresses of this host cannot be read; the next pass reads all", "error", err)
			objects = []string{"addresses of this host"}
		}
		if more := len(objects) - maxDrifts; more > 0 {
			d.log.Warn("more changes than are told singly", "more", more)
			objects = objects[:maxDrifts]
		}
		for _, o := range objects {
			drift(proxier.Drift{Object: o})
		}
	}
}

// look judges what was heard. Unless all of it is what the door itself did, it
// reads devices and addresses, takes them over, and returns what somebody else
// changed of what concerns us.
func (d *Door) look(ctx context.Context, news *news) ([]string, error) {
	if err := d.lock(ctx); err != nil { // a pass that is being made ends first
		return nil, err
	}
	defer d.unlock()
	events, all := news.take()
	if !d.state.linksKnown || !all && d.state.expects(events) {
		return nil, nil // the next pass reads everything, or there is no news
	}
	h, err := d.kernel.links.Read(ctx)
	if err != nil {
		d.state.linksKnown = false
		return nil, err
	}
	r := h.reading(d.device)
	objects := d.state.changesTo(r, d.device)
	d.state.take(r)
	return objects, nil
}

// expects reports whether the events are those of the addresses that the door put
// up and down. The last event of an address tells whether it stands.
func (s *state) expects(events map[where]event) bool {
	for at, e := range events {
		if at.index != s.device.Index || !e.Gone && !e.Shaped || s.family(at.addr).addrs.held(at.addr) == e.Gone {
			return false
		}
	}
	return true
}

// changesTo names what differs between what is known of the host and a reading.
func (s *state) changesTo(now reading, device string) (objects []string) {
	if s.device != now.device {
		objects = append(objects, "device "+device)
	}
	for i, f := range s.families {
		before := map[netip.Addr]struct{}{}
		for a := range f.addrs.allHeld() {
			before[a] = struct{}{}
		}
		for _, a := range differing(before, now.vips[i]) {
			objects = append(objects, "address "+a.String()+" dev "+device)
		}
	}
	for _, a := range differing(s.reserved, now.reserved) {
		_, refused := s.refused[a]
		if refused || s.family(a).addrs.wanted(a) {
			objects = append(objects, "address "+a.String()+" of this host")
		}
	}
	if s.autos > 0 && !slices.Equal(s.prefixes, now.prefixes) {
		objects = append(objects, "connected subnets")
	}
	return objects
}

// differing returns the addresses that only one of two maps has, sorted.
func differing[V, W any](a map[netip.Addr]V, b map[netip.Addr]W) (addrs []netip.Addr) {
	for k := range a {
		if _, found := b[k]; !found {
			addrs = append(addrs, k)
		}
	}
	for k := range b {
		if _, found := a[k]; !found {
			addrs = append(addrs, k)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}
