package vip

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// attribute is one of a message, padded.
func attribute(kind uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value))) //nolint:gosec // a few bytes
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func addressMessage(family, bits, flags, scope byte, attributes ...[]byte) []byte {
	m := binary.NativeEndian.AppendUint32([]byte{family, bits, flags, scope}, 7)
	for _, a := range attributes {
		m = append(m, a...)
	}
	return m
}

func TestParseAddress(t *testing.T) {
	ip := func(s string) []byte { return netip.MustParseAddr(s).AsSlice() }
	u32 := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	cacheinfo := func(preferred uint32) []byte {
		return attribute(unix.IFA_CACHEINFO, append(u32(preferred), make([]byte, 12)...)...)
	}
	for name, c := range map[string]struct {
		message []byte
		want    address
	}{
		"a VIP": {
			addressMessage(unix.AF_INET, 32, 0, unix.RT_SCOPE_HOST, attribute(unix.IFA_ADDRESS, ip("192.0.2.10")...),
				attribute(unix.IFA_LOCAL, ip("192.0.2.10")...), attribute(unix.IFA_LABEL, []byte("vipd0\x00")...), cacheinfo(1<<32-1)),
			address{Link: 7, Prefix: prefix("192.0.2.10/32"), HostScope: true},
		},
		"in a subnet, with broadcast": {
			addressMessage(unix.AF_INET, 24, 0, unix.RT_SCOPE_UNIVERSE, attribute(unix.IFA_ADDRESS, ip("10.0.0.1")...),
				attribute(unix.IFA_LOCAL, ip("10.0.0.1")...), attribute(unix.IFA_BROADCAST, ip("10.0.0.255")...), cacheinfo(9)),
			address{Link: 7, Prefix: prefix("10.0.0.1/24"), Broadcast: addr("10.0.0.255")},
		},
		"point to point": {
			addressMessage(unix.AF_INET, 30, 0, unix.RT_SCOPE_UNIVERSE, attribute(unix.IFA_ADDRESS, ip("10.9.0.2")...),
				attribute(unix.IFA_LOCAL, ip("10.9.0.1")...)),
			address{Link: 7, Prefix: prefix("10.9.0.1/32"), Peer: addr("10.9.0.2")},
		},
		"an IPv6 VIP": {
			addressMessage(unix.AF_INET6, 128, 0, unix.RT_SCOPE_UNIVERSE, attribute(unix.IFA_ADDRESS, ip("2001:db8::10")...),
				cacheinfo(0), attribute(unix.IFA_FLAGS, u32(unix.IFA_F_NODAD|unix.IFA_F_DEPRECATED)...)),
			address{Link: 7, Prefix: prefix("2001:db8::10/128"), Deprecated: true},
		},
		"tentative": {
			addressMessage(unix.AF_INET6, 64, unix.IFA_F_TENTATIVE, unix.RT_SCOPE_UNIVERSE,
				attribute(unix.IFA_ADDRESS, ip("fd00::1")...), cacheinfo(600)),
			address{Link: 7, Prefix: prefix("fd00::1/64"), Unusable: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := parseAddress(c.message); !ok || got != c.want {
				t.Errorf("got %+v, %v; want %+v", got, ok, c.want)
			}
			for cut := range len(c.message) { // no panic, and never an address out of half of one
				if got, ok := parseAddress(c.message[:cut]); ok && got.Prefix.Addr() != c.want.Prefix.Addr() && got.Prefix.Addr() != c.want.Peer {
					t.Errorf("cut to %d bytes it is %+v", cut, got)
				}
			}
		})
	}
	for name, m := range map[string][]byte{
		"no address":   addressMessage(unix.AF_INET, 24, 0, 0),
		"odd length":   addressMessage(unix.AF_INET, 24, 0, 0, attribute(unix.IFA_LOCAL, 1, 2, 3)),
		"too many set": addressMessage(unix.AF_INET, 33, 0, 0, attribute(unix.IFA_ADDRESS, ip("10.0.0.1")...)),
		"no end":       addressMessage(unix.AF_INET, 24, 0, 0, []byte{0, 0, 0, 0, 0, 0, 0, 0}),
	} {
		if got, ok := parseAddress(m); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
