package vip

import (
	"fmt"
	"net/netip"

	"vipd/lb"
)

// reserved returns the addresses that cannot be VIPs on this host because of
// what the host itself is, each with the reason.
func (h host) reserved(device string) map[netip.Addr]error {
	no := map[netip.Addr]error{}
	addrs, names := h.others(device)
	for _, a := range addrs {
		if last := broadcastOf(a); last.IsValid() {
			no[last] = fmt.Errorf("it is the broadcast address of %s, the subnet of %s; choose another VIP", a.Prefix.Masked(), names[a.Link])
		}
		if first := a.Prefix.Masked().Addr(); hasNetworkAddress(a.Prefix) {
			no[first] = fmt.Errorf("it is the network address of %s, the subnet of %s; choose another VIP", a.Prefix.Masked(), names[a.Link])
		}
		if a.Peer.IsValid() {
			no[a.Peer] = fmt.Errorf("it is the address of the peer of %s; choose another VIP", names[a.Link])
		}
	}
	for _, a := range addrs { // what an address is outweighs what it would be in a subnet
		no[a.Prefix.Addr()] = fmt.Errorf("it is an address of %s on this host, which vipd does not manage; "+
			"take it off %s or choose another VIP", names[a.Link], names[a.Link])
	}
	if dev, found := h.named(device); found {
		for a := range h.on(dev.Index) {
			// IPv6 has an address once on a device, whatever its length; this one is not ours to change.
			if a.Prefix.Addr().Is6() && !a.single() {
				no[a.Prefix.Addr()] = fmt.Errorf("it stands on %s as %s, which vipd did not make; remove it", device, a.Prefix)
			}
		}
	}
	return no
}

// broadcastOf returns the broadcast address of an IPv4 subnet (RFC 3021: a /31
// has none), the one configured if there is one.
func broadcastOf(a address) netip.Addr {
	if a.Broadcast.IsValid() && !a.Broadcast.IsUnspecified() {
		return a.Broadcast
	}
	if !a.Prefix.Addr().Is4() || a.Prefix.Bits() > 30 {
		return netip.Addr{}
	}
	b := a.Prefix.Masked().Addr().As4()
	for i := a.Prefix.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

// hasNetworkAddress reports whether the first address of a subnet is no host's:
// in IPv4 the network's, in IPv6 the subnet-router anycast address (RFC 4291,
// not on a /127: RFC 6164).
func hasNetworkAddress(p netip.Prefix) bool { return p.Bits() < p.Addr().BitLen()-1 }

// refuse returns want without the services that this host must not take, and
// why. A service whose VIP is open already is named too, but stays: it is not
// taken down because its VIP appeared elsewhere as well.
func (s *state) refuse(want lb.Snapshot) (lb.Snapshot, map[lb.Key]error) {
	s.refused = map[netip.Addr]struct{}{}
	if len(s.reserved) == 0 {
		return want, nil
	}
	failed := map[lb.Key]error{}
	edit := want.Edit()
	check := func(svc *lb.Service) {
		reason, found := s.reserved[svc.Key.Addr]
		if !found {
			return
		}
		s.refused[svc.Key.Addr] = struct{}{}
		failed[svc.Key] = fmt.Errorf("VIP %s refused: %w", svc.Key.Addr, reason)
		if !s.family(svc.Key.Addr).addrs.held(svc.Key.Addr) {
			edit.Delete(svc.Key)
		}
	}
	if s.wantsReserved() {
		for svc := range want.All() {
			check(svc)
		}
	} else { // what was wanted before is not concerned
		for _, svc := range want.Diff(s.seen) {
			if svc != nil {
				check(svc)
			}
		}
	}
	return edit.Snapshot(), failed
}

// wantsReserved reports whether a service that was accepted before uses an
// address that is reserved now.
func (s *state) wantsReserved() bool {
	for a := range s.reserved {
		if s.family(a).addrs.wanted(a) {
			return true
		}
	}
	return false
}
