// Package lb is the vocabulary of vipd: what a service and a backend are, and
// the snapshot in which they travel. It holds values only, does no I/O and
// imports nothing but the standard library.
//
// Every value that has been published (a *Spec in a discovery.Set, a *Service
// in a Snapshot) is immutable from then on. Equal pointers therefore mean equal
// values, which is what makes comparing two snapshots cheap.
package lb

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Protocol is the transport protocol of a service, by its IANA number.
type Protocol uint8

// The protocols vipd balances (IANA assigned internet protocol numbers).
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// ParseProtocol reads the lower-case name of a protocol.
func ParseProtocol(s string) (Protocol, error) {
	switch s {
	case "tcp":
		return TCP, nil
	case "udp":
		return UDP, nil
	case "sctp":
		return SCTP, nil
	}
	return 0, fmt.Errorf("unknown protocol %q; use tcp, udp or sctp", s)
}

// String returns the lower-case name, as iptables and the TOML file spell it.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return "protocol-" + strconv.Itoa(int(p))
}

// MarshalText writes the name of the protocol.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (p *Protocol) UnmarshalText(text []byte) (err error) {
	*p, err = ParseProtocol(string(text))
	return err
}

// Key identifies a service: the VIP, the port and the protocol that clients
// use. It is comparable, and its text form is "192.0.2.10:80/tcp" or
// "[2001:db8::10]:53/udp".
type Key struct {
	Addr     netip.Addr
	Port     uint16
	Protocol Protocol
}

// ParseKey reads the text form of a Key. A missing protocol means tcp. Zones,
// IPv4-mapped IPv6 addresses and port 0 are refused: no service has such a Key.
func ParseKey(s string) (Key, error) {
	addr, proto, found := strings.Cut(s, "/")
	k := Key{Protocol: TCP}
	if found {
		p, err := ParseProtocol(proto)
		if err != nil {
			return Key{}, err
		}
		k.Protocol = p
	}
	ap, err := netip.ParseAddrPort(addr)
	if err != nil || ap.Port() == 0 || ap.Addr().Zone() != "" || ap.Addr().Is4In6() {
		return Key{}, fmt.Errorf("%q is not VIP:PORT or VIP:PORT/PROTOCOL", s)
	}
	k.Addr, k.Port = ap.Addr(), ap.Port()
	return k, nil
}

// AddrPort returns the VIP and the port.
func (k Key) AddrPort() netip.AddrPort { return netip.AddrPortFrom(k.Addr, k.Port) }

// String returns the text form.
func (k Key) String() string { return k.AddrPort().String() + "/" + k.Protocol.String() }

// MarshalText writes the text form, so that a Key can be the key of a JSON object.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads the text form.
func (k *Key) UnmarshalText(text []byte) (err error) {
	*k, err = ParseKey(string(text))
	return err
}

// Compare orders keys by address (IPv4 before IPv6), port and protocol.
func (k Key) Compare(o Key) int {
	return cmp.Or(k.Addr.Compare(o.Addr), cmp.Compare(k.Port, o.Port), cmp.Compare(k.Protocol, o.Protocol))
}
