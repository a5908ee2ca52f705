package netfilter

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
)

// expiringDefault is how long an entry stays that comes without a timeout, in
// seconds; every rule of ours gives one. The kernel looks for expired entries every
// third of it, at least every 180 s; it never matches one, however long it lingers.
const expiringDefault = 600

// MaxTimeout is the longest timeout of an entry, in seconds (ipset(8)).
const MaxTimeout = 2147483

// maxClients is how many entries a set of ours may hold that packets add.
const maxClients = 1 << 20

// CreateExpiring makes the set, empty, unless it is there: one whose entries are
// added by rules and expire. Entries that rules add never make the hash grow: a
// bucket takes 12, and what hashes to a full one is silently left out. So buckets
// is for good; it should be a quarter of the entries that are to be expected, and
// costs 8 bytes each. A set of that name with another type or family, or without
// timeouts, is left as it is: ErrSetType; another size is no other set.
func (k KernelSets) CreateExpiring(ctx context.Context, set Set, buckets uint32) error {
	req := ipsetCreate(set)
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|ipsetAttrContainer, nil)
	data.AddChild(ipsetUint32(nl.IPSET_ATTR_MAXELEM, maxClients))
	data.AddChild(ipsetUint32(nl.IPSET_ATTR_HASHSIZE, buckets))
	data.AddChild(ipsetUint32(nl.IPSET_ATTR_TIMEOUT, expiringDefault))
	req.AddData(data)
	err := ipsetExecute(req)
	if errors.Is(err, syscall.EEXIST) {
		err = k.checkExpiring(ctx, set)
	}
	if err != nil {
		return fmt.Errorf("create ipset %s %s %s: %w", set.Name, set.Type, set.Family, err)
	}
	return nil
}

// checkExpiring says what makes a set that is there another one than wanted.
func (KernelSets) checkExpiring(ctx context.Context, want Set) error {
	msgs, err := ipsetDump(ctx, func(req *nl.NetlinkRequest) {
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(want.Name)))
		req.AddData(ipsetUint32(nl.IPSET_ATTR_FLAGS, ipsetListHeader))
	})
	if err != nil {
		return err
	}
	for _, msg := range msgs {
		have, expires, err := ipsetParseHeader(msg)
		if err != nil {
			return err
		}
		if have == want && expires {
			return nil
		}
	}
	return ErrSetType
}

// ipsetParseHeader reads what a set is, and whether its entries expire.
func ipsetParseHeader(msg []byte) (set Set, expires bool, err error) {
	attrs, err := ipsetAttrs(msg)
	if err != nil {
		return set, false, err
	}
	for _, a := range attrs {
		switch a.Attr.Type & nlaTypeMask {
		case nl.IPSET_ATTR_SETNAME:
			set.Name = nl.BytesToString(a.Value)
		case nl.IPSET_ATTR_TYPENAME:
			set.Type = SetType(nl.BytesToString(a.Value))
		case nl.IPSET_ATTR_FAMILY:
			set.Family = ipsetFamily(a.Value)
		case nl.IPSET_ATTR_DATA:
			inner, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return set, false, err
			}
			for _, i := range inner {
				expires = expires || i.Attr.Type&nlaTypeMask == nl.IPSET_ATTR_TIMEOUT
			}
		}
	}
	return set, expires, nil
}

// CreateExpiring makes the set unless it is there.
func (f *FakeSets) CreateExpiring(ctx context.Context, set Set, _ uint32) error {
	return f.Create(ctx, set)
}
