//go:build kernel

package netfilter

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
	"vipd/lb"
)

// Connections are counted by service, backend and state: what stands, what is half
// closed, but not what ended; those of another port, another backend or another way are not.
//
//lane:vm
func TestFlowsAreCountedByServiceBackendAndState(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		tcp, other := l.tcpServer(l.Backends[0], l.at(0, 8080)), l.tcpServer(l.Backends[1], l.at(1, 8080))
		l.udpServer(l.Backends[0], l.at(0, 8080), "b1")
		b1, b2 := l.at(0, 8080), l.at(1, 8080)
		l.serve(false, "80/tcp", b1.String(), "81/tcp", b1.String(), "80/udp", b1.String())
		stays, atStays := l.connect(l.Client, 5001, 80, tcp)
		ends, atEnds := l.connect(l.Client, 5002, 80, tcp)
		l.connect(l.Client, 5003, 81, tcp)
		if got := ask(t, l.udpClient(l.Client, 5004, 80)); got != "b1" {
			t.Fatal(got)
		}
		l.serve(false, "80/tcp", b2.String())
		l.connect(l.Client, 5005, 80, other)

		tcp80, udp80 := l.key(80, lb.TCP), l.key(80, lb.UDP)
		expect := func(when string, want map[Eviction]FlowCount) {
			t.Helper()
			var wanted []Eviction
			for e := range want {
				wanted = append(wanted, e)
			}
			got, err := CountFlows(t.Context(), wanted...)
			check(t, err)
			for e, n := range want {
				if got[e] != n {
					t.Errorf("%s: %s > %s, way %d: %+v, want %+v", when, e.Key, e.Backend, e.Way, got[e], n)
				}
			}
		}
		expect("at first", map[Eviction]FlowCount{
			{tcp80, b1, ByNAT}:               {Active: 2},
			{tcp80, b1, ByIPVS}:              {},
			{tcp80, b2, ByAny}:               {Active: 1},
			{udp80, b1, ByNAT}:               {Inactive: 1},
			{l.key(82, lb.TCP), b1, ByNAT}:   {},
			{l.key(81, lb.TCP), b1, ByNAT}:   {Active: 1},
			{tcp80, l.at(0, 8081), ByNAT}:    {},
			{l.key(53, lb.UDP), b2, ByNAT}:   {},
			{l.key(443, lb.TCP), b2, ByIPVS}: {},
		})
		check(t, ends.(*net.TCPConn).CloseWrite())
		readEnd(t, atEnds)
		expect("half closed", map[Eviction]FlowCount{{tcp80, b1, ByNAT}: {Active: 1, Inactive: 1}})
		check(t, atEnds.Close())
		readEnd(t, ends)
		// The acknowledgement of the last FIN goes on its own.
		l.eventually("one that has ended does not count", func() bool {
			got, err := CountFlows(t.Context(), Eviction{tcp80, b1, ByNAT})
			check(t, err)
			return got[Eviction{tcp80, b1, ByNAT}] == FlowCount{Active: 1}
		})
		exchange(t, stays, atStays)
	})
}

// readEnd waits for the FIN of the peer.
func readEnd(t *testing.T, conn net.Conn) {
	t.Helper()
	check(t, conn.SetReadDeadline(time.Now().Add(ipTimeout)))
	if n, err := conn.Read(make([]byte, 1)); err == nil || n > 0 {
		t.Fatalf("%d bytes in place of the end", n)
	}
}

// eventually waits for what the kernel does by itself.
func (l *flowLab) eventually(what string, holds func() bool) {
	l.t.Helper()
	for end := time.Now().Add(ipTimeout); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("not in %s: %s; %v", ipTimeout, what, l.entries())
		}
	}
}

// A SYN that nobody answers yet is a connection.
func TestASynWithoutAnAnswerCounts(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		backend := l.at(0, 8080)
		icmp := map[Family]string{IPv4: "iptables-nft", IPv6: "ip6tables-nft"}[FamilyOf(l.vip)]
		l.Backends[0].Run(t, icmp, "-A", "INPUT", "-p", "tcp", "-j", "DROP")
		l.serve(false, "80/tcp", backend.String())
		d := net.Dialer{Timeout: quiet}
		conn, err := l.Client.Dial(t.Context(), d, "tcp", net.JoinHostPort(l.vip.String(), "80"))
		if err == nil {
			closeAny(conn)
			t.Fatal("answered")
		}
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Fatal(err)
		}
		e := Eviction{l.key(80, lb.TCP), backend, ByNAT}
		got, err := CountFlows(t.Context(), e)
		check(t, err)
		if (got[e] != FlowCount{Inactive: 1}) {
			t.Errorf("%+v", got[e])
		}
		l.Backends[0].Run(t, icmp, "-F", "INPUT")
	})
}

// What a count costs in a table of 100,000; the figures are printed.
func TestCountInALargeTable(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	const size = 100_000
	c, err := OpenConntrack(nil)
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	service := lb.Key{Addr: vip4, Port: 53, Protocol: lb.UDP}
	busy, drains := netip.MustParseAddrPort("10.2.0.11:8080"), netip.MustParseAddrPort("10.2.0.11:8081")
	for backend, n := range map[netip.AddrPort]uint32{busy: size, drains: 7} {
		fill(t, c, n, func(i uint32) message {
			client := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 0x0a800000+i)))
			return udpEntry(netip.AddrPortFrom(client, backend.Port()), service.AddrPort(), backend)
		})
	}
	many := []Eviction{{service, drains, ByAny}}
	for port := range uint16(wideFrom) {
		many = append(many, Eviction{Key: lb.Key{Addr: vip4, Port: 1000 + port, Protocol: lb.UDP}, Backend: drains})
	}
	for name, wanted := range map[string][]Eviction{"one drain of one service": many[:1], "drains of many services": many} {
		var user, later unix.Rusage
		check(t, unix.Getrusage(unix.RUSAGE_SELF, &user))
		start := time.Now()
		got, err := CountFlows(t.Context(), wanted...)
		took := time.Since(start)
		check(t, err)
		check(t, unix.Getrusage(unix.RUSAGE_SELF, &later))
		cpu := time.Duration(later.Utime.Nano() + later.Stime.Nano() - user.Utime.Nano() - user.Stime.Nano())
		t.Logf("%s: %s, %s of the processor", name, took, cpu)
		if got[many[0]].Inactive != 7 || len(got) != len(wanted) {
			t.Errorf("%s: %+v of %d", name, got[many[0]], len(got))
		}
	}
}
