package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vipd/lb"
)

// Constants of include/uapi/linux/netfilter/ipset/ip_set.h that nl lacks.
const (
	ipsetListHeader    = 1 << 2 // IPSET_FLAG_LIST_HEADER
	ipsetErrHashFull   = nl.IPSET_ERR_TYPE_SPECIFIC
	ipsetBatch         = 200 // entries in one message: below 20 KB of the 64 KB an attribute can hold
	nlaTypeMask        = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
	ipsetDumpAttempts  = 5
	ipsetAttrNetOrder  = unix.NLA_F_NET_BYTEORDER
	ipsetAttrContainer = unix.NLA_F_NESTED
)

// KernelSets is the ipsets of the network namespace of the calling thread,
// over netlink (NFNL_SUBSYS_IPSET, protocol 6). A batch of entries is one
// message. It is written here because the netlink module adds one entry a
// message and reads back no ports for some types.
type KernelSets struct{}

var _ Sets = KernelSets{}

// List returns the sets whose names begin with SetPrefix, also those whose type
// is none of ours.
func (KernelSets) List(ctx context.Context) ([]Set, error) {
	msgs, err := ipsetDump(ctx, func(req *nl.NetlinkRequest) {
		req.AddData(ipsetUint32(nl.IPSET_ATTR_FLAGS, ipsetListHeader))
	})
	if err != nil {
		return nil, fmt.Errorf("list ipsets: %w", err)
	}
	var sets []Set
	for _, msg := range msgs {
		set, _, err := ipsetParseHeader(msg)
		if err != nil {
			return nil, fmt.Errorf("list ipsets: %w", err)
		}
		if strings.HasPrefix(set.Name, SetPrefix) {
			sets = append(sets, set)
		}
	}
	slices.SortFunc(sets, func(a, b Set) int { return strings.Compare(a.Name, b.Name) })
	return sets, nil
}

// Create makes the set, empty, unless it is there.
func (k KernelSets) Create(ctx context.Context, set Set) error {
	req := ipsetCreate(set)
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|ipsetAttrContainer, nil)
	data.AddChild(ipsetUint32(nl.IPSET_ATTR_MAXELEM, maxElements))
	req.AddData(data)
	err := ipsetExecute(req)
	if errors.Is(err, syscall.EEXIST) { // not the very same parameters: fine if only a size differs
		err = ErrSetType
		sets, listErr := k.List(ctx)
		if slices.Contains(sets, set) || listErr != nil {
			err = listErr
		}
	}
	if err != nil {
		return fmt.Errorf("create ipset %s %s %s: %w", set.Name, set.Type, set.Family, err)
	}
	return nil
}

// ipsetCreate begins the request that makes a set.
func ipsetCreate(set Set) *nl.NetlinkRequest {
	req := ipsetRequest(nl.IPSET_CMD_CREATE, set.Name)
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_TYPENAME, nl.ZeroTerminated(string(set.Type))))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_REVISION, nl.Uint8Attr(set.Type.revision())))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_FAMILY, nl.Uint8Attr(set.Family.af())))
	return req
}

// Entries returns what the set holds.
func (KernelSets) Entries(ctx context.Context, set Set) (map[Entry]struct{}, error) {
	msgs, err := ipsetDump(ctx, func(req *nl.NetlinkRequest) {
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(set.Name)))
	})
	if err != nil {
		return nil, fmt.Errorf("list ipset %s: %w", set.Name, err)
	}
	entries := map[Entry]struct{}{}
	for _, msg := range msgs {
		if err := ipsetParseEntries(msg, set, entries); err != nil {
			return nil, fmt.Errorf("list ipset %s: %w", set.Name, err)
		}
	}
	return entries, nil
}

// Add adds the entries that the set does not hold.
func (KernelSets) Add(ctx context.Context, set Set, entries []Entry) error {
	return ipsetChange(ctx, nl.IPSET_CMD_ADD, "add to", set, entries)
}

// Delete removes the entries that the set holds.
func (KernelSets) Delete(ctx context.Context, set Set, entries []Entry) error {
	return ipsetChange(ctx, nl.IPSET_CMD_DEL, "delete from", set, entries)
}

// Destroy removes the set if it is there.
func (KernelSets) Destroy(_ context.Context, name string) error {
	err := ipsetExecute(ipsetRequest(nl.IPSET_CMD_DESTROY, name))
	if err != nil && !errors.Is(err, ErrNoSet) {
		return fmt.Errorf("destroy ipset %s: %w", name, err)
	}
	return nil
}

// ipsetChange sends the entries in batches. Without NLM_F_EXCL the kernel takes
// an entry that is there already, or is gone already, as done.
func ipsetChange(ctx context.Context, cmd int, verb string, set Set, entries []Entry) error {
	for batch := range slices.Chunk(entries, ipsetBatch) {
		if err := ctx.Err(); err != nil {
			return err
		}
		adt := nl.NewRtAttr(nl.IPSET_ATTR_ADT|ipsetAttrContainer, nil)
		for i, e := range batch {
			if err := set.check(e); err != nil {
				return err
			}
			adt.AddChild(ipsetEntry(e, uint32(i)))
		}
		req := ipsetRequest(cmd, set.Name)
		req.AddData(ipsetUint32(nl.IPSET_ATTR_LINENO, 0)) // the kernel wants one with ADT
		req.AddData(adt)
		if err := ipsetExecute(req); err != nil {
			return fmt.Errorf("%s ipset %s (%s and %d more): %w", verb, set.Name, batch[0], len(batch)-1, err)
		}
	}
	return nil
}

// ipsetEntry writes one entry as IPSET_ATTR_DATA.
func ipsetEntry(e Entry, line uint32) *nl.RtAttr {
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|ipsetAttrContainer, nil)
	data.AddChild(ipsetAddr(nl.IPSET_ATTR_IP, e.Addr))
	if e.Protocol != 0 {
		data.AddChild(nl.NewRtAttr(nl.IPSET_ATTR_PORT|ipsetAttrNetOrder, binary.BigEndian.AppendUint16(nil, e.Port)))
		data.AddChild(nl.NewRtAttr(nl.IPSET_ATTR_PROTO, nl.Uint8Attr(uint8(e.Protocol))))
	}
	if e.Net.IsValid() {
		data.AddChild(ipsetAddr(nl.IPSET_ATTR_IP2, e.Net.Addr()))
		if !e.Net.IsSingleIP() {
			data.AddChild(nl.NewRtAttr(nl.IPSET_ATTR_CIDR2, nl.Uint8Attr(uint8(e.Net.Bits()))))
		}
	}
	data.AddChild(ipsetUint32(nl.IPSET_ATTR_CADT_LINENO, line))
	return data
}

func ipsetAddr(attr int, a netip.Addr) *nl.RtAttr {
	kind := nl.IPSET_ATTR_IPADDR_IPV4
	if a.Is6() {
		kind = nl.IPSET_ATTR_IPADDR_IPV6
	}
	outer := nl.NewRtAttr(attr|ipsetAttrContainer, nil)
	outer.AddChild(nl.NewRtAttr(kind|ipsetAttrNetOrder, a.AsSlice()))
	return outer
}

func ipsetUint32(attr int, v uint32) *nl.RtAttr {
	return nl.NewRtAttr(attr|ipsetAttrNetOrder, binary.BigEndian.AppendUint32(nil, v))
}

// ipsetParseEntries adds the entries of one dumped message.
func ipsetParseEntries(msg []byte, set Set, to map[Entry]struct{}) error {
	attrs, err := ipsetAttrs(msg)
	if err != nil {
		return err
	}
	for _, a := range attrs {
		switch a.Attr.Type & nlaTypeMask {
		case nl.IPSET_ATTR_TYPENAME:
			if got := nl.BytesToString(a.Value); got != string(set.Type) {
				return fmt.Errorf("it is a %s: %w", got, ErrSetType)
			}
		case nl.IPSET_ATTR_ADT:
			rows, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return err
			}
			for _, row := range rows {
				e, err := ipsetParseEntry(row.Value, set)
				if err != nil {
					return err
				}
				to[e] = struct{}{}
			}
		}
	}
	return nil
}

func ipsetParseEntry(row []byte, set Set) (Entry, error) {
	attrs, err := nl.ParseRouteAttr(row)
	if err != nil {
		return Entry{}, err
	}
	var e Entry
	var peer netip.Addr
	bits := 0
	for _, a := range attrs {
		switch a.Attr.Type & nlaTypeMask {
		case nl.IPSET_ATTR_IP:
			e.Addr = ipsetParseAddr(a.Value)
		case nl.IPSET_ATTR_IP2:
			peer = ipsetParseAddr(a.Value)
		case nl.IPSET_ATTR_CIDR2:
			bits = int(a.Value[0])
		case nl.IPSET_ATTR_PROTO:
			e.Protocol = lb.Protocol(a.Value[0])
		case nl.IPSET_ATTR_PORT:
			e.Port = binary.BigEndian.Uint16(a.Value)
		}
	}
	if peer.IsValid() {
		if bits == 0 {
			bits = peer.BitLen()
		}
		e.Net = netip.PrefixFrom(peer, bits)
	}
	return e, set.check(e)
}

// ipsetParseAddr reads an address container; what is none gives the zero Addr.
func ipsetParseAddr(b []byte) netip.Addr {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil || len(attrs) != 1 {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(attrs[0].Value)
	return a
}

// ipsetAttrs returns the attributes behind the nfgenmsg header.
func ipsetAttrs(msg []byte) ([]syscall.NetlinkRouteAttr, error) {
	if len(msg) < nl.SizeofNfgenmsg {
		return nil, errors.New("short netlink message")
	}
	return nl.ParseRouteAttr(msg[nl.SizeofNfgenmsg:])
}

func ipsetRequest(cmd int, name string) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(cmd|unix.NFNL_SUBSYS_IPSET<<8, unix.NLM_F_ACK)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	if name != "" {
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
	}
	return req
}

func ipsetExecute(req *nl.NetlinkRequest) error {
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return ipsetError(err)
}

// ipsetDump lists; a dump that a change interrupted is made again.
func ipsetDump(ctx context.Context, fill func(*nl.NetlinkRequest)) ([][]byte, error) {
	var err error
	for range ipsetDumpAttempts {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		req := ipsetRequest(nl.IPSET_CMD_LIST, "")
		req.Flags |= unix.NLM_F_DUMP
		fill(req)
		var msgs [][]byte
		if msgs, err = req.Execute(unix.NETLINK_NETFILTER, 0); err == nil {
			return msgs, nil
		}
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	return nil, ipsetError(err)
}

// ipsetError translates the kernel's answer into the errors of Sets.
func ipsetError(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err
	}
	switch errno {
	case syscall.ENOENT:
		return ErrNoSet
	case syscall.EPERM:
		return fmt.Errorf("%w; CAP_NET_ADMIN is needed", errno)
	case nl.IPSET_ERR_BUSY, nl.IPSET_ERR_REFERENCED:
		return ErrSetInUse
	case nl.IPSET_ERR_FIND_TYPE, syscall.EINVAL: // EINVAL: no subsystem answers
		return fmt.Errorf("%w (%w)", ErrNoIPSet, errno)
	case ipsetErrHashFull:
		return ErrSetFull
	}
	if errno >= nl.IPSET_ERR_PRIVATE {
		return fmt.Errorf("the kernel refused: %w", nl.IPSetError(errno))
	}
	return errno
}

// revision is the oldest revision with what we use; every kernel since 3.11
// has it (kernel net/netfilter/ipset/ip_set_hash_*.c).
func (t SetType) revision() uint8 {
	if t == HashIPPortNet {
		return 2
	}
	return 1
}

func (f Family) af() uint8 {
	if f == IPv4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func ipsetFamily(value []byte) Family {
	if len(value) == 1 && value[0] == unix.AF_INET {
		return IPv4
	}
	return IPv6
}
