package loss

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var loopbacks = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("[::1]:0")}

func serve(t *testing.T, name string) *Server {
	t.Helper()
	s, err := Serve(t.Context(), ServerOptions{Name: name, TCP: loopbacks, UDP: loopbacks})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// misbehave listens on loopback and does to each connection what f does.
func misbehave(t *testing.T, f func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var conns []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			conns = append(conns, c)
			f(c.(*net.TCPConn))
		}
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// closedPort returns an address where nobody listens.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	s := serve(t, "gone")
	s.Close()
	return s.TCP[0]
}

// misanswer is a UDP server that answers each datagram with what f makes of it.
func misanswer(t *testing.T, f func(request string) []string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(loopbacks[0]))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, answer := range f(strings.TrimSpace(string(buf[:n]))) {
				_, _ = c.WriteToUDPAddrPort([]byte(answer), from)
			}
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// waitFor asks until it is so.
func waitFor(t *testing.T, so func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited for 10 s")
		}
	}
}

// check compares the classes of a tally and that they add up.
func check(t *testing.T, got Tally, want map[Class]int) {
	t.Helper()
	sum := 0
	for _, c := range Classes() {
		sum += got.Classes[c]
		if got.Classes[c] != want[c] {
			t.Errorf("%d %s, want %d; %+v", got.Classes[c], c, want[c], got.Examples)
		}
	}
	if sum != got.Total {
		t.Errorf("the classes add up to %d of %d", sum, got.Total)
	}
}

func TestConnectionsAreCountedByClass(t *testing.T) {
	good := serve(t, "good")
	tests := []struct {
		name   string
		target netip.AddrPort
		want   Class
	}{
		{"answered over IPv4", good.TCP[0], OK},
		{"answered over IPv6", good.TCP[1], OK},
		{"nobody listens", closedPort(t), Refused},
		{"reset before the answer", misbehave(t, func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() }), Reset},
		{"closed before the answer", misbehave(t, func(c *net.TCPConn) { _, _ = c.Read(make([]byte, 99)); _ = c.Close() }), Reset},
		{"never answered", misbehave(t, func(*net.TCPConn) {}), Timeout},
		{"garbled answer", misbehave(t, func(c *net.TCPConn) { _, _ = io.WriteString(c, "what?\n") }), Failed},
		{"answer to another request", misbehave(t, func(c *net.TCPConn) { _, _ = io.WriteString(c, "b 127.0.0.1:1 0\n") }), Failed},
		{"no end to the answer", misbehave(t, func(c *net.TCPConn) { _, _ = io.WriteString(c, strings.Repeat("x", 5000)) }), Failed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := Start(t.Context(), Options{Deadline: 400 * time.Millisecond})
			l.Connect(Connections{Target: tt.target, Rate: 200, Count: 20})
			r := l.Wait()
			check(t, r.Connections, map[Class]int{tt.want: 20})
			if lost := r.Lost(); (lost == 0) != (tt.want == OK) || r.Total() != 20 {
				t.Errorf("lost %d of %d", lost, r.Total())
			}
		})
	}
}

// TestRetransmittedSYNIsSeen fills the queue of a listener, so that the kernel
// drops a SYN as a load balancer in a bad moment would, and then empties it.
func TestRetransmittedSYNIsSeen(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := errors.Join(unix.Bind(fd, sockaddr(loopbacks[0])), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, _ := unix.Getsockname(fd)
	target := netip.AddrPortFrom(loopbacks[0].Addr(), uint16(name.(*unix.SockaddrInet4).Port))
	first, err := open(unix.SOCK_STREAM, target, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer first.close()
	if again, err := first.established(); again || err != nil {
		t.Fatalf("the first connection: retransmitted %v, %v", again, err)
	}
	second, err := open(unix.SOCK_STREAM, target, 0) // its SYN finds the queue full
	if err != nil {
		t.Fatal(err)
	}
	defer second.close()
	accepted, _, err := unix.Accept(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(accepted) }()
	defer second.until(t.Context(), time.Now().Add(5*time.Second))()
	if again, err := second.established(); !again || err != nil {
		t.Errorf("the second connection: retransmitted %v, %v", again, err)
	}
}

func TestForbiddenBackendIsWrong(t *testing.T) {
	s := serve(t, "drained")
	l := Start(t.Context(), Options{})
	held := l.Hold(Hold{Target: s.TCP[0], Count: 2})
	l.Forbid("drained")
	l.Connect(Connections{Target: s.TCP[0], Rate: 1000, Count: 5})
	l.Send(Flows{Target: s.UDP[0], Count: 1, Every: time.Millisecond, Each: 5})
	waitFor(t, func() bool { return l.Report().Total() == 10 })
	r := l.Stop()
	check(t, r.Connections, map[Class]int{Wrong: 5})
	check(t, r.Datagrams, map[Class]int{Wrong: 5})
	check(t, r.Held, map[Class]int{OK: 2}) // the established ones stay its own
	if by := held.By(); by["drained"] != 2 {
		t.Errorf("held by %v", by)
	}

	l = Start(t.Context(), Options{})
	l.Forbid("drained")
	l.Allow("drained")
	l.Connect(Connections{Target: s.TCP[0], Rate: 1000, Count: 5})
	check(t, l.Wait().Connections, map[Class]int{OK: 5})
}

func TestDatagramsAreCountedByClass(t *testing.T) {
	good := serve(t, "good")
	tests := []struct {
		name   string
		target netip.AddrPort
		want   Class
	}{
		{"answered over IPv4", good.UDP[0], OK},
		{"answered over IPv6", good.UDP[1], OK},
		{"nobody listens", closedPort(t), Refused},
		{"never answered", misanswer(t, func(string) []string { return nil }), Timeout},
		{"answered twice", misanswer(t, func(r string) []string { return []string{"b 1.1.1.1:1 " + r, "b 1.1.1.1:1 " + r} }), Duplicate},
		{"garbled answer", misanswer(t, func(r string) []string { return []string{"b " + r} }), Failed},
		{"answer to another request", misanswer(t, func(string) []string { return []string{"b 1.1.1.1:1 0"} }), Timeout},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := Start(t.Context(), Options{Deadline: 300 * time.Millisecond})
			l.Send(Flows{Target: tt.target, Count: 3, Every: 5 * time.Millisecond, Each: 6})
			// The last answer of each flow may come twice after the account is closed.
			r, want := l.Wait(), map[Class]int{tt.want: 18}
			if tt.want == Duplicate && r.Datagrams.Classes[OK] <= 3 {
				want[OK] = r.Datagrams.Classes[OK]
				want[Duplicate] -= want[OK]
			}
			check(t, r.Datagrams, want)
		})
	}
}

func TestHeldConnectionThatBreaksIsSeenAtOnce(t *testing.T) {
	for _, every := range []time.Duration{0, time.Hour, 5 * time.Millisecond} {
		s := serve(t, "b")
		l := Start(t.Context(), Options{})
		held := l.Hold(Hold{Target: s.TCP[0], Count: 3, Every: every})
		if by := held.By(); by["b"] != 3 {
			t.Fatalf("held by %v", by)
		}
		s.Close()
		r := l.Wait() // all three end by themselves
		check(t, r.Held, map[Class]int{Reset: 3})
		for _, c := range held.Conns() {
			if ClassOf(c.Err) != Reset || c.Backend != "b" || c.Exchanges < 1 {
				t.Errorf("every %s: %+v", every, c)
			}
		}
	}
}

func TestHeldConnectionsExchangeUntilStop(t *testing.T) {
	s := serve(t, "b")
	l := Start(t.Context(), Options{})
	busy := l.Hold(Hold{Target: s.TCP[1], Count: 2, Every: time.Millisecond})
	idle := l.Hold(Hold{Target: s.TCP[0], Count: 2})
	waitFor(t, func() bool {
		conns := busy.Conns()
		return conns[0].Exchanges >= 5 && conns[1].Exchanges >= 5
	})
	check(t, l.Stop().Held, map[Class]int{OK: 4})
	for _, c := range idle.Conns() {
		if c.Exchanges != 2 {
			t.Errorf("an idle connection had %d exchanges, want the first and the last", c.Exchanges)
		}
	}
}

func TestOpenLoopDoesNotWaitForAnswers(t *testing.T) {
	target := misbehave(t, func(*net.TCPConn) {})
	l := Start(t.Context(), Options{Deadline: 2 * time.Second})
	begin := time.Now()
	l.Connect(Connections{Target: target, Rate: 500, Count: 100})
	r := l.Wait()
	check(t, r.Connections, map[Class]int{Timeout: 100})
	// One after the other they would take 200 s.
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestContextEndsEverythingAndNothingIsForgotten(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	silent := misanswer(t, func(string) []string { return nil })
	mute := misbehave(t, func(c *net.TCPConn) {
		if c.RemoteAddr() != nil {
			cancel() // once a connection stands
		}
	})
	l := Start(ctx, Options{Deadline: time.Hour})
	l.Send(Flows{Target: silent, Count: 2, Every: time.Millisecond})
	l.Connect(Connections{Target: mute, Rate: 100})
	r := l.Wait()
	if r.Connections.Total == 0 {
		t.Error("no connection was counted")
	}
	check(t, r.Connections, map[Class]int{Failed: r.Connections.Total})
	check(t, r.Datagrams, map[Class]int{Failed: r.Datagrams.Total})
}

func TestBrokenNamespaceIsAFault(t *testing.T) {
	broken := In(func(func() error) error { return errors.New("no such namespace") })
	target := netip.MustParseAddrPort("127.0.0.1:1")
	l := Start(t.Context(), Options{In: broken})
	l.Connect(Connections{Target: target, Rate: 1, Count: 1})
	l.Send(Flows{Target: target, Count: 1, Every: time.Second})
	l.Hold(Hold{Target: target, Count: 1})
	r := l.Wait()
	for _, tally := range []Tally{r.Connections, r.Held, r.Datagrams} {
		check(t, tally, map[Class]int{Failed: 1})
	}
	if _, err := Serve(t.Context(), ServerOptions{Name: "b", In: broken}); err == nil {
		t.Error("Serve says nothing")
	}
	if _, err := Serve(t.Context(), ServerOptions{Name: "two words"}); err == nil {
		t.Error("a name with a space was taken")
	}
}

func TestAskSeesClientAndSize(t *testing.T) {
	s := serve(t, "b1")
	for _, tt := range []struct {
		network string
		target  netip.AddrPort
		size    int
	}{{"tcp", s.TCP[0], 0}, {"tcp", s.TCP[1], 1 << 20}, {"udp", s.UDP[0], 0}, {"udp", s.UDP[1], 60000}} {
		a, err := Request{Network: tt.network, Target: tt.target, Size: tt.size}.Ask(t.Context())
		if err != nil || a.Backend != "b1" || a.Client.Addr() != tt.target.Addr() {
			t.Errorf("%s %s %d: %+v, %v", tt.network, tt.target, tt.size, a, err)
		}
	}
	if _, err := (Request{Network: "tcp", Target: closedPort(t)}).Ask(t.Context()); ClassOf(err) != Refused {
		t.Errorf("a closed TCP port: %v", err)
	}
	if _, err := (Request{Network: "udp", Target: closedPort(t)}).Ask(t.Context()); ClassOf(err) != Refused {
		t.Errorf("a closed UDP port: %v", err)
	}
	if n, by := s.Requests(), s.Clients(); n != 4 || by[loopbacks[0].Addr()] != 2 || by[loopbacks[1].Addr()] != 2 {
		t.Errorf("%d requests, clients %v", n, by)
	}
}

func TestSourcePortIsKept(t *testing.T) {
	s := serve(t, "b")
	a, err := Request{Network: "udp", Target: s.UDP[0], Port: 19999}.Ask(t.Context())
	if err != nil || a.Client.Port() != 19999 {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestReportReadsWellAndTravels(t *testing.T) {
	r := Report{
		Elapsed: 2 * time.Second,
		Connections: Tally{Total: 3, Classes: map[Class]int{OK: 2, Refused: 1}, Backends: map[string]int{"b2": 1, "b1": 1}, Longest: time.Millisecond,
			Examples: []Example{{Refused, "refused: connect to 192.0.2.10:80", 1, time.Second, time.Second}}},
		Datagrams: Tally{Total: 1, Classes: map[Class]int{Timeout: 1}},
	}
	want := `connections                   2 ok, 1 refused (longest 1ms)
  by backend                  b1 1, b2 1
datagrams                     0 ok, 1 timeout (longest 0s)
  by backend                  none answered
lost                          2 of 4 in 2s
  1 connections  refused: connect to 192.0.2.10:80, from 1s to 1s
`
	fold := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	if fold(r.String()) != fold(want) {
		t.Errorf("got\n%s\nwant\n%s", r, want)
	}
	text, err := json.Marshal(r)
	if err != nil || !strings.Contains(string(text), `"classes":{"ok":2,"refused":1}`) {
		t.Errorf("%s, %v", text, err)
	}
}
