package config

import (
	"net/netip"
	"slices"

	"vipd/lb"
)

// Limits of the whole configuration.
const (
	maxServices      = 100_000   // VIP:port:protocols
	maxVIPs          = 65_536    // addresses: the size of an ipset by default
	maxBackendsTotal = 2_000_000 // over all VIP:ports: some 100 MB
)

// finish compares the services with each other and makes the specs of them.
func (p *parser) finish() {
	if p.mainFile == "" {
		p.problems.add(0, Error{File: "vipd.toml", Line: 1, Column: 1, Message: "there is no file; name one"})
		return
	}
	if !p.checkSizes() {
		return
	}
	p.checkNames()
	p.checkKeysTaken()
	p.checkOwnBackends()
	first := map[netip.AddrPort]node{}
	for _, e := range p.entries {
		p.checkFamilies(e)
		e.checkForwardPorts()
		p.checkRanges(e)
		e.checkDuplicates(first)
		if clear(first); len(e.backends)*len(e.ports) > 100 {
			first = map[netip.AddrPort]node{} // to clear a big one each time would cost more
		}
	}
	if p.problems.err() != nil {
		return
	}
	for _, e := range p.entries {
		p.config.Services = append(p.config.Services, e.specs()...)
	}
	slices.SortFunc(p.config.Services, func(a, b *lb.Spec) int { return a.Key.Compare(b.Key) })
}

// checkSizes holds the limits before anything is multiplied out.
func (p *parser) checkSizes() bool {
	services, backends, ranges := 0, 0, 0
	for _, e := range p.entries {
		n := len(e.vips) * len(e.ports)
		services += n
		backends += n * len(e.backends)
		for _, vip := range e.vips {
			ranges += len(e.ports) * len(e.clients.allowed(vip.v))
		}
		switch {
		case services > maxServices:
			e.at.failKey("with %s there are more than %d services (each VIP and port counts); use fewer", e.title(), maxServices)
			return false
		case ranges > maxRangesTotal:
			e.at.failKey("with %s there are more than %d client ranges (each VIP and port counts); use fewer", e.title(), maxRangesTotal)
			return false
		case backends > maxBackendsTotal:
			e.at.failKey("with %s there are more than %d backends (each VIP and port counts); use fewer", e.title(), maxBackendsTotal)
			return false
		}
	}
	return true
}

func (p *parser) checkNames() {
	first := map[string]*entry{}
	for _, e := range p.entries {
		if e.name == "" {
			continue
		}
		if other := first[e.name]; other != nil {
			n, _ := e.at.field("name")
			at, _ := other.at.field("name")
			n.fail("the name %s is taken by the service at %s; choose another one", quote(e.name), at)
			continue
		}
		first[e.name] = e
	}
}

// checkKeysTaken reports every VIP, port and protocol that two services claim.
func (p *parser) checkKeysTaken() {
	type claim struct {
		by *entry
		at node
	}
	first := map[lb.Key]claim{}
	vips := map[netip.Addr]bool{}
	for _, e := range p.entries {
		for _, vip := range e.vips {
			vips[vip.v] = true
			if len(vips) > maxVIPs {
				vip.at.fail("with this one there are more than %d VIPs; use fewer", maxVIPs)
				return
			}
			for _, port := range e.ports {
				k := lb.Key{Addr: vip.v, Port: port.v, Protocol: e.protocol}
				if other, taken := first[k]; taken {
					vip.at.fail("%s is taken by %s at %s; choose another VIP, port or protocol", k, other.by.title(), other.at)
					continue
				}
				first[k] = claim{e, vip.at}
			}
		}
	}
}

// checkOwnBackends refuses a VIP as a backend, of the same service or of another
// one: packets would go round in the host, or come out nowhere.
func (p *parser) checkOwnBackends() {
	type owner struct {
		by *entry
		at node
	}
	owners := map[netip.Addr]owner{}
	for _, e := range p.entries {
		for _, vip := range e.vips {
			if _, found := owners[vip.v]; !found {
				owners[vip.v] = owner{e, vip.at}
			}
		}
	}
	for _, e := range p.entries {
		for _, b := range e.backends {
			o, found := owners[b.v.addr]
			switch {
			case !found:
			case slices.ContainsFunc(e.vips, func(v placed[netip.Addr]) bool { return v.v == b.v.addr }):
				b.at.fail("%s is its own backend: %s is its VIP; name the real server", e.title(), b.v.addr)
			default:
				b.at.fail("backend %s is a VIP of %s at %s; name the real servers behind it", b.v.addr, o.by.title(), o.at)
			}
		}
	}
}

// checkFamilies reports backends that no VIP can use and VIPs that have no backend:
// a backend serves the VIPs of its own family.
func (p *parser) checkFamilies(e *entry) {
	if !e.whole || len(e.vips) == 0 || len(e.backends) == 0 {
		return
	}
	vipAddr := func(a netip.Addr) netip.Addr { return a }
	backendAddr := func(b backend) netip.Addr { return b.addr }
	for _, b := range e.backends {
		if !has(e.vips, vipAddr, b.v.addr) {
			b.at.fail("backend %s is %s and %s has no VIP of that family; add one or remove the backend", b.v.addr, family(b.v.addr), e.title())
		}
	}
	for _, vip := range e.vips {
		if !has(e.backends, backendAddr, vip.v) {
			p.warn(vip.at, "VIP %s of %s has no %s backend and refuses every connection; add one or remove the VIP", vip.v, e.title(), family(vip.v))
		}
	}
}

// has returns whether a list of addresses has one of the family of a.
func has[T any](list []placed[T], addr func(T) netip.Addr, a netip.Addr) bool {
	for _, l := range list {
		if addr(l.v).Is4() == a.Is4() {
			return true
		}
	}
	return false
}

// family names the family of an address.
func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// checkDuplicates reports the backends that stand twice, also where one names
// the port of the service and the other inherits it. It notes in first, which is
// empty, where each stands.
func (e *entry) checkDuplicates(first map[netip.AddrPort]node) {
	for _, b := range e.backends {
		ports := []uint16{b.v.port}
		if b.v.port == 0 {
			ports = ports[:0]
			for _, port := range e.ports {
				ports = append(ports, port.v)
			}
		}
		for _, port := range ports {
			t := netip.AddrPortFrom(b.v.addr, port)
			if other, twice := first[t]; twice {
				b.at.fail("backend %s stands twice in %s, first at %s; remove one", t, e.title(), other)
				break
			}
			first[t] = b.at
		}
	}
}

// specs returns a Spec for each VIP and port.
func (e *entry) specs() []*lb.Spec {
	inherits := slices.ContainsFunc(e.backends, func(b placed[backend]) bool { return b.v.port == 0 })
	shared := map[bool][]lb.BackendSpec{} // by whether it is IPv4, where all ports have the same backends
	specs := make([]*lb.Spec, 0, len(e.vips)*len(e.ports))
	for _, vip := range e.vips {
		for _, port := range e.ports {
			s := &lb.Spec{
				Key:  lb.Key{Addr: vip.v, Port: port.v, Protocol: e.protocol},
				Name: e.name, Mode: e.mode, Scheduler: e.scheduler, Flags: e.flags,
				Forward: e.forward, Tunnel: e.tunnel, Masquerade: e.masquerade,
				Affinity: e.affinity, Clients: e.clients.allowed(vip.v), DrainTimeout: e.drain,
			}
			if backends, done := shared[vip.v.Is4()]; done {
				s.Backends = backends
			} else {
				s.Backends = e.backendsFor(vip.v, port.v)
				s.Normalize()
				if !inherits {
					shared[vip.v.Is4()] = s.Backends
				}
			}
			specs = append(specs, s)
		}
	}
	return specs
}

// backendsFor returns the backends of a VIP: those of its family.
func (e *entry) backendsFor(vip netip.Addr, port uint16) []lb.BackendSpec {
	n := 0
	for _, b := range e.backends {
		if b.v.addr.Is4() == vip.Is4() {
			n++
		}
	}
	specs := make([]lb.BackendSpec, 0, n)
	for _, b := range e.backends {
		if b.v.addr.Is4() != vip.Is4() {
			continue
		}
		to := b.v.port
		if to == 0 {
			to = port
		}
		specs = append(specs, lb.BackendSpec{Addr: netip.AddrPortFrom(b.v.addr, to), Weight: b.v.weight, State: b.v.state})
	}
	return specs
}
