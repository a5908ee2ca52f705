//go:build kernel

package iptables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
)

// agreeCases is how many random first packets the tracer and the kernel are asked
// about.
const agreeCases = 1000

// TestTheTracerAgreesWithTheKernel asks both who gets a packet, a thousand times:
// to services and beside them, of all protocols, while services come and go.
func TestTheTracerAgreesWithTheKernel(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	for _, args := range []string{"-4 route add local 10.0.0.0/8 dev lo", "-4 route add local 100.0.0.0/8 dev lo", "-6 route add local fc00::/7 dev lo"} {
		tool(t, "ip", strings.Fields(args)...)
	}
	h, rng := realHarness(t), rand.New(rand.NewPCG(2, 7))
	pool := agreePool(t, rng)
	p, wire := h.proxier(), openWire(t)
	now, taken := lb.Snapshot{}, 0
	for i := range agreeCases {
		if i%100 == 0 {
			e := now.Edit()
			for n := range 300 {
				if k := pool[rng.IntN(len(pool))]; rng.IntN(3) == 0 {
					e.Delete(k)
				} else {
					e.Put(randomService(k, n, rng))
				}
			}
			now = e.Snapshot()
			if err := p.Sync(t.Context(), now, prune); err != nil {
				t.Fatal(err)
			}
		}
		k := pool[rng.IntN(len(pool))]
		if near := neighbours(k); rng.IntN(4) == 0 {
			k = near[rng.IntN(len(near))]
		}
		said := h.Served(t, k)
		got := wire.probe(t, k, uint16(20000+i))
		if _, right := said[got]; !right && (len(said) > 0 || got != k.AddrPort()) {
			t.Errorf("%s goes to %s in the kernel; the tracer says %v", k, got, said)
		}
		if len(said) > 0 {
			taken++
		}
	}
	t.Logf("%d packets, %d of them to services", agreeCases, taken)
	if taken < agreeCases/4 || taken > agreeCases*9/10 {
		t.Errorf("%d of %d packets went to services: the test proves little", taken, agreeCases)
	}
}

// agreePool returns keys whose addresses are local here, and puts them into the
// sets of VIPs.
func agreePool(t *testing.T, rng *rand.Rand) (pool []lb.Key) {
	t.Helper()
	for _, set := range keySets {
		switch set.name {
		case "in a row", "random", "three protocols", "1,000 ports", "ipv6 random":
			pool = append(pool, served(set.make(200, rng))...)
		}
	}
	pool = treeOf(pool).all(nil)
	for _, k := range pool {
		for _, a := range []netip.Addr{k.Addr, k.Addr.Next()} {
			tool(t, "ipset", "-exist", "add", netfilter.SetName(netfilter.SetVIP, netfilter.FamilyOf(a)), a.String())
		}
	}
	return pool
}

// randomService has one backend, some, or none that is usable.
func randomService(k lb.Key, number int, rng *rand.Rand) *lb.Service {
	s := serviceOf(k, number<<8)
	one := s.Backends[0].Addr
	s.Backends[0].Weight = uint16(rng.IntN(4))
	for i := range rng.IntN(4) * rng.IntN(8) {
		one = netip.AddrPortFrom(one.Addr().Next(), uint16(1000+i))
		s.Backends = append(s.Backends, lb.Backend{Addr: one, Weight: uint16(rng.IntN(3))})
	}
	if rng.IntN(3) == 0 {
		s.Scheduler = lb.RR
	}
	return s
}

// wire sends packets as they are and sees them on the loopback device, after the
// rules of OUTPUT.
type wire struct{ four, six, tap int }

func openWire(t *testing.T) wire {
	t.Helper()
	open := func(family, kind, protocol int) int {
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	w := wire{open(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW), open(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW),
		open(unix.AF_PACKET, unix.SOCK_DGRAM, unix.ETH_P_ALL<<8)} // in network byte order
	if err := unix.SetsockoptTimeval(w.tap, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		t.Fatal(err)
	}
	return w
}

// probe sends the first packet of a connection from a port, and returns where the
// rules sent it.
func (w wire) probe(t *testing.T, k lb.Key, port uint16) netip.AddrPort {
	t.Helper()
	packet := firstPacket(k, port)
	var err error
	if k.Addr.Is4() {
		err = unix.Sendto(w.four, packet, 0, &unix.SockaddrInet4{Addr: k.Addr.As4()})
	} else {
		err = unix.Sendto(w.six, packet, 0, &unix.SockaddrInet6{Addr: k.Addr.As16()})
	}
	if err != nil {
		t.Fatalf("%s: %v", k, err)
	}
	b := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(w.tap, b, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatalf("%s: the packet is not seen: %v", k, err)
		}
		if from, to, ok := ends(b[:n]); ok && from == netip.AddrPortFrom(sender(k), port) {
			return to
		}
	}
}

// sender is the address from which packets come.
func sender(k lb.Key) netip.Addr {
	if k.Addr.Is4() {
		return netip.AddrFrom4([4]byte{10, 255, 0, 1})
	}
	return netip.AddrFrom16([16]byte{0xfd, 0xff, 15: 1})
}

// ends returns source and destination of a packet.
func ends(p []byte) (from, to netip.AddrPort, ok bool) {
	var a, b netip.Addr
	switch {
	case len(p) > 28 && p[0]>>4 == 4:
		a, _ = netip.AddrFromSlice(p[12:16])
		b, _ = netip.AddrFromSlice(p[16:20])
		p = p[20:]
	case len(p) > 48 && p[0]>>4 == 6:
		a, _ = netip.AddrFromSlice(p[8:24])
		b, _ = netip.AddrFromSlice(p[24:40])
		p = p[40:]
	default:
		return from, to, false
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(p)), netip.AddrPortFrom(b, binary.BigEndian.Uint16(p[2:])), true
}

// firstPacket makes a SYN, a datagram or an INIT.
func firstPacket(k lb.Key, port uint16) []byte {
	head := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, port), k.Port)
	var body []byte
	from, to := sender(k).AsSlice(), k.Addr.AsSlice()
	pseudo := func(at int) {
		sum := checksum(from, to, []byte{0, byte(k.Protocol), 0, byte(len(body))}, body)
		binary.BigEndian.PutUint16(body[at:], sum)
	}
	switch k.Protocol {
	case lb.TCP: // sequence, acknowledgement, length and SYN, window, checksum, urgent
		body = append(head, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0)
		pseudo(16)
	case lb.UDP:
		body = append(head, 0, 12, 0, 0, 1, 2, 3, 4)
		pseudo(6)
	default: // no tag, checksum, INIT: tag, window, streams, TSN
		body = append(head, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 9, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9)
		binary.LittleEndian.PutUint32(body[8:], crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
	}
	if k.Addr.Is4() {
		ip := []byte{0x45, 0, 0, byte(20 + len(body)), 0, 0, 0, 0, 64, byte(k.Protocol), 0, 0}
		return bytes.Join([][]byte{ip, from, to, body}, nil)
	}
	ip := []byte{0x60, 0, 0, 0, 0, byte(len(body)), byte(k.Protocol), 64}
	return bytes.Join([][]byte{ip, from, to, body}, nil)
}
