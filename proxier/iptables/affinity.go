package iptables

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// Affinity. A set holds (client, protocol and port, VIP): the clients whose backend
// is in some slot. Every backend of a service has a slot of its own; services share
// the sets, for their entries differ. So there are as many sets as the greatest
// service has backends, and not one for every backend of every service, and a
// change of a service changes no set.
//
//   - The chain of a service asks the set of each usable backend, by slot, before it
//     chooses; both go on to the chain of the backend, which puts the client into
//     its set, for as long as the service says, and translates.
//   - First of all it takes the client out of the sets of the slots that have no
//     usable backend; mostly there is none. So one that had to move does not move
//     back when its backend returns, or when another one gets the slot.
//   - A backend keeps its slot as long as it is listed. What is free is the lowest
//     slot that neither the version that stands nor the next one uses. The name of
//     the chain of a backend tells its slot: so a restart finds it.
//   - Slots from 16 on are asked in groups of 16, and only if the client is in the
//     set of the group: a packet looks into some N/16 sets and not into N.
//
// Sets are made before the first chain that names them, are never emptied, and go
// with the last service that has affinity.
const groupSize = 16

// slot is the place of a backend of a service with affinity.
type slot struct {
	n      int
	addr   netip.AddrPort
	usable bool
}

// slots are those of one service, by number.
type slots []slot

// of returns the number of the slot of a backend, or -1.
func (all slots) of(a netip.AddrPort) int {
	for _, s := range all {
		if s.addr == a {
			return s.n
		}
	}
	return -1
}

// assign gives every backend of a service a slot: the one it has in known or in
// found, the hashes in the names of the chains that stand, or the lowest that is
// free in both.
func assign(s *lb.Service, known slots, found map[string]int) slots {
	if s.Affinity == 0 {
		return nil
	}
	taken := map[int]bool{}
	for _, k := range known {
		taken[k.n] = true
	}
	all := make(slots, len(s.Backends))
	for i, b := range s.Backends {
		all[i] = slot{-1, b.Addr, b.Usable()}
		if n := known.of(b.Addr); n >= 0 {
			all[i].n = n
		} else if n, stands := found[backendHash(s.Key, b.Addr)]; stands && !taken[n] {
			all[i].n, taken[n] = n, true
		}
	}
	next := 0
	for i := range all {
		for ; all[i].n < 0; next++ {
			if !taken[next] {
				all[i].n = next
			}
		}
	}
	slices.SortFunc(all, func(a, b slot) int { return a.n - b.n })
	return all
}

// join returns all and the slots of others that it has not.
func (all slots) join(others slots) slots {
	joined := slices.Clone(all)
	for _, s := range others {
		if all.of(s.addr) < 0 {
			joined = append(joined, s)
		}
	}
	return joined
}

// sticky renders the affinity of one service.
type sticky struct {
	service *lb.Service
	slots   slots
	family  netfilter.Family
	shift   int
}

func newSticky(s *lb.Service, all slots) *sticky {
	sum := sha256.Sum256([]byte(s.Key.String()))
	return &sticky{s, all, netfilter.FamilyOf(s.Key.Addr), int(sum[0]) % groupSize}
}

// slotSet is the name of the set of a slot. Services begin with different sets of
// a group, or those of services with two backends would all be in the same two.
func (st *sticky) slotSet(n int) string {
	return clientSet(st.family, strconv.Itoa(n^st.shift))
}

func (st *sticky) groupSet(group int) string {
	return clientSet(st.family, "g"+strconv.Itoa(group))
}

// heads are the rules with which the chain of the service begins, and the chains
// of the groups to which they jump.
func (st *sticky) heads() (rules []string, groups []netfilter.Chain) {
	forget, ask := st.group(0)
	for g := 1; g <= st.last()/groupSize; g++ {
		name := hashName(prefixGroup, st.service.Key.String()+"/"+strconv.Itoa(g))
		drop, match := st.group(g)
		groups = append(groups, netfilter.Chain{Name: name, Rules: slices.Concat(drop, match)})
		ask = append(ask, ruleOf(matchClient(st.groupSet(g)), jumpTo(name)))
	}
	return slices.Concat(forget, ask), groups
}

// last is the greatest slot.
func (st *sticky) last() int { return st.slots[len(st.slots)-1].n }

// group returns the rules that take a client out of the sets of those slots of a
// group which have no usable backend, and those that ask the sets of the others.
func (st *sticky) group(g int) (forget, ask []string) {
	for n := g * groupSize; n <= min(st.last(), g*groupSize+groupSize-1); n++ {
		i, found := slices.BinarySearchFunc(st.slots, n, func(s slot, n int) int { return s.n - n })
		if found && st.slots[i].usable {
			ask = append(ask, ruleOf(matchClient(st.slotSet(n)), goTo(st.backendChain(st.slots[i]))))
		} else {
			forget = append(forget, dropClient(st.slotSet(n)))
		}
	}
	return forget, ask
}

func (st *sticky) backendChain(s slot) string { return backendChain(s.n, st.service.Key, s.addr) }

// target is where the chain of the service sends a new client of a backend.
func (st *sticky) target(a netip.AddrPort) string {
	return goTo(backendChain(st.slots.of(a), st.service.Key, a))
}

// backends are the chains of the usable backends.
func (st *sticky) backends() (chains []netfilter.Chain) {
	seconds := uint64(st.service.Affinity.Seconds())
	for _, s := range st.slots {
		if !s.usable {
			continue
		}
		c := netfilter.Chain{Name: st.backendChain(s)}
		if g := s.n / groupSize; g > 0 {
			c.Rules = append(c.Rules, keepClient(st.groupSet(g), seconds))
		}
		c.Rules = append(c.Rules, keepClient(st.slotSet(s.n), seconds),
			ruleOf(matchProtocol(st.service.Key.Protocol), sendTo(s.addr)))
		chains = append(chains, c)
	}
	return chains
}

// setSize is the name of a set of clients and the buckets of its hash.
type setSize struct {
	name    string
	buckets uint32
}

// The sets of the first group of slots, which most services share, hold 250,000
// clients each, with room for many services of 60,000; higher slots share the
// clients of their services among many.
const (
	bucketsMany = 1 << 16 // 512 KB
	bucketsSome = 1 << 14 // 128 KB
	bucketsFew  = 1 << 11 // 16 KB
)

// sets are those that the chains of the service name.
func (st *sticky) sets() (all []setSize) {
	for n := range st.last() + 1 {
		size := uint32(bucketsFew)
		switch {
		case n < groupSize:
			size = bucketsMany
		case n < 4*groupSize:
			size = bucketsSome
		}
		all = append(all, setSize{st.slotSet(n), size})
	}
	for g := 1; g <= st.last()/groupSize; g++ {
		size := uint32(bucketsSome)
		if g < 4 {
			size = bucketsMany
		}
		all = append(all, setSize{st.groupSet(g), size})
	}
	return all
}

// clientSet returns the name of a set of clients.
func clientSet(f netfilter.Family, number string) string {
	return netfilter.SetName(netfilter.SetClients, f) + "-" + number
}

// isClientSet tells the sets of clients of a family from those of package vip.
func isClientSet(name string, f netfilter.Family) bool {
	return strings.HasPrefix(name, clientSet(f, ""))
}

// matchClient matches the packets of the clients in a set.
func matchClient(set string) string { return "-m set --match-set " + set + " " + clientDims }

// keepClient puts the client into a set, for some seconds from now.
func keepClient(set string, seconds uint64) string {
	return fmt.Sprintf("-j SET --add-set %s %s --exist --timeout %d", set, clientDims, seconds)
}

// dropClient takes the client out of a set.
func dropClient(set string) string { return "-j SET --del-set " + set + " " + clientDims }

// clientDims are the client, the protocol and port of the VIP, and the VIP.
const clientDims = "src,dst,dst"
