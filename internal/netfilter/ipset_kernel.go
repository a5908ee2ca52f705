package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Constants of include/uapi/linux/netfilter/ipset/ip_set.h that nl lacks.
const (
	ipsetListHeader    = 1 << 2 // IPSET_FLAG_LIST_HEADER
	ipsetAttrBitmask   = 12     // IPSET_ATTR_BITMASK, since Linux 6.3
	ipsetErrHashFull   = nl.IPSET_ERR_TYPE_SPECIFIC
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
func (KernelSets) List(ctx context.Context) ([]SetInfo, error) {
	msgs, err := ipsetDump(ctx, func(req *nl.NetlinkRequest) {
		req.AddData(ipsetUint32(nl.IPSET_ATTR_FLAGS, ipsetListHeader))
	})
	if err != nil {
		return nil, fmt.Errorf("list ipsets: %w", err)
	}
	var sets []SetInfo
	for _, msg := range msgs {
		set, err := parseSetInfo(msg)
		if err != nil {
			return nil, fmt.Errorf("list ipsets: %w", err)
		}
		if strings.HasPrefix(set.Name, SetPrefix) {
			sets = append(sets, set)
		}
	}
	slices.SortFunc(sets, func(a, b SetInfo) int { return strings.Compare(a.Name, b.Name) })
	return sets, nil
}

// Create makes the set, empty, unless it is there.
func (KernelSets) Create(ctx context.Context, set Set) error {
	err := ipsetExecute(ipsetCreatePlain(set))
	if errors.Is(err, syscall.EEXIST) {
		var there SetInfo
		if there, err = ipsetInfo(ctx, set.Name); err == nil && there.Set != set {
			err = ErrSetType
		}
	}
	if err != nil {
		return fmt.Errorf("create ipset %s %s %s: %w", set.Name, set.Type, set.Family, err)
	}
	return nil
}

// Replace puts a new set in the place of one that is odd.
func (k KernelSets) Replace(ctx context.Context, set Set, entries []Entry) error {
	err := ipsetReplace(set, ipsetCreatePlain(Set{setSpare, set.Type, set.Family}), func(spare Set) error { return k.Add(ctx, spare, entries) })
	if err != nil {
		return fmt.Errorf("replace ipset %s %s %s: %w", set.Name, set.Type, set.Family, err)
	}
	return nil
}

// ipsetReplace makes a spare set, has it filled, swaps it with the one that stands
// and removes that.
func ipsetReplace(set Set, create *nl.NetlinkRequest, fill func(spare Set) error) error {
	spare := Set{setSpare, set.Type, set.Family}
	if err := ipsetExecute(ipsetRequest(nl.IPSET_CMD_DESTROY, spare.Name)); err != nil && !errors.Is(err, ErrNoSet) {
		return err
	}
	if err := ipsetExecute(create); err != nil {
		return err
	}
	err := fill(spare)
	if err == nil {
		swap := ipsetRequest(nl.IPSET_CMD_SWAP, set.Name)
		swap.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME2, nl.ZeroTerminated(spare.Name)))
		err = ipsetExecute(swap)
	}
	return errors.Join(err, ipsetExecute(ipsetRequest(nl.IPSET_CMD_DESTROY, spare.Name)))
}

// ipsetCreatePlain makes a set whose entries stay.
func ipsetCreatePlain(set Set) *nl.NetlinkRequest {
	req := ipsetCreate(set)
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|ipsetAttrContainer, nil)
	data.AddChild(ipsetUint32(nl.IPSET_ATTR_MAXELEM, maxElements))
	req.AddData(data)
	return req
}

// ipsetCreate begins the request that makes a set.
func ipsetCreate(set Set) *nl.NetlinkRequest {
	req := ipsetRequest(nl.IPSET_CMD_CREATE, set.Name)
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_TYPENAME, nl.ZeroTerminated(string(set.Type))))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_REVISION, nl.Uint8Attr(set.Type.revision())))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_FAMILY, nl.Uint8Attr(set.Family.af())))
	return req
}

// Destroy removes the set if it is there.
func (KernelSets) Destroy(_ context.Context, name string) error {
	err := ipsetExecute(ipsetRequest(nl.IPSET_CMD_DESTROY, name))
	if err != nil && !errors.Is(err, ErrNoSet) {
		return fmt.Errorf("destroy ipset %s: %w", name, err)
	}
	return nil
}

func ipsetUint32(attr int, v uint32) *nl.RtAttr {
	return nl.NewRtAttr(attr|ipsetAttrNetOrder, binary.BigEndian.AppendUint32(nil, v))
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
	case nl.IPSET_ERR_TYPE_MISMATCH:
		return ErrSetType
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
