package vip

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// listAddresses returns every address of this host. There may be thousands, each
// time: they are read one by one, which takes a fraction of the memory of
// netlink.AddrList. netlink.ErrDumpInterrupted comes with a partial list.
func listAddresses() ([]address, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfAddrmsg(netlink.FAMILY_ALL))
	var addrs []address
	err := req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWADDR, func(m []byte) bool {
		if a, ok := parseAddress(m); ok {
			addrs = append(addrs, a)
		}
		return true
	})
	return addrs, err
}

// parseAddress reads an RTM_NEWADDR without its header (rtnetlink(7)); false for one
// without an IP address. IPv6 has its address in IFA_ADDRESS. IPv4 has it in
// IFA_LOCAL, and in IFA_ADDRESS the same one or the peer's, to whom the length of the
// prefix then belongs.
func parseAddress(m []byte) (address, bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return address{}, false
	}
	a := address{Link: int(binary.NativeEndian.Uint32(m[4:])), HostScope: m[3] == unix.RT_SCOPE_HOST}
	bits, flags := int(m[1]), uint32(m[2])
	var local, remote netip.Addr
	for kind, value := range routeAttributes(m[unix.SizeofIfAddrmsg:]) {
		ip, _ := netip.AddrFromSlice(value)
		switch {
		case kind == unix.IFA_LOCAL:
			local = ip.Unmap()
		case kind == unix.IFA_ADDRESS:
			remote = ip.Unmap()
		case kind == unix.IFA_BROADCAST:
			a.Broadcast = ip.Unmap()
		case kind == unix.IFA_FLAGS && len(value) >= 4:
			flags = binary.NativeEndian.Uint32(value)
		case kind == unix.IFA_CACHEINFO && len(value) >= 4: // struct ifa_cacheinfo begins with the preferred lifetime
			a.Deprecated = binary.NativeEndian.Uint32(value) == 0
		}
	}
	a.Unusable = flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0
	switch {
	case !local.IsValid():
		local = remote
	case m[0] != unix.AF_INET || local != remote:
		a.Peer, bits = remote, local.BitLen()
	}
	a.Prefix = netip.PrefixFrom(local, bits)
	return a, a.Prefix.IsValid()
}

// routeAttributes yields the attributes of a message (rtnetlink(3)), up to the first
// that is broken.
func routeAttributes(b []byte) func(yield func(kind uint16, value []byte) bool) {
	return func(yield func(kind uint16, value []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			length := int(binary.NativeEndian.Uint16(b))
			if length < unix.SizeofRtAttr || length > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, b[unix.SizeofRtAttr:length]) {
				return
			}
			b = b[min(len(b), (length+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
		}
	}
}
