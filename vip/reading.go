package vip

import (
	"maps"
	"net/netip"
	"slices"
)

// reading is what the devices and addresses of this host mean for the door.
type reading struct {
	host      host // without the VIPs that stand as they should: there may be thousands
	device    link // the zero link: there is none
	reserved  map[netip.Addr]error
	prefixes  []netip.Prefix
	uplinks   []string // devices with IPv4 addresses of the host's own, sorted
	vips      [2]map[netip.Addr]struct{}
	misshapen map[netip.Addr]address
}

// reading makes sense of what was read.
func (h host) reading(device string) reading {
	r := reading{reserved: h.reserved(device), prefixes: h.connected(device), misshapen: map[netip.Addr]address{}}
	r.device, _ = h.named(device)
	for i := range r.vips {
		r.vips[i] = map[netip.Addr]struct{}{}
	}
	r.host.links = h.links
	usable := r.device.Index != 0 && r.device.fits() == nil
	for _, a := range h.addrs {
		ip := a.Prefix.Addr()
		switch ours := usable && a.Link == r.device.Index; {
		case ours && a.shaped() && ip.Is4():
			r.vips[0][ip] = struct{}{}
			continue
		case ours && a.shaped():
			r.vips[1][ip] = struct{}{}
			continue
		case ours && a.single():
			r.misshapen[ip] = a
		}
		r.host.addrs = append(r.host.addrs, a)
	}
	addrs, names := r.host.others(device)
	for _, a := range addrs {
		if ip := a.Prefix.Addr(); ip.Is4() && !ip.IsLoopback() {
			r.uplinks = append(r.uplinks, names[a.Link])
		}
	}
	slices.Sort(r.uplinks)
	r.uplinks = slices.Compact(r.uplinks)
	return r
}

// take takes over a reading.
func (s *state) take(r reading) {
	s.host, s.device, s.reserved, s.uplinks, s.misshapen = r.host, r.device, r.reserved, r.uplinks, r.misshapen
	s.linksKnown = true
	s.connect(r.prefixes)
	for i, f := range s.families {
		f.addrs.read(maps.Keys(r.vips[i]))
	}
}
