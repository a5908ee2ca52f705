package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"vipd/internal/linux"
	"vipd/lb"
)

// tuple is one direction of a flow as it is on the wire there.
type tuple struct {
	proto    lb.Protocol
	src, dst netip.AddrPort // port 0 where the protocol has none
}

// flow is a conntrack entry, as far as it matters to us.
type flow struct {
	orig     tuple // client to VIP
	reply    tuple // backend to client, or to the address that stands in for it
	id       uint32
	status   uint32
	mark     uint32
	zone     uint16
	tcpState uint8
	rawOrig  []byte // CTA_TUPLE_ORIG as it came, zone and all; valid as long as the datagram
}

// key returns what the client talks to, and backend who answers it.
func (f *flow) key() lb.Key {
	return lb.Key{Addr: f.orig.dst.Addr(), Port: f.orig.dst.Port(), Protocol: f.orig.proto}
}

func (f *flow) backend() netip.AddrPort { return f.reply.src }

// alive reports whether f is a TCP connection whose ends may still be open.
func (f *flow) alive() bool {
	return f.orig.proto == lb.TCP && f.tcpState >= tcpSynRecv && f.tcpState <= tcpLastAck
}

// ofPoke reports whether f is an entry that createRequest made.
func (f *flow) ofPoke() bool { return f.status&statusFixedTimeout != 0 }

var errNoTuple = errors.New("a conntrack entry without both its tuples")

// parseFlow reads the body of a ctnetlink message: struct nfgenmsg and its
// attributes. Attributes that it does not know are passed over; an entry that
// lacks a part of its tuples is an error.
func parseFlow(body []byte) (f flow, err error) {
	const sizeofNfgenmsg = 4
	if len(body) < sizeofNfgenmsg {
		return f, fmt.Errorf("a conntrack message of %d bytes is too short", len(body))
	}
	for kind, b := range linux.Attributes(body[sizeofNfgenmsg:], &err) {
		switch kind {
		case ctaTupleOrig:
			f.rawOrig = b
			f.orig, err = parseTuple(b)
		case ctaTupleReply:
			f.reply, err = parseTuple(b)
		case ctaProtoInfo:
			f.tcpState, err = parseTCPState(b)
		case ctaID:
			f.id, err = number32(b)
		case ctaStatus:
			f.status, err = number32(b)
		case ctaMark:
			f.mark, err = number32(b)
		case ctaZone:
			f.zone, err = number16(b)
		}
	}
	if err == nil && (!f.orig.src.IsValid() || !f.reply.src.IsValid()) {
		err = errNoTuple
	}
	return f, err
}

func parseTuple(b []byte) (t tuple, err error) {
	var src, dst netip.Addr
	var srcPort, dstPort uint16
	for kind, b := range linux.Attributes(b, &err) {
		switch kind {
		case ctaTupleIP:
			src, dst, err = parseAddresses(b)
		case ctaTupleProto:
			t.proto, srcPort, dstPort, err = parseProtocol(b)
		}
	}
	if err == nil && (!src.IsValid() || !dst.IsValid() || src.Is4() != dst.Is4()) {
		err = errNoTuple
	}
	t.src, t.dst = netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)
	return t, err
}

func parseAddresses(b []byte) (src, dst netip.Addr, err error) {
	for kind, b := range linux.Attributes(b, &err) {
		switch kind {
		case ctaIPv4Src:
			src, err = address(b, 4)
		case ctaIPv4Dst:
			dst, err = address(b, 4)
		case ctaIPv6Src:
			src, err = address(b, 16)
		case ctaIPv6Dst:
			dst, err = address(b, 16)
		}
	}
	return src, dst, err
}

func parseProtocol(b []byte) (proto lb.Protocol, src, dst uint16, err error) {
	for kind, b := range linux.Attributes(b, &err) {
		switch kind {
		case ctaProtoNum:
			var n uint8
			n, err = number8(b)
			proto = lb.Protocol(n)
		case ctaProtoSrcPort:
			src, err = number16(b)
		case ctaProtoDstPort:
			dst, err = number16(b)
		}
	}
	return proto, src, dst, err
}

// parseTCPState finds the state in CTA_PROTOINFO; it is 0 for other protocols.
func parseTCPState(b []byte) (state uint8, err error) {
	for kind, b := range linux.Attributes(b, &err) {
		if kind != ctaProtoInfoTCP {
			continue
		}
		for kind, b := range linux.Attributes(b, &err) {
			if kind == ctaProtoInfoTCPState {
				state, err = number8(b)
			}
		}
	}
	return state, err
}

func address(b []byte, size int) (netip.Addr, error) {
	if err := sized(b, size); err != nil {
		return netip.Addr{}, err
	}
	a, _ := netip.AddrFromSlice(b)
	return a, nil
}

// Numbers are in network byte order.

func number8(b []byte) (uint8, error) {
	if err := sized(b, 1); err != nil {
		return 0, err
	}
	return b[0], nil
}

func number16(b []byte) (uint16, error) {
	if err := sized(b, 2); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint16(b), nil
}

func number32(b []byte) (uint32, error) {
	if err := sized(b, 4); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(b), nil
}

func sized(b []byte, want int) error {
	if len(b) != want {
		return fmt.Errorf("an attribute has %d bytes in place of %d", len(b), want)
	}
	return nil
}
