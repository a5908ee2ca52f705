package vip

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"syscall"
)

// fakeLinks is a host in memory. It is strict: what the kernel refuses, it
// refuses, and IPv6 addresses go when a device goes down.
type fakeLinks struct {
	noDummy bool
	fail    func(op string) error // before op ("read", "create", "add"...)

	mu      sync.Mutex
	next    int
	devices map[int]link
	addrs   []address
	hearers []chan event
}

func newFakeLinks() *fakeLinks {
	f := &fakeLinks{next: 2, devices: map[int]link{1: {Index: 1, Name: "lo", Kind: "device", Up: true}}}
	f.addrs = []address{{Link: 1, Prefix: netip.MustParsePrefix("127.0.0.1/8"), HostScope: true}}
	return f
}

func (f *fakeLinks) begin(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.fail != nil {
		return f.fail(op)
	}
	return nil
}

func (f *fakeLinks) Read(ctx context.Context) (host, error) {
	if err := f.begin(ctx, "read"); err != nil {
		return host{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var h host
	for _, i := range slices.Sorted(maps.Keys(f.devices)) {
		h.links = append(h.links, f.devices[i])
	}
	h.addrs = slices.Clone(f.addrs)
	return h, nil
}

func (f *fakeLinks) Create(ctx context.Context, name, kind string) error {
	if err := f.begin(ctx, "create"); err != nil {
		return err
	}
	if kind == kindDummy && f.noDummy || kind != kindDummy && kind != kindBridge {
		return errNoKind
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, found := f.byName(name); !found {
		f.put(link{Name: name, Kind: kind, Alias: alias, ARP: true})
	}
	return nil
}

func (f *fakeLinks) Enable(ctx context.Context, index int) error {
	if err := f.begin(ctx, "enable"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	l, found := f.devices[index]
	if !found {
		return errNoLink
	}
	l.Up, l.ARP = true, false
	f.put(l)
	return nil
}

func (f *fakeLinks) Remove(ctx context.Context, index int) error {
	if err := f.begin(ctx, "remove"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if l, found := f.devices[index]; found {
		f.remove(l)
	}
	return nil
}

func (f *fakeLinks) Add(ctx context.Context, index int, addrs []netip.Addr) (map[netip.Addr]error, error) {
	if err := f.begin(ctx, "add"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, found := f.devices[index]; !found {
		return nil, errNoLink
	}
	refused := map[netip.Addr]error{}
	for _, a := range addrs {
		if a.IsUnspecified() || a.IsMulticast() {
			refused[a] = syscall.EINVAL
			continue
		}
		if i := f.find(index, netip.PrefixFrom(a, a.BitLen())); i >= 0 {
			f.addrs[i].Deprecated = a.Is6() // replaced in place; IPv4: EEXIST, scope as it was
		} else {
			f.addAddr(address{Link: index, Prefix: netip.PrefixFrom(a, a.BitLen()), HostScope: a.Is4(), Deprecated: a.Is6()})
		}
	}
	return refused, nil
}

func (f *fakeLinks) Delete(ctx context.Context, index int, addrs []netip.Addr) error {
	if err := f.begin(ctx, "delete"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range addrs {
		if i := f.find(index, netip.PrefixFrom(a, a.BitLen())); i >= 0 {
			f.addrs = slices.Delete(f.addrs, i, i+1)
			f.tell(event{Index: index, Address: true, Addr: a, Gone: true})
		}
	}
	return nil
}

func (f *fakeLinks) Watch(ctx context.Context, changed func(event)) error {
	if err := f.begin(ctx, "watch"); err != nil {
		return err
	}
	events := make(chan event, 1000)
	f.mu.Lock()
	f.hearers = append(f.hearers, events)
	f.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-events:
			if !ok {
				return errEventsLost
			}
			changed(e)
		}
	}
}

// The rest is for callers that hold mu.

func (f *fakeLinks) byName(name string) (link, bool) {
	for _, l := range f.devices {
		if l.Name == name {
			return l, true
		}
	}
	return link{}, false
}

func (f *fakeLinks) put(l link) {
	if l.Index == 0 {
		l.Index = f.next
		f.next++
	}
	f.devices[l.Index] = l
	f.tell(event{Index: l.Index, Name: l.Name})
}

func (f *fakeLinks) remove(l link) {
	f.dropAddrs(func(a address) bool { return a.Link == l.Index })
	delete(f.devices, l.Index)
	f.tell(event{Index: l.Index, Name: l.Name})
}

func (f *fakeLinks) find(index int, p netip.Prefix) int {
	return slices.IndexFunc(f.addrs, func(a address) bool { return a.Link == index && a.Prefix == p })
}

func (f *fakeLinks) addAddr(a address) {
	f.addrs = append(f.addrs, a)
	f.tell(event{Index: a.Link, Address: true, Addr: a.Prefix.Addr(), Shaped: a.shaped()})
}

func (f *fakeLinks) dropAddrs(drop func(address) bool) {
	f.addrs = slices.DeleteFunc(f.addrs, func(a address) bool {
		if drop(a) {
			f.tell(event{Index: a.Link, Address: true, Addr: a.Prefix.Addr(), Gone: true})
			return true
		}
		return false
	})
}

func (f *fakeLinks) tell(e event) {
	for _, h := range f.hearers {
		h <- e
	}
}
