package vip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"vipd/internal/netfilter"
	"vipd/proxier"
)

// deviceAttempts is how many steps are made on a device that others change at
// the same time. Without them it takes three: make, enable, look.
const deviceAttempts = 9

// readLinks reads devices and addresses, unless they are known. Watch keeps what
// is known up to date.
func (p *pass) readLinks(ctx context.Context) error {
	if p.s.linksKnown && !p.how.Fresh {
		return nil
	}
	h, err := p.d.kernel.links.Read(ctx)
	if err != nil {
		return fmt.Errorf("reading the addresses of this host: %w", err)
	}
	p.s.take(h.reading(p.d.device))
	return nil
}

// fits says why a device of our name cannot hold VIPs, or nil. A dummy device
// that somebody else made is taken, but never deleted; a bridge can be in use for
// something else and must be ours.
func (l link) fits() error {
	if l.Kind == kindDummy || l.Kind == kindBridge && l.ours() {
		return nil
	}
	return fmt.Errorf("the device %s is a %s that vipd did not make; remove it (ip link del %s) or choose another name in [vip] device",
		l.Name, l.Kind, l.Name)
}

// ensureDevice makes the device stand, on and without ARP.
func (p *pass) ensureDevice(ctx context.Context) error {
	for range deviceAttempts {
		dev := p.s.device
		var err error
		switch {
		case dev.Index == 0:
			err = p.createDevice(ctx)
		case dev.fits() != nil:
			return dev.fits()
		case dev.enabled():
			return nil
		default:
			err = p.enableDevice(ctx)
		}
		if errors.Is(err, errNoLink) { // gone meanwhile
			p.s.device = link{}
			continue
		}
		if err != nil {
			return fmt.Errorf("device %s: %w", p.d.device, err)
		}
	}
	return fmt.Errorf("device %s changes under our hands; somebody else manages it", p.d.device)
}

// createDevice makes a dummy device, or a bridge where the kernel has none.
func (p *pass) createDevice(ctx context.Context) error {
	kind := kindDummy
	change := func() []proxier.Change {
		return []proxier.Change{{Op: proxier.Add, Object: "device " + p.d.device, Detail: "dummy (a bridge without ports if the kernel has no dummy devices)"}}
	}
	err := p.do(ctx, change, func() error {
		err := p.d.kernel.links.Create(ctx, p.d.device, kind)
		if errors.Is(err, errNoKind) {
			kind = kindBridge
			p.d.log.Warn("the kernel has no dummy devices (CONFIG_DUMMY); a bridge without ports holds the VIPs", "device", p.d.device)
			err = p.d.kernel.links.Create(ctx, p.d.device, kind)
		}
		return err
	})
	if err != nil {
		return err
	}
	if p.plan != nil {
		p.s.device = link{Index: -1, Name: p.d.device, Kind: kind, Alias: alias, Up: true}
		return nil
	}
	p.d.log.Info("device made", "device", p.d.device, "kind", kind)
	return p.rereadLinks(ctx)
}

func (p *pass) enableDevice(ctx context.Context) error {
	err := p.do(ctx, func() []proxier.Change {
		return []proxier.Change{{Op: proxier.Add, Object: "device " + p.d.device, Detail: "up, without ARP"}}
	}, func() error { return p.d.kernel.links.Enable(ctx, p.s.device.Index) })
	if err != nil {
		return err
	}
	if p.plan != nil {
		p.s.device.Up, p.s.device.ARP = true, false
		return nil
	}
	return p.rereadLinks(ctx)
}

// rereadLinks reads anew after a change of the device, for addresses come and go
// with it.
func (p *pass) rereadLinks(ctx context.Context) error {
	p.s.linksKnown = false
	return p.readLinks(ctx)
}

// addAddresses puts the missing VIPs of a family on the device. If the device
// went meanwhile, it is made again, once.
func (p *pass) addAddresses(ctx context.Context, f *family) (map[netip.Addr]error, error) {
	refused, err := p.tryAddAddresses(ctx, f)
	if !errors.Is(err, errNoLink) {
		return refused, err
	}
	p.d.log.Warn("the device went while VIPs were put up; it is made again", "device", p.d.device)
	if err := p.rereadLinks(ctx); err != nil {
		return nil, err
	}
	if err := p.ensureDevice(ctx); err != nil {
		return nil, err
	}
	return p.tryAddAddresses(ctx, f)
}

func (p *pass) tryAddAddresses(ctx context.Context, f *family) (refused map[netip.Addr]error, err error) {
	addrs := slices.DeleteFunc(f.addrs.missing(), func(a netip.Addr) bool {
		return !f.sets[setVIP].held(netfilter.Entry{Addr: a}) // the set has no room for it
	})
	if len(addrs) == 0 {
		return nil, nil
	}
	if err := p.clearMisshapen(ctx, addrs); err != nil {
		return nil, err
	}
	err = p.do(ctx, func() []proxier.Change { return p.addressChanges(proxier.Add, addrs) }, func() (err error) {
		refused, err = p.d.kernel.links.Add(ctx, p.s.device.Index, addrs)
		return err
	})
	if err != nil {
		p.s.linksKnown = false
		return refused, fmt.Errorf("putting VIPs on %s: %w", p.d.device, err)
	}
	var up []netip.Addr
	for _, a := range addrs {
		if _, bad := refused[a]; !bad {
			f.addrs.added(a)
			up = append(up, a)
			delete(p.s.misshapen, a)
		}
	}
	p.noteOpened(slices.Values(up))
	p.report("VIPs up", addrs)
	return refused, nil
}

// clearMisshapen takes wanted IPv4 addresses off the device that stand there in
// another shape, as the kernel has an address once. Their packets are guarded. An
// IPv6 address is reshaped in place.
func (p *pass) clearMisshapen(ctx context.Context, wanted []netip.Addr) error {
	var wrong []netip.Addr
	for _, a := range wanted {
		if _, found := p.s.misshapen[a]; found && a.Is4() {
			wrong = append(wrong, a)
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return p.do(ctx, func() []proxier.Change { return nil }, func() error {
		return p.d.kernel.links.Delete(ctx, p.s.device.Index, wrong)
	})
}

// deleteAddresses takes the VIPs of a family off the device that nobody wants.
func (p *pass) deleteAddresses(ctx context.Context, f *family) error {
	addrs := f.addrs.surplus()
	if len(addrs) == 0 {
		return nil
	}
	err := p.do(ctx, func() []proxier.Change { return p.addressChanges(proxier.Remove, addrs) }, func() error {
		return p.d.kernel.links.Delete(ctx, p.s.device.Index, addrs)
	})
	if err != nil {
		p.s.linksKnown = false
		return fmt.Errorf("taking VIPs off %s: %w", p.d.device, err)
	}
	for _, a := range addrs {
		f.addrs.removed(a)
	}
	p.report("VIPs down", addrs)
	return nil
}

func (p *pass) addressChanges(op proxier.Op, addrs []netip.Addr) []proxier.Change {
	changes := make([]proxier.Change, len(addrs))
	for i, a := range addrs {
		changes[i] = proxier.Change{Op: op, Object: "VIP " + a.String(), Detail: "address " + spell(a) + " dev " + p.d.device}
	}
	return changes
}

// spell writes a VIP as ip-address(8) takes it.
func spell(a netip.Addr) string {
	if a.Is4() {
		return a.String() + "/32 scope host"
	}
	return a.String() + "/128 nodad preferred_lft 0"
}

// report logs a change of VIPs, naming the first ones.
func (p *pass) report(what string, addrs []netip.Addr) {
	if p.plan != nil {
		return
	}
	names := make([]string, 0, 5)
	for _, a := range addrs[:min(len(addrs), cap(names))] {
		names = append(names, a.String())
	}
	p.d.log.Info(what, "count", len(addrs), "first", strings.Join(names, " "))
}

// pruneDevices removes devices of ours that no VIP needs: all of them with the
// last VIP, and one that stood under another name as soon as ours stands. A
// device with addresses of somebody else stays.
func (p *pass) pruneDevices(ctx context.Context) error {
	removed := false
	needed := p.s.wanted() || p.s.families[0].addrs.holds+p.s.families[1].addrs.holds > 0
	for _, l := range p.s.host.links {
		if !l.ours() || l.Name == p.d.device && needed {
			continue
		}
		if a, found := p.s.host.foreignOn(l.Index); found {
			p.d.log.Debug("device stays: an address on it is not vipd's", "device", l.Name, "address", a.Prefix)
			continue
		}
		err := p.do(ctx, func() []proxier.Change {
			return []proxier.Change{{Op: proxier.Remove, Object: "device " + l.Name, Detail: l.Kind}}
		}, func() error { return p.d.kernel.links.Remove(ctx, l.Index) })
		if err != nil {
			return fmt.Errorf("removing the device %s: %w", l.Name, err)
		}
		if p.plan == nil {
			p.d.log.Info("device removed", "device", l.Name)
			removed = true
		}
	}
	if removed {
		return p.rereadLinks(ctx)
	}
	return nil
}

// foreignOn returns an address on a device that is neither of our shape nor made
// by the kernel itself.
func (h host) foreignOn(index int) (address, bool) {
	for a := range h.on(index) {
		if !a.shaped() && !a.Prefix.Addr().IsLinkLocalUnicast() {
			return a, true
		}
	}
	return address{}, false
}
