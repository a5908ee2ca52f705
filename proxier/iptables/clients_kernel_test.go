//go:build kernel

package iptables

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
)

// clientWorld is this mode on the running kernel, with a host before it that is
// any number of clients, and one behind it that is any number of backends, by port.
type clientWorld struct {
	*harness
	t      *testing.T
	vip    lb.Key
	lab    *kerneltest.Lab
	raw    int      // the clients' socket, which sends packets as they are
	port   uint16   // of the clients: another one each round
	came   chan hit // to the backends
	closed context.Context
	close  func()
}

// hit is a packet of a client that has come to a backend.
type hit struct {
	port            uint16
	client, backend int
}

const (
	clientBatch  = 200 // packets on the way at a time, so that buffers lose few
	backendPort  = 5000
	clientPacket = 6 // bytes: port and number of the client
)

func newClientWorld(t *testing.T, lab *kerneltest.Lab, vip string, backends int) *clientWorld {
	t.Helper()
	w := &clientWorld{
		harness: realHarness(t), t: t, lab: lab, port: 10000, came: make(chan hit, clientBatch),
		vip: lb.Key{Addr: netip.MustParseAddr(vip), Port: 53, Protocol: lb.UDP},
	}
	f, family := netfilter.FamilyOf(w.vip.Addr), unix.AF_INET
	if f == netfilter.IPv6 {
		family = unix.AF_INET6
	}
	tool(t, "ipset", "-exist", "add", netfilter.SetName(netfilter.SetVIP, f), vip)
	closed, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	w.closed = closed
	var receiving sync.WaitGroup
	for i := range backends {
		c, err := lab.Backends[0].ListenPacket(closed, net.ListenConfig{}, "udp", fmt.Sprintf(":%d", backendPort+i))
		if err != nil {
			t.Fatal(err)
		}
		context.AfterFunc(closed, func() { _ = c.Close() })
		receiving.Go(func() { w.receive(c, i) })
	}
	err := lab.Client.Do(func() (err error) {
		w.raw, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	w.close = sync.OnceFunc(func() {
		stop()
		receiving.Wait()
		_ = unix.Close(w.raw)
	})
	t.Cleanup(w.close)
	return w
}

// receive tells what comes to a backend.
func (w *clientWorld) receive(c net.PacketConn, backend int) {
	b := make([]byte, 64)
	for {
		n, _, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		if n != clientPacket {
			continue
		}
		select {
		case w.came <- hit{binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint32(b[2:])), backend}:
		case <-w.closed.Done():
			return
		}
	}
}

// service is the VIP with the first backends.
func (w *clientWorld) service(backends int, affinity time.Duration) *lb.Service {
	s := &lb.Service{Key: w.vip, Scheduler: lb.WRR, Affinity: affinity}
	a := w.lab.Backends[0].Addr4
	if w.vip.Addr.Is6() {
		a = w.lab.Backends[0].Addr6
	}
	for i := range backends {
		s.Backends = append(s.Backends, lb.Backend{Addr: netip.AddrPortFrom(a, uint16(backendPort+i)), Weight: 1})
	}
	return s
}

func (w *clientWorld) sync(p *Proxier, services ...*lb.Service) {
	w.t.Helper()
	if err := p.Sync(w.t.Context(), lb.NewSnapshot(services...), prune); err != nil {
		w.t.Fatal(err)
	}
}

// round has each client begin a connection, and returns who got it.
func (w *clientWorld) round(clients int) []int {
	w.t.Helper()
	w.port++
	got := make([]int, clients)
	for c := range got {
		got[c] = -1
	}
	for c := 0; c < clients; c += clientBatch {
		w.batch(got, c, min(c+clientBatch, clients))
	}
	return got
}

// batch has some clients begin. Buffers may lose what they send, so those that
// reach nobody send once more on the same connection.
func (w *clientWorld) batch(got []int, from, to int) {
	w.t.Helper()
	for range 20 {
		left := 0
		for c := from; c < to; c++ {
			if got[c] >= 0 {
				continue
			}
			left++
			if err := w.send(c); err != nil {
				w.t.Fatalf("client %d: %v", c, err)
			}
		}
		for patience := time.After(500 * time.Millisecond); left > 0; {
			select {
			case h := <-w.came:
				if h.port == w.port && got[h.client] < 0 {
					got[h.client], left = h.backend, left-1
				}
				continue
			case <-patience:
			}
			break
		}
		if left == 0 {
			return
		}
	}
	w.t.Fatalf("%s: of the clients %d to %d some reach no backend", w.vip, from, to-1)
}

// send makes and sends the packet of a client, from an address of its own.
func (w *clientWorld) send(client int) error {
	udp := binary.BigEndian.AppendUint16(nil, w.port)
	udp = binary.BigEndian.AppendUint16(udp, w.vip.Port)
	udp = append(udp, 0, 8+clientPacket, 0, 0) // no checksum
	udp = binary.BigEndian.AppendUint16(udp, w.port)
	udp = binary.BigEndian.AppendUint32(udp, uint32(client))
	if w.vip.Addr.Is4() {
		to := w.vip.Addr.As4()
		ip := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 10, 200 + byte(client>>16), byte(client >> 8), byte(client)}
		return unix.Sendto(w.raw, append(append(ip, to[:]...), udp...), 0, &unix.SockaddrInet4{Addr: to})
	}
	to := w.vip.Addr.As16()
	from := [16]byte{0xfd, 0, 2, 0, 13: byte(client >> 16), 14: byte(client >> 8), 15: byte(client)}
	binary.BigEndian.PutUint16(udp[6:], checksum(from[:], to[:], []byte{0, unix.IPPROTO_UDP, 0, byte(len(udp))}, udp))
	ip := []byte{0x60, 0, 0, 0, 0, byte(len(udp)), unix.IPPROTO_UDP, 64}
	return unix.Sendto(w.raw, append(append(append(ip, from[:]...), to[:]...), udp...), 0, &unix.SockaddrInet6{Addr: to})
}

// checksum is that of RFC 1071, over parts of even length.
func checksum(parts ...[]byte) uint16 {
	sum := uint32(0)
	for _, p := range parts {
		for ; len(p) > 1; p = p[2:] {
			sum += uint32(binary.BigEndian.Uint16(p))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// until waits for a time of the kernel's clock: timeouts of sets cannot be faked.
func (w *clientWorld) until(when time.Time) {
	timer := time.NewTimer(time.Until(when))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.t.Context().Done():
		w.t.Fatal(w.t.Context().Err())
	}
}
