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

var _ proxier.Watcher = (*Door)(nil)

// Watch calls drift when our device or an address of ours went or changed, when
// an address equal to a VIP of ours came or went elsewhere on this host, and when
// the subnets changed on which masquerade "auto" depends. An event only makes it
// look: what is found is compared with what the door left behind, so that our own
// writes do not count. It returns nil when ctx ends.
func (d *Door) Watch(ctx context.Context, drift func(proxier.Drift)) error {
	ctx, cancel := context.WithCancel(ctx)
	changed := make(chan struct{}, 1)
	var looking sync.WaitGroup
	defer looking.Wait()
	defer cancel()
	looking.Go(func() { d.lookOn(ctx, changed, drift) })
	wake := func() {
		select {
		case changed <- struct{}{}:
		default: // a look is due already
		}
	}
	for {
		err := d.kernel.links.Watch(ctx, func(e event) {
			if e.Address || e.Name == d.device || e.Index == d.summary.Load().device.Index {
				wake()
			}
		})
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, errEventsLost) {
			return err
		}
		wake()
	}
}

// lookOn looks after each signal, until ctx ends.
func (d *Door) lookOn(ctx context.Context, changed <-chan struct{}, drift func(proxier.Drift)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		select { // what came meanwhile is seen by this look
		case <-changed:
		default:
		}
		objects, err := d.look(ctx)
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

// look reads devices and addresses, takes them over, and returns what somebody
// else changed of what concerns us.
func (d *Door) look(ctx context.Context) ([]string, error) {
	if err := d.lock(ctx); err != nil {
		return nil, err
	}
	defer d.unlock()
	if !d.state.linksKnown {
		return nil, nil // the next pass reads everything
	}
	h, err := d.kernel.links.Read(ctx)
	if err != nil {
		d.state.linksKnown = false
		return nil, err
	}
	before := d.state.clone()
	d.state.takeHost(h, d.device)
	return before.changesTo(d.state, d.device), nil
}

// changesTo names what differs between two readings of the same host.
func (s *state) changesTo(now *state, device string) (objects []string) {
	if s.device != now.device {
		objects = append(objects, "device "+device)
	}
	for i, f := range s.families {
		before, after := f.addrs.have, now.families[i].addrs.have
		for _, a := range differing(before, after) {
			objects = append(objects, "address "+a.String()+" dev "+device)
		}
	}
	for _, a := range differing(s.reserved, now.reserved) {
		_, refused := s.refused[a]
		if refused || s.family(a).addrs.want[a] > 0 {
			objects = append(objects, "address "+a.String()+" of this host")
		}
	}
	if s.autos > 0 && !slices.Equal(s.prefixes, now.prefixes) {
		objects = append(objects, "connected subnets")
	}
	return objects
}

// differing returns the addresses that only one of two maps has, sorted.
func differing[V any](a, b map[netip.Addr]V) (addrs []netip.Addr) {
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
