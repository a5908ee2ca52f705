package netfilter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"vipd/lb"
)

// SetType is a type of ipset, in the words of ipset(8).
type SetType string

// The types of the sets of ours. Every dimension of an entry besides those of
// its type stays zero.
const (
	HashIP        SetType = "hash:ip"          // Addr
	HashIPPort    SetType = "hash:ip,port"     // Addr, Protocol, Port
	HashIPPortNet SetType = "hash:ip,port,net" // Addr, Protocol, Port, Net
	HashIPPortIP  SetType = "hash:ip,port,ip"  // Addr, Protocol, Port, Net of a single address
)

// maxElements is how many entries a set of ours may hold. A hash begins at the
// kernel's default size and grows with what is added over netlink, so a large limit
// costs nothing: there are as many entries as services with all their ranges.
const maxElements = 1 << 24

// Set is an ipset: its name in the kernel, its type and its family.
type Set struct {
	Name   string
	Type   SetType
	Family Family
}

// SetInfo is what the kernel tells of a set without its entries.
type SetInfo struct {
	Set
	Entries int // that it holds; expired ones do not count
	Max     int // the most entries that it takes
	Buckets int // of its hash
	// Odd says how the set was made otherwise than vipd makes one of its name:
	// "maxelem 5000, timeout 300"; "" if it was not. The buckets do not count.
	Odd string
}

// OfClients reports whether packets add the entries, which are clients of session
// affinity.
func (s SetInfo) OfClients() bool { return isClients(s.Name) }

// Room returns how many entries the set may hold before some are left out. Where
// packets add them (SetClients) that is less than Max: see CreateExpiring.
func (s SetInfo) Room() int {
	if s.OfClients() {
		return min(s.Max, clientsPerBucket*s.Buckets)
	}
	return s.Max
}

// Entry is an element of a set. It is comparable, and equal entries are one.
type Entry struct {
	Addr     netip.Addr
	Protocol lb.Protocol
	Port     uint16
	Net      netip.Prefix // hash:ip,port,net: masked; hash:ip,port,ip: /32 or /128
}

// String spells the entry as `ipset add` takes it: "192.0.2.1,tcp:80,10.0.0.0/8".
func (e Entry) String() string {
	s := e.Addr.String()
	if e.Protocol != 0 {
		s += fmt.Sprintf(",%s:%d", e.Protocol, e.Port)
	}
	if e.Net.IsValid() {
		if e.Net.IsSingleIP() {
			return s + "," + e.Net.Addr().String()
		}
		return s + "," + e.Net.String()
	}
	return s
}

// Compare orders entries by address, port, protocol and net.
func (e Entry) Compare(o Entry) int {
	return cmp.Or(e.Addr.Compare(o.Addr), cmp.Compare(e.Port, o.Port), cmp.Compare(e.Protocol, o.Protocol),
		e.Net.Addr().Compare(o.Net.Addr()), cmp.Compare(e.Net.Bits(), o.Net.Bits()))
}

// Errors of Sets, to be asked for with errors.Is.
var (
	ErrNoSet    = errors.New("the set does not exist")
	ErrSetType  = errors.New("the set exists with another type or family; run `vipd cleanup`, or destroy it with ipset(8)")
	ErrSetInUse = errors.New("the set is in use by a rule")
	ErrNoIPSet  = errors.New("the kernel has no ipset or lacks this set type; load the modules ip_set and ip_set_hash_*")
	ErrSetFull  = errors.New("the set is full; make do with fewer ranges in `allow`, or fewer services (`ipset list -t` tells how many entries it takes)")
)

// Sets is the kernel's ipsets. Every write is idempotent: what is already as
// wanted is no error. A Sets may be used by one goroutine at a time, but for List.
type Sets interface {
	// List returns the sets whose names begin with SetPrefix.
	List(ctx context.Context) ([]SetInfo, error)
	// Create makes the set, empty, unless it is there. A set of that name with
	// another type or family is left as it is: ErrSetType. One that is odd is left as
	// it is, too; List tells.
	Create(ctx context.Context, set Set) error
	// Replace puts a set that is not odd, with these entries, in the place of one of
	// the same name, type and family: for the rules that name it, in one step.
	// ErrNoSet, ErrSetType.
	Replace(ctx context.Context, set Set, entries []Entry) error
	// Entries calls each for what the set holds; ErrNoSet if there is no such set.
	// After an error some entries have not been told.
	Entries(ctx context.Context, set Set, each func(Entry)) error
	// Size returns how many entries the set holds; ErrNoSet if there is no such set.
	Size(ctx context.Context, set Set) (int, error)
	// Add adds the entries that the set does not hold. After an error some of
	// them may have been added. ErrNoSet, ErrSetFull.
	Add(ctx context.Context, set Set, entries []Entry) error
	// Delete removes the entries that the set holds. After an error some of them
	// may have been removed. ErrNoSet.
	Delete(ctx context.Context, set Set, entries []Entry) error
	// Destroy removes the set with its entries, if it is there; ErrSetInUse if a
	// rule names it.
	Destroy(ctx context.Context, name string) error
}

// SplitNet returns p as hash:ip,port,net can hold it: a /0, which the kernel
// refuses ("CIDR invalid"), is two halves.
func SplitNet(p netip.Prefix) []netip.Prefix {
	if p.Bits() != 0 {
		return []netip.Prefix{p.Masked()}
	}
	upper := netip.AddrFrom4([4]byte{128})
	if p.Addr().Is6() {
		upper = netip.AddrFrom16([16]byte{128})
	}
	return []netip.Prefix{netip.PrefixFrom(p.Masked().Addr(), 1), netip.PrefixFrom(upper, 1)}
}

// check says what makes e no entry of a set of that type and family, or nil.
func (s Set) check(e Entry) error {
	bad := func(what string) error { return fmt.Errorf("set %s (%s): entry %s: %s", s.Name, s.Type, e, what) }
	if !e.Addr.IsValid() || e.Addr.Is4In6() || e.Addr.Zone() != "" || FamilyOf(e.Addr) != s.Family {
		return bad("the address is not a plain " + s.Family.String() + " address")
	}
	if hasPort := e.Protocol != 0; hasPort != strings.Contains(string(s.Type), ",port") {
		return bad("a protocol and a port belong to the set types with a port, and only there")
	}
	switch s.Type {
	case HashIP, HashIPPort:
		if e.Net.IsValid() {
			return bad("this set type takes no network")
		}
	case HashIPPortNet, HashIPPortIP:
		switch {
		case !e.Net.IsValid() || e.Net != e.Net.Masked() || FamilyOf(e.Net.Addr()) != s.Family:
			return bad("the network is not a masked " + s.Family.String() + " network")
		case e.Net.Bits() == 0:
			return bad("a /0 cannot be in a set; split it")
		case s.Type == HashIPPortIP && !e.Net.IsSingleIP():
			return bad("this set type takes a single address")
		}
	default:
		return bad("unknown set type")
	}
	return nil
}
