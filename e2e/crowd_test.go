//go:build kernel

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// crowd is many clients on one host: each has an address of its own of the network
// crowdNet, and all have one socket.
type crowd struct {
	w    *world
	conn *net.UDPConn
}

const (
	crowdNet  = "100.64.0.0/16"
	crowdSize = 10_000
	crowdStep = 200 // asked at a time: fewer than the buffer of a socket holds
)

func newCrowd(w *world) *crowd {
	w.t.Helper()
	w.Client.Run(w.t, "ip", "route", "replace", "local", crowdNet, "dev", "lo")
	w.LB.Run(w.t, "ip", "route", "replace", crowdNet, "via", w.Client.Addr4.String())
	c := &crowd{w: w}
	err := w.Client.Do(func() (err error) {
		c.conn, err = net.ListenUDP("udp4", &net.UDPAddr{})
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.conn.Close() })
	raw, err := c.conn.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) }), err)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// address returns that of a client.
func (c *crowd) address(client int) netip.Addr {
	var a [4]byte
	first := netip.MustParsePrefix(crowdNet).Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(first[:])+uint32(client)+1)
	return netip.AddrFrom4(a)
}

// round has every client ask once, and again if there is no answer, and returns who
// answered each.
func (c *crowd) round(target netip.AddrPort) map[netip.Addr]string {
	c.w.t.Helper()
	answers := map[netip.Addr]string{}
	for first := 0; first < crowdSize; first += crowdStep {
		for try := 1; ; try++ {
			missing := 0
			for client := first; client < first+crowdStep; client++ {
				if a := c.address(client); answers[a] == "" {
					missing++
					c.ask(a, target)
				}
			}
			if missing == 0 {
				break
			}
			if try > 10 {
				c.w.t.Fatalf("%d clients from %s on get no answer", missing, c.address(first))
			}
			c.listen(answers, missing)
		}
	}
	return answers
}

func (c *crowd) ask(from netip.Addr, target netip.AddrPort) {
	c.w.t.Helper()
	source := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
	if _, _, err := c.conn.WriteMsgUDPAddrPort([]byte("hello\n"), source, target); err != nil {
		c.w.t.Fatalf("%s asks %s: %v", from, target, err)
	}
}

// listen takes so many answers, or what comes in time.
func (c *crowd) listen(answers map[netip.Addr]string, count int) {
	c.w.t.Helper()
	buf, oob := make([]byte, 1500), make([]byte, 128)
	_ = c.conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	for range count {
		n, m, _, _, err := c.conn.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		to, parsed := destination(oob[:m])
		if err := errors.Join(err, parsed); err != nil {
			c.w.t.Fatalf("read an answer: %v", err)
		}
		answers[to], _, _ = strings.Cut(string(buf[:n]), " ") // the name of the backend
	}
}

// destination returns where a datagram was sent to (IP_PKTINFO, ip(7)).
func destination(oob []byte) (netip.Addr, error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, m := range messages {
		if m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 12 {
			return netip.AddrFrom4([4]byte(m.Data[8:12])), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no IP_PKTINFO in %d messages", len(messages))
}

// crowdStays has ten thousand clients, all at once, each at the backend that it met
// first.
func crowdStays(w *world) {
	w.serveAll(8080)
	dns := w.dns(8080, 1, 2, 3)
	dns.more = []string{`affinity_timeout = "1h"`}
	w.run(dns)
	c, target := newCrowd(w), targets(53)[0]
	began := time.Now()
	first := c.round(target)
	by := map[string]int{}
	for client, again := range c.round(target) {
		if by[again]++; again != first[client] {
			w.t.Fatalf("client %s went from %s to %s", client, first[client], again)
		}
	}
	w.t.Logf("%d clients at %v, each asked twice in %s", len(first), by, time.Since(began).Round(time.Millisecond))
	if len(first) != crowdSize || len(by) != 3 {
		w.t.Errorf("%d clients at %v", len(first), by)
	}
}
