package iptables

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// spreadSize is how many backends one chain chooses from; more are divided over
// spreadFanout chains a level, or over as many as keep it to two levels. With
// affinity, whose chains of the backends are a level, it is one level.
const (
	spreadSize   = 16
	spreadFanout = 8
)

// maxAffinity is how many backends a service with affinity may have: so many slots
// fit into the names of the chains, twice, for while they all change.
const maxAffinity = 4000

// validate refuses what cannot be rendered, or would serve wrongly.
func validate(s *lb.Service) error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if k := s.Key; !k.Addr.IsValid() || k.Addr.Zone() != "" || k.Addr.Is4In6() {
		complain("VIP %q is no plain IPv4 or IPv6 address", k.Addr)
	} else if k.Port == 0 {
		complain("port 0 is not a port; use 1 to 65535")
	}
	if p := s.Key.Protocol; p != lb.TCP && p != lb.UDP && p != lb.SCTP {
		complain("%s is not served by iptables mode; use tcp, udp or sctp", p)
	}
	if s.Forward != lb.ForwardNAT {
		complain("forward %q is not served by iptables mode; use nat, or mode ipvs", s.Forward)
	}
	if s.Scheduler != lb.RR && s.Scheduler != lb.WRR {
		complain("scheduler %q is not served by iptables mode; use rr or wrr", s.Scheduler)
	}
	if t := s.Affinity; t < 0 || t%time.Second != 0 || t > netfilter.MaxTimeout*time.Second {
		complain("affinity of %s: use whole seconds, at most %d", t, netfilter.MaxTimeout)
	}
	if s.Affinity > 0 && len(s.Backends) > maxAffinity {
		complain("%d backends with affinity; use at most %d", len(s.Backends), maxAffinity)
	}
	for i, b := range s.Backends {
		a := b.Addr.Addr()
		switch {
		case !a.IsValid() || a.Zone() != "" || a.BitLen() != s.Key.Addr.BitLen() || a.Is4In6():
			complain("backend %q is no plain address of the VIP's family", b.Addr)
		case b.Addr.Port() == 0:
			complain("backend %s has port 0; use 1 to 65535", a)
		case i > 0 && s.Backends[i-1].Addr.Compare(b.Addr) >= 0:
			complain("backend %s is out of order or stands twice", b.Addr)
		}
	}
	return errors.Join(errs...)
}

// serviceChains returns the chains of a service, its own first. A service without
// a usable backend has none: nothing is translated, and the guard refuses. slots
// are those of the backends of a service with affinity.
func serviceChains(s *lb.Service, slots slots) ([]netfilter.Chain, error) {
	if err := validate(s); err != nil {
		return nil, err
	}
	backends := s.Usable()
	if len(backends) == 0 {
		return nil, nil
	}
	sp := newSpread(s, len(backends))
	var st *sticky
	if s.Affinity > 0 {
		st = newSticky(s, slots)
		sp.target = st.target
	}
	sp.add(serviceChain(s.Key), "", backends)
	sp.chains[0].Note = s.Key.String() // a restart knows by it whose the chain is
	if st != nil {
		heads, groups := st.heads()
		sp.chains[0].Rules = slices.Concat(heads, sp.chains[0].Rules)
		sp.chains = slices.Concat(sp.chains, groups, st.backends())
	}
	for _, c := range sp.chains {
		for _, rule := range c.Rules {
			if err := checkRule(rule); err != nil {
				return nil, err
			}
		}
	}
	return sp.chains, nil
}

// spread makes the chains over which the backends of a service are divided. Their
// names tell the place, not the content: they are always written in one commit.
type spread struct {
	service *lb.Service
	size    int // rules of a chain that divides no further
	width   int // parts of one that does
	target  func(netip.AddrPort) string
	chains  []netfilter.Chain
}

func newSpread(s *lb.Service, backends int) *spread {
	sp := &spread{service: s, size: spreadSize, width: spreadFanout, target: sendTo}
	if s.Affinity > 0 {
		sp.size = max(spreadSize, int(math.Ceil(math.Sqrt(float64(backends)))))
		sp.width = (backends + sp.size - 1) / sp.size
	}
	for sp.size*sp.width*sp.width < backends {
		sp.width++
	}
	return sp
}

// add makes the chain of that name, which chooses one of the backends.
func (sp *spread) add(name, path string, backends []lb.Backend) {
	at := len(sp.chains)
	sp.chains = append(sp.chains, netfilter.Chain{Name: name})
	choices := sp.choices(path, backends)
	rules := make([]string, 0, len(choices))
	left := weightOf(backends)
	for i, c := range choices {
		words := []string{matchProtocol(sp.service.Key.Protocol)}
		switch {
		case i == len(choices)-1: // the rest, exactly
		case sp.service.Scheduler == lb.RR:
			words = append(words, matchEvery(left/c.weight))
		default:
			words = append(words, matchShare(c.weight, left))
		}
		left -= c.weight
		rules = append(rules, ruleOf(append(words, c.target)...))
	}
	sp.chains[at].Rules = rules
}

// choice is a rule of a chain: a backend, or a chain for several of them.
type choice struct {
	target string
	weight uint64
}

// choices divides backends among the rules of one chain. In turn, one packet of n
// can be taken, not two of n: so for rr all parts are of one size, and as many
// backends as do not divide evenly get a rule of their own, first.
func (sp *spread) choices(path string, backends []lb.Backend) (all []choice) {
	parts := 0
	if len(backends) > sp.size {
		parts = min(sp.width, (len(backends)+sp.size-1)/sp.size)
	}
	single := len(backends)
	if parts > 0 && sp.service.Scheduler == lb.RR {
		single = len(backends) % parts
	} else if parts > 0 {
		single = 0
	}
	for _, b := range backends[:single] {
		all = append(all, choice{sp.target(b.Addr), uint64(b.Weight)})
	}
	backends = backends[single:]
	for i := range parts {
		n := len(backends) / (parts - i)
		below := path + "/" + strconv.Itoa(i)
		name := hashName(prefixSpread, sp.service.Key.String()+below)
		sp.add(name, below, backends[:n])
		all = append(all, choice{goTo(name), weightOf(backends[:n])})
		backends = backends[n:]
	}
	return all
}

func weightOf(backends []lb.Backend) (sum uint64) {
	for _, b := range backends {
		sum += uint64(b.Weight)
	}
	return sum
}
