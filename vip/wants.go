package vip

import (
	"iter"
	"net/netip"
	"slices"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// The sets of a family.
const (
	setVIP = iota
	setMasq
	setAuto
	setHair
	setAllow
	setACL
	setBE
	setServed
	setOpen
	setDirect
)

var setKinds = [...]struct {
	name string
	kind netfilter.SetType
}{
	setVIP:    {netfilter.SetVIP, netfilter.HashIP},
	setMasq:   {netfilter.SetMasq, netfilter.HashIPPort},
	setAuto:   {netfilter.SetAuto, netfilter.HashIPPortNet},
	setHair:   {netfilter.SetHair, netfilter.HashIPPortIP},
	setAllow:  {netfilter.SetAllow, netfilter.HashIPPortNet},
	setACL:    {netfilter.SetACL, netfilter.HashIPPort},
	setBE:     {netfilter.SetBE, netfilter.HashIPPort},
	setServed: {netfilter.SetServed, netfilter.HashIPPort},
	setOpen:   {netfilter.SetOpen, netfilter.HashIPPort},
	setDirect: {netfilter.SetDirect, netfilter.HashIPPort},
}

// helpers are the sets that must be right before the rules of a proxier are, in
// the order in which they are filled: who may come in before the others are kept
// out. They are emptied the other way round, when the rules have gone.
var helpers = [...]int{setMasq, setAuto, setHair, setBE, setAllow, setACL}

// lets are the sets by which the guard lets a service have its packets: filled when
// the service can take them, emptied before it no longer can.
var lets = [...]int{setServed, setOpen, setDirect}

// ofInput reports whether a set is there only where a mode takes packets at INPUT.
func ofInput(i int) bool { return i == setOpen || i == setDirect }

// ofService reports whether the entries of a set belong to the one service whose
// VIP:port they name.
func ofService(i int) bool { return i != setVIP && i != setHair && i != setBE }

// count counts all that a service wants, once more or once less.
func (s *state) count(svc *lb.Service, by int) {
	f := s.family(svc.Key.Addr)
	f.addrs.count(svc.Key.Addr, by)
	f.sets[setVIP].count(netfilter.Entry{Addr: svc.Key.Addr}, by)
	self := netfilter.Entry{Addr: svc.Key.Addr, Protocol: svc.Key.Protocol, Port: svc.Key.Port}
	if len(svc.Clients) > 0 {
		f.sets[setACL].count(self, by)
	}
	countAll(f.sets[setAllow], allowEntries(svc), by)
	s.countLets(svc, self, by)
	if svc.Forward != lb.ForwardNAT {
		return // its backends answer past this host: nothing is masqueraded, nothing comes back
	}
	switch svc.Masquerade {
	case lb.MasqueradeAlways:
		f.sets[setMasq].count(self, by)
	case lb.MasqueradeAuto:
		s.autos += by
	}
	countAll(f.sets[setAuto], autoEntries(svc, s.prefixes), by)
	countAll(f.sets[setHair], hairEntries(svc), by)
	if s.invalid {
		countAll(f.sets[setBE], backendEntries(svc), by)
	}
}

// countLets counts in which way the guard is to let a service have its packets. A
// service of a mode that this host cannot have is let nothing.
func (s *state) countLets(svc *lb.Service, self netfilter.Entry, by int) {
	f, usable := s.family(svc.Key.Addr), slices.ContainsFunc(svc.Backends, lb.Backend.Usable)
	switch {
	case svc.Mode != lb.IPVS:
		if usable {
			f.sets[setServed].count(self, by)
		}
	case s.input:
		if usable {
			f.sets[setOpen].count(self, by)
		}
		if svc.Forward != lb.ForwardNAT && len(svc.Backends) > 0 {
			f.sets[setDirect].count(self, by)
		}
	}
}

func countAll(m members, entries iter.Seq[netfilter.Entry], by int) {
	for e := range entries {
		m.count(e, by)
	}
}

// allowEntries yields the VIP:port of a service with each range of clients that it
// takes. A range of the other family lets nobody in.
func allowEntries(svc *lb.Service) iter.Seq[netfilter.Entry] {
	return func(yield func(netfilter.Entry) bool) {
		for _, p := range svc.Clients {
			if p.Addr().Is4() != svc.Key.Addr.Is4() {
				continue
			}
			for _, part := range netfilter.SplitNet(p) {
				if !yield(netfilter.Entry{Addr: svc.Key.Addr, Protocol: svc.Key.Protocol, Port: svc.Key.Port, Net: part}) {
					return
				}
			}
		}
	}
}

// backendEntries yields the backends of a service, draining ones too. Services
// share these entries. The protocol must be one in which a packet can be invalid
// and end a connection.
func backendEntries(svc *lb.Service) iter.Seq[netfilter.Entry] {
	return func(yield func(netfilter.Entry) bool) {
		if svc.Key.Protocol == lb.UDP {
			return
		}
		for _, b := range svc.Backends {
			if !yield(netfilter.Entry{Addr: b.Addr.Addr(), Protocol: svc.Key.Protocol, Port: b.Addr.Port()}) {
				return
			}
		}
	}
}

// autoEntries yields, for a service with masquerade auto, its VIP:port with each
// connected subnet that holds one of its backends: clients there would get the
// backend's answer directly, past the translation.
func autoEntries(svc *lb.Service, prefixes []netip.Prefix) iter.Seq[netfilter.Entry] {
	return func(yield func(netfilter.Entry) bool) {
		if svc.Masquerade != lb.MasqueradeAuto || svc.Forward != lb.ForwardNAT {
			return
		}
		for _, p := range prefixes {
			if !slices.ContainsFunc(svc.Backends, func(b lb.Backend) bool { return p.Contains(b.Addr.Addr()) }) {
				continue
			}
			for _, part := range netfilter.SplitNet(p) {
				if !yield(netfilter.Entry{Addr: svc.Key.Addr, Protocol: svc.Key.Protocol, Port: svc.Key.Port, Net: part}) {
					return
				}
			}
		}
	}
}

// hairEntries yields, for a service that is not always masqueraded, each backend
// as the client of itself. Services share these entries.
func hairEntries(svc *lb.Service) iter.Seq[netfilter.Entry] {
	return func(yield func(netfilter.Entry) bool) {
		if svc.Masquerade == lb.MasqueradeAlways {
			return
		}
		for _, b := range svc.Backends {
			a := b.Addr.Addr()
			e := netfilter.Entry{Addr: a, Protocol: svc.Key.Protocol, Port: b.Addr.Port(), Net: netip.PrefixFrom(a, a.BitLen())}
			if !yield(e) {
				return
			}
		}
	}
}
