//go:build kernel

package iptables

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
)

// TestB5_B4_SCTPAssociationsAreBalanced sends INIT chunks, with which associations
// begin, on a kernel that need not have sockets for them. The lane of the virtual
// machine makes whole associations (e2e).
//
//lane:vm
func TestB5_B4_SCTPAssociationsAreBalanced(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	lab := kerneltest.NewLab(t, 2)
	h := realHarness(t)
	evictor := netfilter.NewEvictor(netfilter.DefaultMark, quietLog)
	defer func() { _ = evictor.Close() }()
	p := h.proxierWith(evictor)
	for _, vip := range []string{"192.0.2.10", "2001:db8::10"} {
		w := newSCTPWorld(t, lab, netip.MustParseAddr(vip))
		s := svc(w.vip.String(), w.backend(0).String(), w.backend(1).String())
		tcp := svc(netip.AddrPortFrom(w.vip.Addr, w.vip.Port).String(), netip.AddrPortFrom(w.backend(0).Addr(), 1).String())
		sync := func(services ...*lb.Service) {
			t.Helper()
			if err := p.Sync(t.Context(), lb.NewSnapshot(services...), prune); err != nil {
				t.Fatal(err)
			}
			if err := evictor.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		sync(s, tcp)
		var of [2]int
		for port := range uint16(100) {
			of[w.begin(10000+port)]++
		}
		if of[0] < 20 || of[1] < 20 {
			t.Errorf("%s: the backends have %d and %d of 100 associations", vip, of[0], of[1])
		}
		first := w.begin(20000)
		if again := w.begin(20000); again != first {
			t.Errorf("%s: an INIT that is sent again goes to another backend", vip)
		}
		draining := *s
		draining.Backends = append([]lb.Backend(nil), s.Backends...)
		draining.Backends[first].Draining = true
		sync(&draining, tcp)
		if now := w.begin(20000); now == first {
			t.Errorf("%s: the association stays with a backend that gets nothing new", vip)
		}
		s.Affinity = time.Minute
		sync(s, tcp)
		stuck := w.begin(30000)
		for port := range uint16(20) {
			if now := w.begin(30001 + port); now != stuck {
				t.Fatalf("%s: with affinity the client goes from backend %d to %d", vip, stuck, now)
			}
		}
	}
}

// sctpWorld is a client that sends INIT chunks, and two backends that wait for them.
type sctpWorld struct {
	t      *testing.T
	lab    *kerneltest.Lab
	vip    lb.Key
	client int
	server [2]int
}

const sctpPort = 3868 // of the backends

func newSCTPWorld(t *testing.T, lab *kerneltest.Lab, vip netip.Addr) *sctpWorld {
	t.Helper()
	w := &sctpWorld{t: t, lab: lab, vip: lb.Key{Addr: vip, Port: 80, Protocol: lb.SCTP}}
	tool(t, "ipset", "-exist", "add", netfilter.SetName(netfilter.SetVIP, netfilter.FamilyOf(vip)), vip.String())
	family := unix.AF_INET
	if vip.Is6() {
		family = unix.AF_INET6
	}
	open := func(h *kerneltest.Host) (fd int) {
		err := h.Do(func() (err error) {
			fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	w.client, w.server = open(lab.Client), [2]int{open(lab.Backends[0]), open(lab.Backends[1])}
	for _, fd := range w.server {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 10_000}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *sctpWorld) backend(i int) netip.AddrPort {
	if w.vip.Addr.Is6() {
		return netip.AddrPortFrom(w.lab.Backends[i].Addr6, sctpPort)
	}
	return netip.AddrPortFrom(w.lab.Backends[i].Addr4, sctpPort)
}

// begin sends an INIT from that port, and returns which backend gets it.
func (w *sctpWorld) begin(port uint16) int {
	w.t.Helper()
	packet := initChunk(port, w.vip.Port)
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: w.vip.Addr.As16()}
	if w.vip.Addr.Is4() {
		to = &unix.SockaddrInet4{Addr: w.vip.Addr.As4()}
	}
	if err := unix.Sendto(w.client, packet, 0, to); err != nil {
		w.t.Fatal(err)
	}
	b := make([]byte, 2048)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		for i, fd := range w.server {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				w.t.Fatal(err)
			}
			got := b[:n]
			if w.vip.Addr.Is4() {
				got = got[20:] // the IP header
			}
			if binary.BigEndian.Uint16(got) == port && binary.BigEndian.Uint16(got[2:]) == sctpPort {
				return i
			}
		}
	}
	w.t.Fatalf("%s: an INIT from port %d gets to no backend", w.vip, port)
	return -1
}

// initChunk is a packet of SCTP with nothing but an INIT (RFC 9260, section 3.3.2).
func initChunk(from, to uint16) []byte {
	p := binary.BigEndian.AppendUint16(nil, from)
	p = binary.BigEndian.AppendUint16(p, to)
	p = append(p, 0, 0, 0, 0, 0, 0, 0, 0) // no tag yet; the checksum
	p = append(p, 1, 0, 0, 20)            // INIT, its length
	p = append(p, 0, 0, byte(from>>8), byte(from)|1, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1)
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}
