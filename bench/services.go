package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"vipd/lb"
)

// The addresses of the benchmark. VIPs stand one after the other, as an address
// plan hands them out. Every service has backends of its own, so that nothing is
// cheaper here than in production for being shared; the host "backend" answers at
// all of these addresses.
var (
	vipNet     = netip.MustParsePrefix("10.200.0.0/16")
	backendNet = netip.MustParsePrefix("10.64.0.0/10")
)

const (
	backendsPerService = 10
	servicePort        = 80
	backendPort        = 8080 // accepts and hangs up
	tellPort           = 8081 // says at which of its addresses it was reached
	maxServices        = 65000
	spare              = 1 << 20 // number of the first backend that no service begins with
)

// vipOf returns the VIP of service i.
func vipOf(i int) netip.Addr { return nth(vipNet, i+1) }

// nth returns the address of that number in a network.
func nth(net netip.Prefix, i int) netip.Addr {
	base := binary.BigEndian.Uint32(net.Addr().AsSlice())
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, base+uint32(i)))) //nolint:gosec // numbers of addresses of the benchmark are small
}

// newSpec returns service i as a source states it.
func newSpec(i int) *lb.Spec {
	s := &lb.Spec{
		Key:        lb.Key{Addr: vipOf(i), Port: servicePort, Protocol: lb.TCP},
		Name:       fmt.Sprintf("bench/service-%05d", i),
		Scheduler:  lb.WRR,
		Masquerade: lb.MasqueradeAlways,
	}
	for j := range backendsPerService {
		s.Backends = append(s.Backends, backend(i*backendsPerService+j, backendPort))
	}
	return s
}

func backend(number int, port uint16) lb.BackendSpec {
	return lb.BackendSpec{Addr: netip.AddrPortFrom(nth(backendNet, number), port), Weight: 1, State: lb.Active}
}

// catalog is what a source knows: services that can be changed. A list that it
// returned stays as it was.
type catalog struct {
	services []*lb.Spec // sorted by key
	next     int        // the number of the next fresh backend
}

func newCatalog(n int) *catalog {
	c := &catalog{next: spare}
	for i := range n {
		c.services = append(c.services, newSpec(i))
	}
	return c
}

// again returns the services, equal in value to what they were, and like the answer
// of a store that was asked again: nothing is the same pointer.
func (c *catalog) again() []*lb.Spec {
	list := make([]*lb.Spec, len(c.services))
	for i, s := range c.services {
		twin := *s
		twin.Backends = slices.Clone(s.Backends)
		list[i] = &twin
	}
	c.services = list
	return list
}

// alter makes a change of a kind and returns all services; at tells which service.
func (c *catalog) alter(kind string, at int) []*lb.Spec {
	i := at * 7919 % len(c.services)
	switch kind {
	case kindAdd:
		c.add()
	case kindRemove:
		c.remove()
	case kindNone:
		return c.again()
	case kindGrow:
		c.edit(i, func(s *lb.Spec) { s.Backends = append(s.Backends, c.fresh(s)) })
	case kindWeigh:
		c.edit(i, func(s *lb.Spec) { s.Backends[len(s.Backends)/2].Weight++ })
	default:
		c.replace(i)
	}
	return c.services
}

// replace gives service i a backend that was never seen in place of its first one.
func (c *catalog) replace(i int) *lb.Spec {
	return c.edit(i, func(s *lb.Spec) { s.Backends[0] = c.fresh(s) })
}

// fresh returns a backend for a service that was never seen.
func (c *catalog) fresh(s *lb.Spec) lb.BackendSpec {
	c.next++
	return backend(c.next-1, s.Backends[0].Addr.Port())
}

// edit changes the backends of a copy of service i, and puts it in its place.
func (c *catalog) edit(i int, change func(*lb.Spec)) *lb.Spec {
	s := *c.services[i]
	s.Backends = slices.Clone(s.Backends)
	change(&s)
	s.Normalize()
	c.put(i, &s)
	return &s
}

// put puts s in the place of service i.
func (c *catalog) put(i int, s *lb.Spec) {
	c.services = slices.Clone(c.services)
	c.services[i] = s
}

// add appends the service of the next number and returns it.
func (c *catalog) add() *lb.Spec {
	s := newSpec(len(c.services))
	c.services = append(slices.Clone(c.services), s)
	return s
}

// remove takes the last service away and returns it.
func (c *catalog) remove() *lb.Spec {
	last := len(c.services) - 1
	s := c.services[last]
	c.services = slices.Clone(c.services[:last])
	return s
}
