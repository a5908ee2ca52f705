package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vipd/lb"
)

// A TCP connection whose conntrack entry is gone does not end by itself: an end
// that is idle, or that only listens, never hears of it. So each end gets a
// forged bare ACK from where its peer was. Its number does not fit, so the end
// answers by an ACK with the number that it expects (RFC 9293, 3.10.7.4; RFC
// 5961), and that one, which no socket of its receiver knows, draws a RST that
// fits exactly.
//
// The forged ACKs would make conntrack pick the dead connection up again, in the
// wrong direction, and a new connection from the same client port would be lost
// in it. So the entries that carry the poke are made beforehand: in the direction
// of the client, without NAT, with the connmark of the dead one (which lets them
// through FORWARD), and in state TIME_WAIT with a close on record, in which a SYN
// at any time replaces the entry by a new connection. Their timeout is fixed.

const (
	// pokeInterval limits the pokes: 5,000 connections a second, which is 20,000
	// packets of 40 or 60 bytes.
	pokeInterval = time.Second / 5000
	// pokeBurst is how far ahead of that pace they may run.
	pokeBurst = 20 * time.Millisecond
	// pokeLifetime is how long the entries that carry a poke live, in whole seconds.
	pokeLifetime = 10 * time.Second
)

// poker sends forged ACKs. The nil *poker sends none.
type poker struct {
	fd4, fd6 int
	next     time.Time // when the next poke is due
}

// openPoker needs CAP_NET_RAW; without it the error is unix.EPERM.
func openPoker() (*poker, error) {
	// IPPROTO_RAW: the headers are ours, in both families (raw(7)).
	fd4, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	fd6, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		fd6, err = -1, nil // no IPv6 in this kernel, and so no connections to poke
	}
	p := &poker{fd4: fd4, fd6: fd6}
	if err != nil {
		p.fd6 = -1
		return nil, errors.Join(os.NewSyscallError("socket", err), p.close())
	}
	return p, nil
}

func (p *poker) close() error {
	if p == nil {
		return nil
	}
	err := os.NewSyscallError("close", unix.Close(p.fd4))
	if p.fd6 >= 0 {
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(p.fd6)))
	}
	return err
}

// pace waits until the next poke is due.
func (p *poker) pace(ctx context.Context) error {
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(pokeInterval)
	ahead := p.next.Sub(now)
	if ahead <= pokeBurst {
		return ctx.Err()
	}
	if !sleep(ctx, ahead-pokeBurst/2) {
		return ctx.Err()
	}
	return nil
}

// poke makes dst answer to src. It sends two ACKs half of the number space apart:
// no window spans both (RFC 7323: at most 2^30), so at least one does not fit.
func (p *poker) poke(src, dst netip.AddrPort) error {
	const number = 1 // any
	for _, seq := range [...]uint32{number, number + 1<<31} {
		if err := p.send(src, dst, seq, number); err != nil {
			return fmt.Errorf("poke %s: %w", dst, err)
		}
	}
	return nil
}

func (p *poker) send(src, dst netip.AddrPort, seq, ack uint32) error {
	packet := bareACK(src, dst, seq, ack)
	if dst.Addr().Is4() {
		return os.NewSyscallError("sendto", unix.Sendto(p.fd4, packet, 0, &unix.SockaddrInet4{Addr: dst.Addr().As4()}))
	}
	return os.NewSyscallError("sendto", unix.Sendto(p.fd6, packet, 0, &unix.SockaddrInet6{Addr: dst.Addr().As16()}))
}

// bareACK returns an IP packet with a TCP header that has the ACK flag and
// nothing else. The kernel fills in the checksum of an IPv4 header.
func bareACK(src, dst netip.AddrPort, seq, ack uint32) []byte {
	const sizeofTCP, hops = 20, 64
	var packet []byte
	if dst.Addr().Is4() {
		packet = append(packet, 4<<4|5, 0, 0, 20+sizeofTCP, 0, 0, 0, 0, hops, byte(lb.TCP), 0, 0)
	} else {
		packet = append(packet, 6<<4, 0, 0, 0, 0, sizeofTCP, byte(lb.TCP), hops)
	}
	packet = append(packet, src.Addr().AsSlice()...)
	packet = append(packet, dst.Addr().AsSlice()...)
	start := len(packet)
	packet = binary.BigEndian.AppendUint16(packet, src.Port())
	packet = binary.BigEndian.AppendUint16(packet, dst.Port())
	packet = binary.BigEndian.AppendUint32(packet, seq)
	packet = binary.BigEndian.AppendUint32(packet, ack)
	packet = append(packet, sizeofTCP/4<<4, 0x10 /* ACK */, 4, 0 /* window */, 0, 0, 0, 0)
	binary.BigEndian.PutUint16(packet[start+16:], tcpChecksum(src.Addr(), dst.Addr(), packet[start:]))
	return packet
}

// tcpChecksum is that of RFC 9293, 3.1, over the pseudo header and the segment.
// (The pseudo headers of both families add up alike.)
func tcpChecksum(src, dst netip.Addr, segment []byte) uint16 {
	sum := uint32(lb.TCP) + uint32(len(segment))
	for _, part := range [][]byte{src.AsSlice(), dst.AsSlice(), segment} {
		for ; len(part) >= 2; part = part[2:] {
			sum += uint32(binary.BigEndian.Uint16(part))
		}
		if len(part) == 1 {
			sum += uint32(part[0]) << 8
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
