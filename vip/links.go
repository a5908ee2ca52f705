package vip

import (
	"context"
	"errors"
	"iter"
	"net/netip"
	"slices"
)

// alias is the mark on a device that vipd made (`ip link set DEV alias`). Only
// such a device is ever deleted.
const alias = "vipd"

// The kinds of a device that can hold VIPs.
const (
	kindDummy  = "dummy"
	kindBridge = "bridge"
)

// Errors of links.
var (
	errNoKind = errors.New("the kernel has no such kind of device")
	errNoLink = errors.New("the device is gone")

	errEventsLost = errors.New("events of the kernel were lost")
)

// links is the network devices and addresses of this host. Writes are
// idempotent: an address that is there, or a device that is gone, is no error.
type links interface {
	// Read returns every device and every address. A partial answer is an error.
	Read(ctx context.Context) (host, error)
	// Create makes a device of that kind, marked with alias, down. A device of
	// that name is no error: Read tells whose it is. errNoKind.
	Create(ctx context.Context, name, kind string) error
	// Enable switches ARP off and the device on. errNoLink.
	Enable(ctx context.Context, index int) error
	// Remove deletes the device, if it is there.
	Remove(ctx context.Context, index int) error
	// Add puts addresses of our shape on a device. It tells which of them the
	// kernel refused for what they are; any other failure ends it. errNoLink.
	Add(ctx context.Context, index int, addrs []netip.Addr) (refused map[netip.Addr]error, err error)
	// Watch calls changed for every device or address that came, went or changed,
	// our own writes included, until ctx ends; then it returns nil. errEventsLost
	// means that something changed that it could not tell.
	Watch(ctx context.Context, changed func(event)) error
	// Delete takes single addresses (/32, /128) from a device, if they are there.
	Delete(ctx context.Context, index int, addrs []netip.Addr) error
}

// link is a network device.
type link struct {
	Index int
	Name  string
	Kind  string // "dummy", "bridge", "veth", "device"...
	Alias string
	Up    bool
	ARP   bool
}

// ours reports whether vipd made the device.
func (l link) ours() bool { return l.Alias == alias }

// enabled reports whether the device is as Enable leaves it.
func (l link) enabled() bool { return l.Up && !l.ARP }

// address is an address of a device.
type address struct {
	Link       int
	Prefix     netip.Prefix // the address itself, with the length of its subnet
	Peer       netip.Addr   // the other end of a point-to-point device; may be invalid
	Broadcast  netip.Addr   // may be invalid
	HostScope  bool         // scope host: not for use outside this host
	Deprecated bool         // preferred lifetime 0: not to be chosen as a source
	Unusable   bool         // tentative or failed duplicate detection
}

// single reports whether the address stands alone, as a VIP does, and not in a
// subnet.
func (a address) single() bool {
	return a.Prefix.IsSingleIP() && (!a.Peer.IsValid() || a.Peer == a.Prefix.Addr())
}

// shaped reports whether the address is one that vipd would have made: an IPv4
// /32 of scope host, an IPv6 /128 without preferred lifetime. The host does not
// choose such an address as a source.
func (a address) shaped() bool {
	if !a.single() || a.Unusable {
		return false
	}
	if a.Prefix.Addr().Is4() {
		return a.HostScope
	}
	return a.Deprecated
}

// event is a change of a device, or of an address on it.
type event struct {
	Index   int
	Name    string // empty for an address
	Address bool
	Addr    netip.Addr // the address, if it is told
	Gone    bool       // it went; else it came or changed
	Shaped  bool       // it has the shape of ours
}

// host is the devices and addresses of this host at one moment.
type host struct {
	links []link
	addrs []address
}

func (h host) named(name string) (link, bool) {
	i := slices.IndexFunc(h.links, func(l link) bool { return l.Name == name })
	if i < 0 {
		return link{}, false
	}
	return h.links[i], true
}

// on returns the addresses of a device.
func (h host) on(index int) iter.Seq[address] {
	return func(yield func(address) bool) {
		for _, a := range h.addrs {
			if a.Link == index && !yield(a) {
				return
			}
		}
	}
}

// others returns the addresses that stand on devices which are not vipd's, and
// the names of these devices.
func (h host) others(device string) (addrs []address, names map[int]string) {
	names = map[int]string{}
	for _, l := range h.links {
		if l.Name != device && !l.ours() {
			names[l.Index] = l.Name
		}
	}
	for _, a := range h.addrs {
		if _, found := names[a.Link]; found {
			addrs = append(addrs, a)
		}
	}
	return addrs, names
}

// connected returns the subnets that this host is a member of, sorted.
func (h host) connected(device string) (prefixes []netip.Prefix) {
	addrs, _ := h.others(device)
	for _, a := range addrs {
		ip := a.Prefix.Addr()
		if ip.IsLoopback() || ip.IsLinkLocalUnicast() {
			continue
		}
		prefixes = append(prefixes, a.Prefix.Masked())
	}
	slices.SortFunc(prefixes, comparePrefix)
	return slices.Compact(prefixes)
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}
