package netfilter

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
	"vipd/lb"
)

// The requests to ctnetlink. Numbers are those of
// linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h.

// Message types: NFNL_SUBSYS_CTNETLINK and the enum cntl_msg_types.
const (
	msgNew    = unix.NFNL_SUBSYS_CTNETLINK << 8
	msgGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	msgDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
)

// Attributes: the enums ctattr_type, ctattr_tuple, ctattr_ip, ctattr_l4proto,
// ctattr_protoinfo, ctattr_protoinfo_tcp and ctattr_filter.
const (
	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaTimeout    = 7
	ctaMark       = 8
	ctaID         = 12
	ctaZone       = 18
	ctaMarkMask   = 21
	ctaFilter     = 25

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaProtoInfoTCP          = 1
	ctaProtoInfoTCPState     = 1
	ctaProtoInfoTCPFlagsOrig = 4
	ctaProtoInfoTCPFlagsRepl = 5

	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2
)

// Which parts of a tuple a dump is filtered by: CTA_FILTER_F_* in the kernel's
// nf_internals.h (Linux 5.8).
const (
	filterSrc     = 1 << 0
	filterDst     = 1 << 1
	filterProto   = 1 << 3
	filterSrcPort = 1 << 4
	filterDstPort = 1 << 5
)

// Bits of CTA_STATUS.
const (
	statusConfirmed    = 1 << 3
	statusDstNAT       = 1 << 5
	statusFixedTimeout = 1 << 10
)

// States of enum tcp_conntrack, and flags of struct nf_ct_tcp_flags.
const (
	tcpSynSent     = 1
	tcpSynRecv     = 2
	tcpEstablished = 3
	tcpLastAck     = 6
	tcpTimeWait    = 7
	tcpSynSent2    = 9 // SYNs of both ends have crossed

	tcpFlagCloseInit = 0x04
	tcpFlagLiberal   = 0x08
)

// message is a request under construction.
type message []byte

// newMessage begins a request: struct nlmsghdr and struct nfgenmsg. The socket
// fills in length and sequence number.
func newMessage(kind, flags uint16, f Family) message {
	m := make(message, unix.SizeofNlMsghdr+4, 256)
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint16(m[6:], flags|unix.NLM_F_REQUEST)
	m[unix.SizeofNlMsghdr] = f.af()
	return m
}

// attr appends one attribute.
func (m *message) attr(kind uint16, payload ...byte) {
	m.nest(kind, func() { *m = append(*m, payload...) })
}

// nest appends an attribute that holds what inside appends.
func (m *message) nest(kind uint16, inside func()) { linux.Nest((*[]byte)(m), kind, inside) }

func (m *message) tree(kind uint16, inside func()) { m.nest(kind|unix.NLA_F_NESTED, inside) }

func (m *message) uint16(kind uint16, v uint16) {
	m.attr(kind, binary.BigEndian.AppendUint16(nil, v)...)
}

func (m *message) uint32(kind uint16, v uint32) {
	m.attr(kind, binary.BigEndian.AppendUint32(nil, v)...)
}

// tuple appends one direction of a flow, or the parts of it that a filter needs.
func (m *message) tuple(kind uint16, t tuple) {
	m.tree(kind, func() {
		m.tree(ctaTupleIP, func() {
			m.address(t.src.Addr(), ctaIPv4Src, ctaIPv6Src)
			m.address(t.dst.Addr(), ctaIPv4Dst, ctaIPv6Dst)
		})
		m.tree(ctaTupleProto, func() {
			m.attr(ctaProtoNum, byte(t.proto))
			m.uint16(ctaProtoSrcPort, t.src.Port())
			m.uint16(ctaProtoDstPort, t.dst.Port())
		})
	})
}

func (m *message) address(a netip.Addr, kind4, kind6 uint16) {
	switch {
	case a.Is4():
		m.attr(kind4, a.AsSlice()...)
	case a.IsValid():
		m.attr(kind6, a.AsSlice()...)
	}
}

// filter says which entries a dump shall have; zero fields say nothing. The
// kernel reads it since Linux 5.8 and ignores it before, so what comes is
// looked at again.
type filter struct {
	family  Family
	proto   lb.Protocol
	to      netip.AddrPort // where the client sent to
	backend netip.AddrPort // who answers
	mark    uint32         // a bit set in the connmark; known to every kernel
}

// dumpRequest asks for the entries that f lets through. IPv6 is filtered by ports
// only: the kernel compares IPv6 addresses the wrong way round and would leave out
// just what is asked for (ctnetlink_filter_match_tuple; seen on Linux 6.18).
func dumpRequest(f filter) message {
	m := newMessage(msgGet, unix.NLM_F_DUMP, f.family)
	if f.mark != 0 {
		m.uint32(ctaMark, f.mark)
		m.uint32(ctaMarkMask, f.mark)
	}
	var addresses uint32
	if f.family == IPv4 {
		addresses = filterSrc | filterDst
	}
	orig, reply := uint32(filterProto), uint32(0)
	m.tuple(ctaTupleOrig, tuple{proto: f.proto, dst: f.to})
	if f.to.IsValid() {
		orig |= filterDst&addresses | filterDstPort
	}
	if f.backend.IsValid() {
		reply = filterProto | filterSrc&addresses | filterSrcPort
		m.tuple(ctaTupleReply, tuple{proto: f.proto, src: f.backend})
	}
	m.tree(ctaFilter, func() {
		m.attr(ctaFilterOrigFlags, binary.NativeEndian.AppendUint32(nil, orig)...)
		m.attr(ctaFilterReplyFlags, binary.NativeEndian.AppendUint32(nil, reply)...)
	})
	return m
}

// deleteRequest asks to delete exactly f: its whole tuple as the kernel sent
// it, and its id, so that another entry that took over the tuple is left alone.
// A delete request without a tuple would flush the table.
func deleteRequest(f *flow) message {
	m := newMessage(msgDelete, unix.NLM_F_ACK, FamilyOf(f.orig.dst.Addr()))
	m.attr(ctaTupleOrig|unix.NLA_F_NESTED, f.rawOrig...)
	m.uint32(ctaID, f.id)
	if f.zone != 0 {
		m.uint16(ctaZone, f.zone)
	}
	return m
}

// createRequest asks for a closing TCP entry of the tuple t without NAT, which
// the kernel forgets after the given time whatever passes. See poke.go.
func createRequest(t tuple, mark uint32, zone uint16, lifetime time.Duration) message {
	m := newMessage(msgNew, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, FamilyOf(t.dst.Addr()))
	m.tuple(ctaTupleOrig, t)
	m.tuple(ctaTupleReply, tuple{proto: t.proto, src: t.dst, dst: t.src})
	m.uint32(ctaStatus, statusConfirmed|statusFixedTimeout)
	m.uint32(ctaTimeout, uint32(lifetime/time.Second))
	m.uint32(ctaMark, mark)
	if zone != 0 {
		m.uint16(ctaZone, zone)
	}
	m.tree(ctaProtoInfo, func() {
		m.tree(ctaProtoInfoTCP, func() {
			const flags = tcpFlagCloseInit | tcpFlagLiberal
			m.attr(ctaProtoInfoTCPState, tcpTimeWait)
			m.attr(ctaProtoInfoTCPFlagsOrig, flags, flags) // struct nf_ct_tcp_flags: flags, mask
			m.attr(ctaProtoInfoTCPFlagsRepl, flags, flags)
		})
	})
	return m
}
