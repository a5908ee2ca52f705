package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
)

// Size asks for the header of the set, at a cost that does not grow with what it
// holds.
func (KernelSets) Size(ctx context.Context, set Set) (int, error) {
	msgs, err := ipsetDump(ctx, func(req *nl.NetlinkRequest) {
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(set.Name)))
		req.AddData(ipsetUint32(nl.IPSET_ATTR_FLAGS, ipsetListHeader))
	})
	if err != nil {
		return 0, fmt.Errorf("size of ipset %s: %w", set.Name, err)
	}
	for _, msg := range msgs {
		if n, ok := parseSize(msg); ok {
			return n, nil
		}
	}
	return 0, fmt.Errorf("size of ipset %s: %w", set.Name, errors.New("the kernel gave no number"))
}

// parseSize reads the header of a set.
func parseSize(msg []byte) (n int, ok bool) {
	if len(msg) < nl.SizeofNfgenmsg {
		return 0, false
	}
	var err error
	header := attributeOf(msg[nl.SizeofNfgenmsg:], nl.IPSET_ATTR_DATA, &err)
	b := attributeOf(header, nl.IPSET_ATTR_ELEMENTS, &err)
	if err != nil || len(b) != 4 {
		return 0, false
	}
	return int(binary.BigEndian.Uint32(b)), true
}
