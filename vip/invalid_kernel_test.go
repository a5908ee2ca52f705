//go:build kernel

//lane:vm

package vip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
	"vipd/lb"
)

// A stray segment of a backend, far out of the window, is no concern of the client
// nor of this host: the connection lives. Without drop_invalid it passes
// untranslated and draws a RST that ends the connection at the backend. So it is
// for both ways of masquerading.
func TestB52_InvalidPacketsOfBackendsResetNothing(t *testing.T) {
	for _, masq := range []lb.Masquerade{always, never} {
		t.Run(string(masq), func(t *testing.T) {
			inLab(t, masq, 1, func(t *testing.T, w *world, lab *kerneltest.Lab, p place) {
				kerneltest.InMode(t, "iptables")
				stray(t, w, lab, p, translate(masq), func(_, backend *net.TCPConn) { strayFrom(t, lab.Backends[0], backend) })
			})
		})
	}
}

// A stray segment of a client is dropped by the guard and not reset.
func TestB52_InvalidPacketsOfClientsResetNothing(t *testing.T) {
	inLab(t, never, 1, func(t *testing.T, w *world, lab *kerneltest.Lab, p place) {
		kerneltest.InMode(t, "iptables")
		stray(t, w, lab, p, translate(never), func(client, _ *net.TCPConn) { strayFrom(t, lab.Client, client) })
	})
}

// way is how a service gets to its backend: the service, and what a proxier does for it.
type way struct {
	service func(key string, backends ...string) *lb.Service
	lead    func(t *testing.T, w *world, p place, backend string)
}

// translate is the way of iptables.
func translate(masq lb.Masquerade) way {
	return way{func(key string, backends ...string) *lb.Service { return svc(key, masq, backends...) }, dnatTo}
}

// stray holds a connection against a stray segment, with and without drop_invalid.
func stray(t *testing.T, w *world, lab *kerneltest.Lab, p place, by way, send func(client, backend *net.TCPConn)) {
	w.sh(t, fmt.Sprintf("%[1]s -P FORWARD ACCEPT\n%[1]s -P INPUT ACCEPT", p.tool)) // so that only ours is in the way
	to := at(p.backends[0], 8081)
	l, err := lab.Backends[0].Listen(t.Context(), net.ListenConfig{}, "tcp", to)
	fatal(t, err)
	t.Cleanup(func() { _ = l.Close() })
	by.lead(t, w, p, to)
	var list []*lb.Service // of both families: an IPv6 VIP that comes is local a moment later only
	for _, q := range places(lab) {
		list = append(list, by.service(at(q.vip, 80), at(q.backends[0], 8081)), by.service(at(q.idle, 80)))
	}
	for _, drop := range []bool{true, false} {
		d := w.door(t, func(o *Options) { o.DropInvalid, o.Input = drop, list[0].Mode == lb.IPVS })
		clean(t, d, services(list...), fresh)
		client, backend := connected(t, lab.Client, at(p.vip, 80), l)
		send(client, backend)
		err := bothWays(client, backend)
		if drop && err != nil {
			t.Errorf("a stray segment ended the connection: %v", err)
		}
		if !drop && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the control, without drop_invalid: %v; want a reset", err)
		}
	}
}

// What is INVALID and none of ours passes as if vipd was not there: here a RST out
// of nowhere, of another port of the same host.
func TestB52_InvalidPacketsOfOthersPass(t *testing.T) {
	inLab(t, never, 1, func(t *testing.T, w *world, lab *kerneltest.Lab, p place) {
		w.sh(t, fmt.Sprintf("%[1]s -P FORWARD ACCEPT", p.tool))
		backend, client := netip.MustParseAddr(p.backends[0]), netip.MustParseAddr(p.client)
		seen := func(port uint16) bool {
			lab.Client.Run(t, p.tool, "-A", "INPUT", "-p", "tcp", "--sport", fmt.Sprint(port))
			fatal(t, lab.Backends[0].Do(func() error {
				const reset = 0x04
				return sendRaw(backend, client, segmentOf(netip.AddrPortFrom(backend, port), netip.AddrPortFrom(client, 7), 1, 0, reset))
			}))
			fatal(t, ping(t, lab.Backends[0], p.client)) // the RST is there or nowhere
			return !strings.Contains(lab.Client.Run(t, p.tool, "-Z", "INPUT", "-vnL", "INPUT"), "    0     0 ")
		}
		if !seen(8082) {
			t.Error("a packet of another port was dropped")
		}
		lab.Client.Run(t, p.tool, "-F", "INPUT")
		if seen(8080) {
			t.Error("a packet of a backend's port passed")
		}
	})
}

// dnatTo leads the service that inLab made elsewhere.
func dnatTo(t *testing.T, w *world, p place, backend string) {
	w.sh(t, fmt.Sprintf("%[1]s -t nat -I SVC 1 -p tcp -d %[2]s --dport 80 -j DNAT --to-destination %[3]s\n"+
		"%[1]s -t nat -I SVC 1 -p tcp -m set --match-set vipd-masq%[4]d dst,dst -j MARK --set-xmark 0x2000/0x2000\n"+
		"%[1]s -t nat -I SVC 1 -p tcp -j CONNMARK --set-xmark 0x2000/0x2000", p.tool, p.vip, backend, p.family))
}

// connected returns both ends of a new connection over which something has gone.
func connected(t *testing.T, h *kerneltest.Host, addr string, l net.Listener) (client, server *net.TCPConn) {
	t.Helper()
	c, err := h.Dial(t.Context(), net.Dialer{Timeout: 3 * time.Second}, "tcp", addr)
	fatal(t, err)
	t.Cleanup(func() { _ = c.Close() })
	s, err := l.Accept()
	fatal(t, err)
	t.Cleanup(func() { _ = s.Close() })
	client, server = c.(*net.TCPConn), s.(*net.TCPConn)
	fatal(t, bothWays(client, server))
	return client, server
}

// bothWays sends a byte each way.
func bothWays(a, b *net.TCPConn) error {
	for _, way := range [][2]*net.TCPConn{{a, b}, {b, a}, {a, b}} {
		_, err := way[0].Write([]byte("x"))
		if err == nil {
			_ = way[1].SetReadDeadline(time.Now().Add(3 * time.Second))
			_, err = io.ReadFull(way[1], make([]byte, 1))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// strayFrom sends a segment of one byte from the end of a connection to its peer,
// with a number far beyond the window and the right acknowledgement: the RST that
// answers it fits.
func strayFrom(t *testing.T, h *kerneltest.Host, c *net.TCPConn) {
	t.Helper()
	sent, received, err := numbers(c)
	fatal(t, err)
	src, dst := netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(c.RemoteAddr().String())
	const pushACK = 0x18
	segment := segmentOf(src, dst, sent+1<<30, received, pushACK)
	fatal(t, h.Do(func() error { return sendRaw(src.Addr(), dst.Addr(), segment) }))
	// What answers it, if anything does, is there when an echo of the kernel's is
	// back that was asked for later: packets between two hosts keep their order.
	fatal(t, ping(t, h, dst.Addr().String()))
}

// segmentOf is a TCP segment of one byte.
func segmentOf(src, dst netip.AddrPort, seq, ack uint32, flags byte) []byte {
	segment := binary.BigEndian.AppendUint16(nil, src.Port())
	segment = binary.BigEndian.AppendUint16(segment, dst.Port())
	segment = binary.BigEndian.AppendUint32(segment, seq)
	segment = binary.BigEndian.AppendUint32(segment, ack)
	segment = append(segment, 5<<4, flags, 4, 0, 0, 0, 0, 0, 'x')
	binary.BigEndian.PutUint16(segment[16:], checksum(src.Addr(), dst.Addr(), segment))
	return segment
}

func sendRaw(src, dst netip.Addr, segment []byte) error {
	family, from, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: src.As16()}), unix.Sockaddr(&unix.SockaddrInet6{Addr: dst.As16()})
	if src.Is4() {
		family, from, to = unix.AF_INET, &unix.SockaddrInet4{Addr: src.As4()}, &unix.SockaddrInet4{Addr: dst.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Bind(fd, from); err != nil {
		return os.NewSyscallError("bind", err)
	}
	return os.NewSyscallError("sendto", unix.Sendto(fd, segment, 0, to))
}

// numbers returns the next sequence numbers that a connection sends and expects
// (TCP_REPAIR, Documentation of CRIU; needs CAP_NET_ADMIN).
func numbers(c *net.TCPConn) (sent, received uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	const receiveQueue, sendQueue, offWithoutProbe = 1, 2, -1
	queue := func(fd, q int) (uint32, error) {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, q); err != nil {
			return 0, err
		}
		n, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		return uint32(n), err
	}
	controlErr := raw.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
			return
		}
		var sendErr, receiveErr error
		sent, sendErr = queue(int(fd), sendQueue)
		received, receiveErr = queue(int(fd), receiveQueue)
		err = errors.Join(sendErr, receiveErr, unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, offWithoutProbe))
	})
	return sent, received, errors.Join(controlErr, err)
}

// checksum is that of TCP over the pseudo header (RFC 9293, 3.1).
func checksum(src, dst netip.Addr, segment []byte) uint16 {
	sum := uint32(unix.IPPROTO_TCP) + uint32(len(segment))
	for _, part := range [][]byte{src.AsSlice(), dst.AsSlice(), append(segment[:len(segment):len(segment)], 0)} {
		for ; len(part) >= 2; part = part[2:] {
			sum += uint32(binary.BigEndian.Uint16(part))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
