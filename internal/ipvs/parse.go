package ipvs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
	"vipd/lb"
)

// What IPVS answers. Attributes that are not known here are passed over.

// nested returns the attribute of a message in which the answer is.
func nested(body []byte, kind uint16) (found []byte, err error) {
	if len(body) < sizeofGenl {
		return nil, fmt.Errorf("a generic netlink message of %d bytes is too short", len(body))
	}
	for k, b := range linux.Attributes(body[sizeofGenl:], &err) {
		if k == kind {
			found = b
		}
	}
	if err == nil && found == nil {
		err = fmt.Errorf("the answer lacks attribute %d", kind)
	}
	return found, err
}

// parseServer reads a server; false if it goes by a firewall mark.
func parseServer(body []byte) (s Server, ok bool, err error) {
	b, err := nested(body, attrService)
	if err != nil {
		return s, false, err
	}
	var family, protocol uint16
	var addr, mask []byte
	for kind, b := range linux.Attributes(b, &err) {
		switch kind {
		case svcFamily:
			family, err = number16(b)
		case svcProtocol:
			protocol, err = number16(b)
		case svcAddr:
			addr = b
		case svcPort:
			s.Key.Port, err = portNumber(b)
		case svcMark:
			return Server{}, false, nil
		case svcSched:
			s.Scheduler = string(bytes.TrimRight(b, "\x00"))
		case svcFlags: // struct ip_vs_flags: flags, mask
			var flags uint32
			flags, err = number32(b[:min(4, len(b))])
			s.Flags = Flags(flags) & flagsOurs
		case svcTimeout:
			var seconds uint32
			seconds, err = number32(b)
			s.Timeout = time.Duration(seconds) * time.Second
		case svcNetmask:
			mask = b
		}
	}
	if err != nil {
		return Server{}, false, err
	}
	s.Key.Protocol = lb.Protocol(protocol)
	if s.Key.Addr, err = address(family, addr); err == nil {
		s.HostBits, err = hostBits(s.Key.Addr, mask)
	}
	if err == nil && protocol > 255 {
		err = fmt.Errorf("a protocol of number %d", protocol)
	}
	return s, err == nil, err
}

// hostBits reads a mask that Server.netmask wrote; 255 is one that is no prefix.
func hostBits(a netip.Addr, mask []byte) (uint8, error) {
	if err := sized(mask, 4); err != nil {
		return 0, err
	}
	if a.Is4() {
		m := binary.BigEndian.Uint32(mask)
		if n := bits.TrailingZeros32(m); ^uint32(0)<<n == m {
			return uint8(n), nil
		}
		return 255, nil
	}
	if n := binary.NativeEndian.Uint32(mask); n <= 128 {
		return uint8(128 - n), nil
	}
	return 255, nil
}

// parseEntry reads a destination of a server of a family.
func parseEntry(body []byte, family uint16) (e Entry, err error) {
	b, err := nested(body, attrDest)
	if err != nil {
		return e, err
	}
	var addr []byte
	var port uint16
	for kind, b := range linux.Attributes(b, &err) {
		switch kind {
		case destAddr:
			addr = b
		case destPort:
			port, err = portNumber(b)
		case destFamily:
			family, err = number16(b)
		case destStats, destStats64: // the latter comes behind, where there is one
			e.Stats, err = parseStats(b)
		default:
			err = e.parse(kind, b)
		}
	}
	if err != nil {
		return Entry{}, err
	}
	a, err := address(family, addr)
	e.Addr = netip.AddrPortFrom(a, port)
	if e.Forward != Tunnel { // what is left of an earlier edit means nothing
		e.Tunnel, e.TunnelPort, e.TunnelFlags = 0, 0, 0
	}
	return e, err
}

// parse reads the attributes that are plain numbers.
func (e *Entry) parse(kind uint16, b []byte) (err error) {
	switch kind {
	case destForward:
		var m uint32
		m, err = number32(b)
		e.Forward = Method(m & 7)
	case destWeight:
		e.Weight, err = number32(b)
	case destUpper:
		e.Upper, err = number32(b)
	case destLower:
		e.Lower, err = number32(b)
	case destActive:
		e.Active, err = number32(b)
	case destInactive:
		e.Inactive, err = number32(b)
	case destPersistent:
		e.Persistent, err = number32(b)
	case destTunnelType:
		if err = sized(b, 1); err == nil {
			e.Tunnel = TunnelType(b[0])
		}
	case destTunnelPort:
		e.TunnelPort, err = portNumber(b)
	case destTunnelFlags:
		e.TunnelFlags, err = number16(b)
	}
	return err
}

// parseStats reads statistics whose numbers have 4 or 8 bytes.
func parseStats(b []byte) (s Stats, err error) {
	to := [...]*uint64{statsConnections: &s.Connections, statsInPackets: &s.InPackets, statsOutPackets: &s.OutPackets,
		statsInBytes: &s.InBytes, statsOutBytes: &s.OutBytes}
	for kind, b := range linux.Attributes(b, &err) {
		switch {
		case int(kind) >= len(to) || to[kind] == nil:
		case len(b) == 8:
			*to[kind] = binary.NativeEndian.Uint64(b)
		default:
			var v uint32
			v, err = number32(b)
			*to[kind] = uint64(v)
		}
	}
	return s, err
}

// parseInfo reads the version, as "1.2.1", and the size of the table of connections.
func parseInfo(body []byte) (version string, table int, err error) {
	if len(body) < sizeofGenl {
		return "", 0, errors.New("short netlink message")
	}
	for kind, b := range linux.Attributes(body[sizeofGenl:], &err) {
		var n uint32
		switch kind {
		case infoVersion:
			n, err = number32(b)
			version = fmt.Sprintf("%d.%d.%d", n>>16&255, n>>8&255, n&255)
		case infoTable:
			n, err = number32(b)
			table = int(n)
		}
	}
	if err == nil && version == "" {
		err = errors.New("IPVS tells no version")
	}
	return version, table, err
}

// parseFamily reads the number of the family.
func parseFamily(body []byte) (family uint16, err error) {
	b, err := nested(body, unix.CTRL_ATTR_FAMILY_ID)
	if err != nil {
		return 0, err
	}
	return number16(b)
}

// address reads union nf_inet_addr.
func address(family uint16, b []byte) (netip.Addr, error) {
	size := 4
	if family == unix.AF_INET6 {
		size = 16
	}
	if len(b) < size || size == 4 && family != unix.AF_INET {
		return netip.Addr{}, fmt.Errorf("an address of %d bytes in family %d", len(b), family)
	}
	a, _ := netip.AddrFromSlice(b[:size])
	return a, nil
}

func portNumber(b []byte) (uint16, error) {
	if err := sized(b, 2); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint16(b), nil
}

func number16(b []byte) (uint16, error) {
	if err := sized(b, 2); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint16(b), nil
}

func number32(b []byte) (uint32, error) {
	if err := sized(b, 4); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint32(b), nil
}

func sized(b []byte, size int) error {
	if len(b) != size {
		return fmt.Errorf("an attribute has %d bytes, not %d", len(b), size)
	}
	return nil
}
