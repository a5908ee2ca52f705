// Package netfilter is the line to the kernel's packet filter that every mode
// shares: iptables-restore, ipset and conntrack. It knows tables, sets and
// entries, and nothing of services beyond their addresses.
package netfilter

import (
	"net/netip"
	"strings"
)

// Family is an address family. Tables, sets and tools exist once for each.
type Family uint8

// The address families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families lists both, in the order in which they are worked on.
var Families = [...]Family{IPv4, IPv6}

// index returns the place of the family in Families.
func (f Family) index() int {
	if f == IPv4 {
		return 0
	}
	return 1
}

// FamilyOf returns the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// ChainPrefix and SetPrefix begin the name of every chain and set of ours. What
// bears them belongs to vipd and may be removed by `vipd cleanup`; what does not
// is never touched.
const (
	ChainPrefix = "VIPD-"
	SetPrefix   = "vipd-"
)

// DefaultMark is the bit that marks packets to be masqueraded, and, as a
// connmark, the connections that a VIP has taken. kube-proxy uses 0x4000.
const DefaultMark = 0x2000

// The names of the sets, without the family. See SetName.
const (
	SetVIP    = "vip"    // hash:ip            every VIP in use
	SetMasq   = "masq"   // hash:ip,port       VIP:ports with masquerade always
	SetAuto   = "auto"   // hash:ip,port,net   VIP:ports with masquerade auto, and the clients it is for
	SetHair   = "hair"   // hash:ip,port,ip    backend, its port, backend: a backend that calls itself
	SetACL    = "acl"    // hash:ip,port       VIP:ports that take only some clients
	SetAllow  = "allow"  // hash:ip,port,net   VIP:ports with the clients that they take
	SetBE     = "be"     // hash:ip,port       backends: packets from there belong to flows of ours
	SetServed = "served" // hash:ip,port       VIP:ports that have a backend to translate to
	SetOpen   = "open"   // hash:ip,port       VIP:ports with a backend, whose mode takes packets at INPUT
	SetDirect = "direct" // hash:ip,port       VIP:ports whose backends answer past this host (dr, tunnel)

	// SetClients are many sets, each with a number behind the family: the clients of
	// session affinity, which packets add and which expire.
	SetClients = "aff" // hash:ip,port,ip
)

// setSpare is the name that a set has until it takes the place of another one, and
// that one afterwards, until it is gone.
const setSpare = SetPrefix + "spare"

// isClients reports whether a set is one of SetClients.
func isClients(name string) bool { return strings.HasPrefix(name, SetPrefix+SetClients) }

// SetName returns the name of a set in the kernel: "vipd-vip4".
func SetName(set string, f Family) string {
	if f == IPv4 {
		return SetPrefix + set + "4"
	}
	return SetPrefix + set + "6"
}
