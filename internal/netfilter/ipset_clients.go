package netfilter

import (
	"context"
	"errors"
	"fmt"

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

// clientsPerBucket is how many entries a bucket is meant for: with that many on
// average the hash has left out 3 in 10,000.
const clientsPerBucket = 4

// CreateExpiring makes the set, empty, unless it is there: one whose entries are
// added by rules and expire. Entries that rules add never make the hash grow: a
// bucket takes 12, and what hashes to a full one is silently left out. So buckets
// is for good; it should be a quarter of the entries that are to be expected, and
// costs 8 bytes each. In the place of a set that is odd, or has fewer buckets, a
// new one is put, in one step; the clients in the old one choose once more. A set of
// that name with another type or family is left as it is: ErrSetType.
func (k KernelSets) CreateExpiring(ctx context.Context, set Set, buckets uint32) error {
	there, err := ipsetInfo(ctx, set.Name)
	switch {
	case errors.Is(err, ErrNoSet):
		err = ipsetExecute(ipsetCreateExpiring(set, buckets))
	case err != nil:
	case there.Set != set:
		err = fmt.Errorf("it is a %s %s: %w", there.Type, there.Family, ErrSetType)
	case there.Odd != "" || there.Buckets < int(buckets):
		err = ipsetReplace(set, ipsetCreateExpiring(Set{setSpare, set.Type, set.Family}, buckets), func(Set) error { return nil })
	}
	if err != nil {
		return fmt.Errorf("create ipset %s %s %s: %w", set.Name, set.Type, set.Family, err)
	}
	return nil
}

func ipsetCreateExpiring(set Set, buckets uint32) *nl.NetlinkRequest {
	req := ipsetCreate(set)
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|ipsetAttrContainer, nil)
	data.AddChild(ipsetUint32(nl.IPSET_ATTR_MAXELEM, maxClients))
	data.AddChild(ipsetUint32(nl.IPSET_ATTR_HASHSIZE, buckets))
	data.AddChild(ipsetUint32(nl.IPSET_ATTR_TIMEOUT, expiringDefault))
	req.AddData(data)
	return req
}

// CreateExpiring makes the set unless it is there.
func (f *FakeSets) CreateExpiring(ctx context.Context, set Set, buckets uint32) error {
	if err := f.Create(ctx, set); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buckets[set.Name] = int(buckets)
	delete(f.Odd, set.Name)
	return nil
}
