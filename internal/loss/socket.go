package loss

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// socket is a connected TCP or UDP socket. It is made with system calls of its
// own, since net.Dialer would hold the thread of the namespace until the
// connection stands, and the next one of the schedule would have to wait.
type socket struct {
	file   *os.File
	target netip.AddrPort
	pulse  *pulse      // may be nil
	extend func() bool // see until: puts the deadline off by the time that this process stood still
	buf    []byte      // what was read and is not yet an answer
}

// The size of the buffer for one datagram, the largest that UDP can carry.
const maxDatagram = 65535

// open makes a socket (SOCK_STREAM or SOCK_DGRAM) from the given source port, 0
// for any, and starts to connect it. It does not wait. It must be called in the
// namespace that the socket is for.
func open(kind int, target netip.AddrPort, port uint16) (*socket, error) {
	family := unix.AF_INET
	if target.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	if err := prepare(fd, family, kind, port); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	err = unix.Connect(fd, sockaddr(target))
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		_ = unix.Close(fd)
		return nil, classify(fmt.Errorf("connect to %s: %w", target, err), false)
	}
	return &socket{file: os.NewFile(uintptr(fd), target.String()), target: target}, nil
}

func prepare(fd, family, kind int, port uint16) error {
	if kind == unix.SOCK_STREAM {
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return fmt.Errorf("set SO_LINGER: %w", err)
		}
	}
	unspecified := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		unspecified = netip.IPv6Unspecified()
		// The ports of IPv4 are others.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fmt.Errorf("set IPV6_V6ONLY: %w", err)
		}
	}
	if port == 0 {
		return nil
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(unspecified, port))); err != nil {
		return fmt.Errorf("bind source port %d: %w", port, err)
	}
	return nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// The source ports that a stream of connections goes through, in a circle from a
// random one on: at 500 a second each comes back after 80 s, when the connection
// tracking of the load balancer has long forgotten it.
const firstPort, lastPort = 20000, 60000

// ports is a place in that circle.
type ports struct{ next int }

// jump goes to any other place: away from ports that another stream is using.
func (p *ports) jump() { p.next = firstPort + rand.N(lastPort-firstPort) }

// open is open with the next free source port.
func (p *ports) open(kind int, target netip.AddrPort) (*socket, error) {
	for try := 1; ; try++ {
		if p.next++; p.next >= lastPort {
			p.next = firstPort
		}
		s, err := open(kind, target, uint16(p.next))
		if !errors.Is(err, unix.EADDRINUSE) || try == 64 {
			return s, err
		}
		p.jump()
	}
}

// until makes every wait on the socket end at the deadline (zero: none), or when
// ctx ends. The function it returns undoes the latter; after it a new deadline
// stands, whatever ctx does.
func (s *socket) until(ctx context.Context, deadline time.Time) (release func()) {
	ended := make(chan struct{})
	arm := func(deadline time.Time) func() bool {
		_ = s.file.SetDeadline(deadline)
		return context.AfterFunc(ctx, func() {
			_ = s.file.SetDeadline(time.Unix(1, 0))
			close(ended)
		})
	}
	began, latest, disarm := time.Now(), deadline, arm(deadline)
	s.extend = func() bool {
		later := deadline.Add(s.pulse.since(began))
		if !later.After(latest) || !disarm() {
			return false
		}
		latest, disarm = later, arm(later)
		return true
	}
	return func() {
		if !disarm() {
			<-ended
		}
	}
}

// wait does what may wait, and again if the deadline came while this process stood
// still, which says nothing about the other side.
func (s *socket) wait(do func() error) error {
	for {
		err := do()
		if !errors.Is(err, os.ErrDeadlineExceeded) || s.extend == nil || !s.extend() {
			return err
		}
	}
}

// established waits until the TCP connection stands. It tells whether the SYN
// had to be sent again (tcpi_total_retrans, tcp(7)).
func (s *socket) established() (retransmitted bool, err error) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return false, fmt.Errorf("connect to %s: %w", s.target, err)
	}
	var failure error
	// A second connect(2) asks for the outcome of the first. Waiting for the
	// socket to be writable alone would miss an event that came before the wait.
	err = s.wait(func() error {
		return raw.Write(func(fd uintptr) bool {
			failure = unix.Connect(int(fd), sockaddr(s.target))
			return !errors.Is(failure, unix.EALREADY) && !errors.Is(failure, unix.EINPROGRESS)
		})
	})
	if err == nil && !errors.Is(failure, unix.EISCONN) {
		err = failure
	}
	if err != nil {
		return false, classify(fmt.Errorf("connect to %s: %w", s.target, err), false)
	}
	err = raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, failure = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); failure == nil {
			retransmitted = info.Total_retrans > 0
		}
	})
	if err := errors.Join(err, failure); err != nil && !errors.Is(err, unix.EISCONN) {
		return false, fmt.Errorf("read TCP_INFO: %w", err)
	}
	return retransmitted, nil
}

// send writes one request.
func (s *socket) send(token []byte) error {
	_, err := s.file.Write(append(token[:len(token):len(token)], '\n'))
	return err
}

// exchange asks over an established TCP connection and reads the answer.
func (s *socket) exchange(token []byte) (Answer, error) {
	if err := s.send(token); err != nil {
		return Answer{}, classify(fmt.Errorf("send to %s: %w", s.target, err), true)
	}
	for {
		if i := bytes.IndexByte(s.buf, '\n'); i >= 0 {
			line := s.buf[:i]
			s.buf = append([]byte(nil), s.buf[i+1:]...)
			return parseAnswer(line, token)
		}
		part := make([]byte, min(maxDatagram, 512+len(token)))
		n := 0
		err := s.wait(func() (err error) {
			n, err = s.file.Read(part)
			return err
		})
		if err != nil {
			return Answer{}, classify(fmt.Errorf("read from %s: %w", s.target, err), true)
		}
		if s.buf = append(s.buf, part[:n]...); len(s.buf) > len(token)+1024 {
			return Answer{}, fmt.Errorf("%s answers more than it was asked", s.target)
		}
	}
}

func (s *socket) close() { _ = s.file.Close() }

// Answer is what a server says about a request.
type Answer struct {
	Backend string         `json:"backend"` // the name of the server
	Client  netip.AddrPort `json:"client"`  // the client as the server sees it
}

// formatAnswer writes the line of a server: its name, the client, the token.
func formatAnswer(to []byte, name string, client netip.AddrPort, token []byte) []byte {
	to = append(to, name...)
	to = append(to, ' ')
	to = netip.AddrPortFrom(client.Addr().Unmap(), client.Port()).AppendTo(to)
	to = append(to, ' ')
	to = append(to, token...)
	return append(to, '\n')
}

// parseAnswer reads such a line, without its end.
func parseAnswer(line, token []byte) (Answer, error) {
	fields := bytes.SplitN(line, []byte{' '}, 3)
	if len(fields) != 3 {
		return Answer{}, fmt.Errorf("the answer %s has no name, client and token", shorten(line))
	}
	client, err := netip.ParseAddrPort(string(fields[1]))
	if err != nil {
		return Answer{}, fmt.Errorf("the answer %s names no client: %w", shorten(line), err)
	}
	if !bytes.Equal(fields[2], token) {
		return Answer{}, fmt.Errorf("the answer %s is for another request than %s", shorten(line), shorten(token))
	}
	return Answer{Backend: string(fields[0]), Client: client}, nil
}

func shorten(b []byte) string { return strconv.Quote(string(b[:min(len(b), 60)])) }
