package vip

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumpAttempts is how often a listing that a change interrupted is made again.
const dumpAttempts = 5

// eventBuffer is the size of the socket buffer for events, in bytes; the kernel
// limits it to net.core.rmem_max.
const eventBuffer = 4 << 20

// addrGenNone keeps the kernel from making a link-local IPv6 address
// (IN6_ADDR_GEN_MODE_NONE).
const addrGenNone = 1

// kernelLinks is the devices and addresses of the network namespace of the
// calling thread, over rtnetlink.
type kernelLinks struct{}

var _ links = kernelLinks{}

// Read returns every device and every address.
func (kernelLinks) Read(ctx context.Context) (host, error) {
	devices, err := dump(ctx, netlink.LinkList)
	if err != nil {
		return host{}, fmt.Errorf("list devices: %w", err)
	}
	addrs, err := dump(ctx, listAddresses)
	if err != nil {
		return host{}, fmt.Errorf("list addresses: %w", err)
	}
	h := host{addrs: addrs}
	for _, d := range devices {
		h.links = append(h.links, linkOf(d))
	}
	return h, nil
}

// dump repeats a listing that a change of the kernel's tables interrupted.
func dump[T any](ctx context.Context, list func() ([]T, error)) (all []T, err error) {
	for range dumpAttempts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return nil, err
}

func linkOf(d netlink.Link) link {
	attrs := d.Attrs()
	return link{
		Index: attrs.Index,
		Name:  attrs.Name,
		Kind:  d.Type(),
		Alias: attrs.Alias,
		Up:    attrs.RawFlags&unix.IFF_UP != 0,
		ARP:   attrs.RawFlags&unix.IFF_NOARP == 0,
	}
}

// Create makes a device of that kind, marked with alias, down.
func (kernelLinks) Create(ctx context.Context, name, kind string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	var device netlink.Link = &netlink.Dummy{LinkAttrs: attrs}
	if kind == kindBridge {
		silent := false // no multicast snooping, no queries
		device = &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &silent}
	}
	switch err := netlink.LinkAdd(device); {
	case errors.Is(err, unix.EEXIST):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("add a %s device: %w (%w)", kind, errNoKind, err)
	case err != nil:
		return fmt.Errorf("add a %s device: %w", kind, err)
	}
	made, err := netlink.LinkByName(name)
	if err != nil {
		return noLink(err)
	}
	if err := netlink.LinkSetAlias(made, alias); err != nil {
		return fmt.Errorf("set the alias: %w", noLink(err))
	}
	// Without IPv6 there is no mode to set, and nothing to keep quiet.
	if err := netlink.LinkSetIP6AddrGenMode(made, addrGenNone); err != nil && errors.Is(noLink(err), errNoLink) {
		return errNoLink
	}
	return nil
}

// Enable switches ARP off and the device on.
func (kernelLinks) Enable(ctx context.Context, index int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	device := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	if err := netlink.LinkSetARPOff(device); err != nil {
		return fmt.Errorf("switch ARP off: %w", noLink(err))
	}
	if err := netlink.LinkSetUp(device); err != nil {
		return fmt.Errorf("switch on: %w", noLink(err))
	}
	return nil
}

// Remove deletes the device, if it is there.
func (kernelLinks) Remove(ctx context.Context, index int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := noLink(netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}))
	if errors.Is(err, errNoLink) {
		return nil
	}
	return err
}

// Add puts addresses of our shape on a device.
func (kernelLinks) Add(ctx context.Context, index int, addrs []netip.Addr) (map[netip.Addr]error, error) {
	refused := map[netip.Addr]error{}
	device := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	err := withHandle(ctx, addrs, func(h *netlink.Handle, a netip.Addr) error {
		write := h.AddrReplace // IPv6: also gives an address that stands our lifetimes
		if a.Is4() {
			write = h.AddrAdd
		}
		switch err := noLink(write(device, vipAddr(a))); {
		case errors.Is(err, unix.EEXIST):
			return nil
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EADDRNOTAVAIL):
			refused[a] = fmt.Errorf("the kernel refuses the address: %w", err)
			return nil
		case a.Is6() && errors.Is(err, unix.EACCES):
			return fmt.Errorf("%s: IPv6 is disabled on the device (sysctl net.ipv6.conf.*.disable_ipv6): %w", a, err)
		case err != nil:
			return fmt.Errorf("%s: %w", a, err)
		}
		return nil
	})
	return refused, err
}

// Delete takes single addresses from a device, if they are there.
func (kernelLinks) Delete(ctx context.Context, index int, addrs []netip.Addr) error {
	device := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	return withHandle(ctx, addrs, func(h *netlink.Handle, a netip.Addr) error {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
		err := noLink(h.AddrDel(device, addr))
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, errNoLink) {
			return fmt.Errorf("%s: %w", a, err)
		}
		return nil
	})
}

// Watch calls changed for every event of devices and addresses.
func (kernelLinks) Watch(ctx context.Context, changed func(event)) error {
	done := make(chan struct{})
	devices, addrs := make(chan netlink.LinkUpdate), make(chan netlink.AddrUpdate)
	if err := netlink.LinkSubscribeWithOptions(devices, done, netlink.LinkSubscribeOptions{ReceiveBufferSize: eventBuffer}); err != nil {
		close(done)
		return fmt.Errorf("hear of changes of devices: %w", err)
	}
	defer drainAll(devices)
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ReceiveBufferSize: eventBuffer}); err != nil {
		close(done)
		return fmt.Errorf("hear of changes of addresses: %w", err)
	}
	defer drainAll(addrs)
	defer close(done)
	changed(event{Address: true}) // what happened before is not told
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-devices:
			if !ok {
				return errEventsLost
			}
			changed(event{Index: int(u.Index), Name: u.Attrs().Name})
		case u, ok := <-addrs:
			if !ok {
				return errEventsLost
			}
			changed(addressEvent(u))
		}
	}
}

// addressEvent reads an event of an address.
func addressEvent(u netlink.AddrUpdate) event {
	e := event{Index: u.LinkIndex, Address: true, Gone: !u.NewAddr}
	ip, ok := netip.AddrFromSlice(u.LinkAddress.IP)
	if !ok {
		return e
	}
	ones, _ := u.LinkAddress.Mask.Size()
	e.Addr = ip.Unmap()
	e.Shaped = address{
		Prefix: netip.PrefixFrom(e.Addr, ones), HostScope: u.Scope == unix.RT_SCOPE_HOST, Deprecated: u.PreferedLft == 0,
		Unusable: u.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0,
	}.shaped()
	return e
}

// drainAll waits for the end of a subscription.
func drainAll[T any](ch <-chan T) {
	for range ch { // the values are of no interest any more
	}
}

// withHandle does something for every address over one socket.
func withHandle(ctx context.Context, addrs []netip.Addr, f func(*netlink.Handle, netip.Addr) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open rtnetlink: %w", err)
	}
	defer h.Close()
	for _, a := range addrs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f(h, a); err != nil {
			return err
		}
	}
	return nil
}

// vipAddr is an address of our shape. See address.shaped.
func vipAddr(a netip.Addr) *netlink.Addr {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
	if a.Is4() {
		addr.Scope = unix.RT_SCOPE_HOST
		return addr
	}
	addr.Flags = unix.IFA_F_NODAD
	addr.ValidLft, addr.PreferedLft = math.MaxUint32, 0 // for ever, but not as a source
	return addr
}

// noLink translates the ways of the kernel, and of the module, to say that a
// device is gone.
func noLink(err error) error {
	var notFound netlink.LinkNotFoundError
	var errno syscall.Errno
	if errors.As(err, &notFound) || errors.As(err, &errno) && errno == unix.ENODEV {
		return fmt.Errorf("%w (%w)", errNoLink, err)
	}
	return err
}
