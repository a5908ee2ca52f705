//go:build kernel

package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
	"vipd/lb"
)

const (
	testMark  = 0x2000
	markMask  = "0x2000/0x2000"
	ipTimeout = 5 * time.Second // how long a test waits for a packet that has to come
	quiet     = 300 * time.Millisecond
)

var (
	vip4 = netip.MustParseAddr("192.0.2.10")
	vip6 = netip.MustParseAddr("2001:db8::10")
)

// flowLab is a Lab with the rules that vipd makes, made by hand: guard, FORWARD
// with policy DROP that lets through what bears the connmark, and DNAT.
type flowLab struct {
	*kerneltest.Lab
	t    *testing.T
	vip  netip.Addr
	b    [2]netip.Addr // the backends' addresses in the family of the VIP
	ct   *Conntrack
	logs *bytes.Buffer
}

// eachFamily runs a test with a flowLab of each family, in namespaces of its own.
func eachFamily(t *testing.T, run func(t *testing.T, l *flowLab)) {
	t.Helper()
	if !kerneltest.Isolate(t) {
		return
	}
	lab := kerneltest.NewLab(t, 2)
	lab.LB.Run(t, "ip", "link", "add", "vipd0", "type", "bridge")
	lab.LB.Run(t, "ip", "link", "set", "vipd0", "up")
	for _, h := range []*kerneltest.Host{lab.LB, lab.Client, lab.Backends[0], lab.Backends[1]} {
		h.SetSysctl(t, "net.ipv4.icmp_ratemask", "0")
		h.SetSysctl(t, "net.ipv6.icmp.ratemask", "")
	}
	for _, f := range Families {
		t.Run(f.String(), func(t *testing.T) { run(t, newFlowLab(t, lab, f)) })
	}
}

func newFlowLab(t *testing.T, lab *kerneltest.Lab, f Family) *flowLab {
	t.Helper()
	l := &flowLab{Lab: lab, t: t, vip: vip4, b: [2]netip.Addr{lab.Backends[0].Addr4, lab.Backends[1].Addr4}, logs: &bytes.Buffer{}}
	icmp, bits := "icmp", "32"
	if f == IPv6 {
		l.vip, l.b = vip6, [2]netip.Addr{lab.Backends[0].Addr6, lab.Backends[1].Addr6}
		icmp, bits = "ipv6-icmp", "128"
	}
	lab.LB.Run(t, "ip", "addr", "add", l.vip.String()+"/"+bits, "dev", "vipd0", "nodad")
	vip := l.vip.String()
	l.rules("filter", `
:VIPD-IN -
:VIPD-FWD -
-P FORWARD DROP
-A VIPD-IN -p `+icmp+` -j ACCEPT
-A VIPD-IN -m conntrack --ctstate INVALID -j DROP
-A VIPD-IN -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A VIPD-IN -p tcp -j REJECT --reject-with tcp-reset
-A VIPD-IN -j REJECT
-A VIPD-FWD -j ACCEPT
-A INPUT -d `+vip+` -j VIPD-IN
-A FORWARD -m connmark --mark `+markMask+` -j VIPD-FWD`)
	l.rules("nat", `
:VIPD-SVC -
:TEST -
:VIPD-POST -
-A VIPD-SVC -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN
-A VIPD-SVC -j CONNMARK --set-xmark `+markMask+`
-A VIPD-SVC -g TEST
-A PREROUTING -d `+vip+` -j VIPD-SVC
-A OUTPUT -d `+vip+` -j VIPD-SVC
-A VIPD-POST -m mark --mark `+markMask+` -j MASQUERADE --random-fully
-A VIPD-POST -s `+vip+` -m connmark --mark `+markMask+` -j MASQUERADE --random-fully
-A POSTROUTING -j VIPD-POST`)
	var err error
	if l.ct, err = OpenConntrack(slog.New(slog.NewTextHandler(l.logs, nil))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, l.ct.Close()) })
	return l
}

// rules loads lines into a table of the VIP's family.
func (l *flowLab) rules(table, lines string) {
	l.t.Helper()
	tool := "iptables-nft-restore"
	if FamilyOf(l.vip) == IPv6 {
		tool = "ip6tables-nft-restore"
	}
	cmd := l.LB.Command(l.t.Context(), tool, "--noflush")
	cmd.Stdin = strings.NewReader("*" + table + lines + "\nCOMMIT\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("%s: %v\n%s%s", tool, err, out, lines)
	}
}

// serve makes the DNAT rules: for each pair "80/tcp", "10.2.0.11:8080" one rule in
// place of all that stood. masq lets all of them be masqueraded.
func (l *flowLab) serve(masq bool, pairs ...string) {
	l.t.Helper()
	lines := "\n-F TEST"
	if masq {
		lines += "\n-A TEST -j MARK --set-xmark " + markMask
	}
	for i := 0; i < len(pairs); i += 2 {
		port, proto, _ := strings.Cut(pairs[i], "/")
		lines += fmt.Sprintf("\n-A TEST -p %s -m %s --dport %s -j DNAT --to-destination %s", proto, proto, port, pairs[i+1])
	}
	l.rules("nat", lines)
}

// at returns backend i at a port.
func (l *flowLab) at(i int, port uint16) netip.AddrPort { return netip.AddrPortFrom(l.b[i], port) }

func (l *flowLab) key(port uint16, p lb.Protocol) lb.Key {
	return lb.Key{Addr: l.vip, Port: port, Protocol: p}
}

// evict evicts and checks how many entries went.
func (l *flowLab) evict(deleted int, evictions ...Eviction) Evicted {
	l.t.Helper()
	done, err := l.ct.Evict(l.t.Context(), evictions...)
	if err != nil {
		l.t.Fatal(err)
	}
	if done.Deleted != deleted {
		l.t.Errorf("%d entries deleted, want %d; log: %s", done.Deleted, deleted, l.logs)
	}
	return done
}

// entries lists the TCP and UDP entries of the family as conntrack(8) shows it, without what changes by itself.
func (l *flowLab) entries() map[string]bool {
	l.t.Helper()
	family := "ipv4"
	if FamilyOf(l.vip) == IPv6 {
		family = "ipv6"
	}
	cmd := l.LB.Command(l.t.Context(), "conntrack", "-L", "-f", family)
	out, err := cmd.Output()
	if err != nil {
		l.t.Fatal(err)
	}
	entries := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "tcp") && !strings.HasPrefix(line, "udp") {
			continue // the bridge that stands in for a dummy device joins groups by itself
		}
		var words []string
		for i, word := range strings.Fields(line) {
			if strings.Contains(word, "=") || i == 0 {
				words = append(words, word)
			}
		}
		entries[strings.Join(words, " ")] = true
	}
	return entries
}

// udpServer answers every datagram on a host by a name.
func (l *flowLab) udpServer(h *kerneltest.Host, at netip.AddrPort, name string) {
	l.t.Helper()
	conn, err := h.ListenPacket(l.t.Context(), net.ListenConfig{}, "udp", at.String())
	check(l.t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			_, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if _, err := conn.WriteTo([]byte(name), from); err != nil && !errors.Is(err, net.ErrClosed) {
				l.t.Errorf("%s: %v", name, err)
			}
		}
	}()
	l.t.Cleanup(func() { check(l.t, conn.Close()); <-done })
}

// udpClient is a client with a fixed source port.
func (l *flowLab) udpClient(h *kerneltest.Host, source, port uint16) net.Conn {
	l.t.Helper()
	from := h.Addr4
	if FamilyOf(l.vip) == IPv6 {
		from = h.Addr6
	}
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, source))}
	conn, err := h.Dial(l.t.Context(), d, "udp", netip.AddrPortFrom(l.vip, port).String())
	check(l.t, err)
	l.t.Cleanup(func() { check(l.t, conn.Close()) })
	return conn
}

// ask sends one datagram and returns the answer: a name, "refused" or "silence".
func ask(t *testing.T, conn net.Conn) string {
	t.Helper()
	check(t, conn.SetDeadline(time.Now().Add(quiet)))
	if _, err := conn.Write([]byte("?")); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	n, err := conn.Read(b)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "silence"
	case err != nil:
		t.Fatal(err)
	}
	return string(b[:n])
}

// tcpServer listens on a host; what it accepts comes out of the channel.
func (l *flowLab) tcpServer(h *kerneltest.Host, at netip.AddrPort) <-chan net.Conn {
	l.t.Helper()
	listener, err := h.Listen(l.t.Context(), net.ListenConfig{KeepAlive: -1}, "tcp", at.String())
	check(l.t, err)
	accepted := make(chan net.Conn, 16)
	go func() {
		defer close(accepted)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	l.t.Cleanup(func() {
		check(l.t, listener.Close())
		for conn := range accepted {
			closeAny(conn)
		}
	})
	return accepted
}

// connect makes a TCP connection to the VIP from a source port (0: any) and
// returns both ends.
func (l *flowLab) connect(h *kerneltest.Host, source, port uint16, server <-chan net.Conn) (client, backend net.Conn) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), ipTimeout)
	defer cancel()
	d := net.Dialer{KeepAlive: -1, Control: reuseAddress}
	if source != 0 {
		d.LocalAddr = &net.TCPAddr{Port: int(source)}
	}
	client, err := h.Dial(ctx, d, "tcp", netip.AddrPortFrom(l.vip, port).String())
	if err != nil {
		l.t.Fatalf("connect from port %d: %v", source, err)
	}
	l.t.Cleanup(func() { closeAny(client) })
	select {
	case backend = <-server:
	case <-ctx.Done():
		l.t.Fatal("another backend has accepted the connection")
	}
	l.t.Cleanup(func() { closeAny(backend) })
	exchange(l.t, client, backend)
	exchange(l.t, backend, client)
	return client, backend
}

func reuseAddress(_, _ string, c syscall.RawConn) (err error) {
	err2 := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) })
	return errors.Join(err, err2)
}

// exchange sends a byte from one end to the other.
func exchange(t *testing.T, from, to net.Conn) {
	t.Helper()
	check(t, to.SetReadDeadline(time.Now().Add(ipTimeout)))
	_, err := from.Write([]byte("x"))
	check(t, err)
	_, err = to.Read(make([]byte, 1))
	check(t, err)
}

// isReset waits for the end of an idle connection.
func isReset(t *testing.T, name string, conn net.Conn) {
	t.Helper()
	check(t, conn.SetReadDeadline(time.Now().Add(ipTimeout)))
	start := time.Now()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s: after %s: %v, want a reset", name, time.Since(start), err)
	}
}

// closeAny closes what may be closed or reset already.
func closeAny(conn net.Conn) { _ = conn.Close() }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// withoutCapability runs f on a thread that lacks a capability, which ends then.
func withoutCapability(capability int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&header, &data[0]); err != nil {
			done <- err
			return
		}
		data[capability/32].Effective &^= 1 << (capability % 32)
		if err := unix.Capset(&header, &data[0]); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}
