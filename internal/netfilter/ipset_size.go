package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink/nl"

	"vipd/internal/linux"
)

// The header of a set is what the kernel tells of it without its entries, at a cost
// that does not grow with them, but where they expire: those it counts.

// Size asks for the header of the set.
func (KernelSets) Size(ctx context.Context, set Set) (int, error) {
	info, err := ipsetInfo(ctx, set.Name)
	if err != nil {
		return 0, fmt.Errorf("size of ipset %s: %w", set.Name, err)
	}
	return info.Entries, nil
}

// ipsetInfo asks for the header of one set; ErrNoSet if there is none.
func ipsetInfo(ctx context.Context, name string) (SetInfo, error) {
	msgs, err := ipsetDump(ctx, func(req *nl.NetlinkRequest) {
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
		req.AddData(ipsetUint32(nl.IPSET_ATTR_FLAGS, ipsetListHeader))
	})
	if err != nil {
		return SetInfo{}, err
	}
	if len(msgs) == 0 {
		return SetInfo{}, errors.New("the kernel gave no header")
	}
	return parseSetInfo(msgs[0])
}

// setOptions are those of `ipset create` that no set of ours has, by their flag in
// IPSET_ATTR_CADT_FLAGS.
var setOptions = []struct {
	flag uint32
	name string
}{
	{nl.IPSET_FLAG_WITH_COUNTERS, "counters"}, {nl.IPSET_FLAG_WITH_COMMENT, "comment"},
	{nl.IPSET_FLAG_WITH_FORCEADD, "forceadd"}, {nl.IPSET_FLAG_WITH_SKBINFO, "skbinfo"},
}

// parseSetInfo reads a header, without that of netlink.
func parseSetInfo(msg []byte) (info SetInfo, err error) {
	if len(msg) < nl.SizeofNfgenmsg {
		return info, errors.New("short netlink message")
	}
	var header []byte
	for kind, value := range linux.Attributes(msg[nl.SizeofNfgenmsg:], &err) {
		switch kind {
		case nl.IPSET_ATTR_SETNAME:
			info.Name = nl.BytesToString(value)
		case nl.IPSET_ATTR_TYPENAME:
			info.Type = SetType(nl.BytesToString(value))
		case nl.IPSET_ATTR_FAMILY:
			info.Family = ipsetFamily(value)
		case nl.IPSET_ATTR_DATA:
			header = value
		}
	}
	if err == nil {
		err = info.readHeader(header)
	}
	return info, err
}

// readHeader reads the parameters with which a set was made, and what it holds.
func (s *SetInfo) readHeader(b []byte) (err error) {
	var odd []string
	limit, timeout := uint32(maxElements), ""
	if isClients(s.Name) {
		limit, timeout = maxClients, "no timeout"
	}
	for kind, value := range linux.Attributes(b, &err) {
		var n uint32
		if len(value) == 4 {
			n = binary.BigEndian.Uint32(value)
		}
		switch kind {
		case nl.IPSET_ATTR_ELEMENTS:
			s.Entries = int(n)
		case nl.IPSET_ATTR_HASHSIZE:
			s.Buckets = int(n)
		case nl.IPSET_ATTR_MAXELEM:
			s.Max = int(n)
			if n != limit {
				odd = append(odd, fmt.Sprintf("maxelem %d", n))
			}
		case nl.IPSET_ATTR_TIMEOUT:
			if timeout = ""; !isClients(s.Name) {
				timeout = fmt.Sprintf("timeout %d", n)
			}
		case nl.IPSET_ATTR_NETMASK:
			odd = append(odd, "netmask")
		case ipsetAttrBitmask:
			odd = append(odd, "bitmask")
		case nl.IPSET_ATTR_CADT_FLAGS:
			for _, o := range setOptions {
				if n&o.flag != 0 {
					odd = append(odd, o.name)
				}
			}
		}
	}
	if timeout != "" {
		odd = append(odd, timeout)
	}
	s.Odd = strings.Join(odd, ", ")
	return err
}
