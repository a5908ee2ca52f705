//go:build kernel

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
)

// TestB5_B17_SCTPAssociations makes whole associations, which the kernel of the
// virtual machine alone can.
//
//lane:vm
func TestB5_B17_SCTPAssociations(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	kerneltest.Need(t, kerneltest.SCTP())
	w := newWorld(t, 2)
	for _, b := range w.Backends {
		for _, a := range hostPorts(b, 3868) {
			w.serveSCTP(b, netip.MustParseAddrPort(a))
		}
	}
	web := service{name: "sctp", port: 80, protocol: "sctp", backends: w.at(3868, 1, 2)}
	tcp := service{name: "tcp", port: 80, backends: w.at(8080, 1)}
	idle := service{name: "idle", port: 81, protocol: "sctp"}
	w.serveAll(8080)
	w.run(web, tcp, idle)
	for _, target := range targets(80) {
		w.answersSCTP(w.Client, target, "b1", "b2")
		w.answersSCTP(w.LB, target, "b1", "b2")
		w.answeredBy(w.Client, "tcp", target, "b1")
	}
	for _, port := range []int{81, 82} { // without a backend, and of no service
		target := targets(port)[0]
		begin := time.Now()
		if name, err := w.askSCTP(w.Client, target); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("SCTP to %s: %q, %v; want a refusal", target, name, err)
		}
		t.Logf("SCTP to %s: refused after %s", target, time.Since(begin).Round(time.Millisecond))
	}
	w.refusesSCTP6(targets(81)[1])
	web.more = []string{`affinity_timeout = "10m"`}
	w.change(web, tcp)
	for _, target := range targets(80) {
		stuck := w.mustSCTP(w.Client, target)
		for range 10 {
			if now := w.mustSCTP(w.Client, target); now != stuck {
				t.Errorf("%s: with affinity the client goes from %s to %s", target, stuck, now)
			}
		}
	}
	web.backends = w.at(3868, 2)
	w.change(web, tcp)
	for _, target := range targets(80) {
		for range 5 {
			if now := w.mustSCTP(w.Client, target); now != "b2" {
				t.Errorf("%s: after b1 was removed %s answers", target, now)
			}
		}
	}
}

// refusesSCTP6 shows what an ICMPv6 error is to a client: with IPV6_RECVERR an error of
// the socket, by its second INIT at the latest (the first one may meet a socket that is
// in use), without it nothing.
func (w *world) refusesSCTP6(target netip.AddrPort) {
	w.t.Helper()
	for recvErr, want := range map[int]unix.Errno{0: 0, 1: unix.EACCES} {
		begin := time.Now()
		if got, err := w.beginSCTP6(target, recvErr); err != nil || got != want {
			w.t.Errorf("SCTP to %s, IPV6_RECVERR %d: %v, %v; want %v", target, recvErr, got, err, want)
		}
		w.t.Logf("SCTP to %s, IPV6_RECVERR %d: looked at after %s", target, recvErr, time.Since(begin).Round(time.Millisecond))
	}
}

// beginSCTP6 begins an association, and returns the error of which poll tells within
// 8 s, two INITs; 0 is none.
func (w *world) beginSCTP6(target netip.AddrPort, recvErr int) (unix.Errno, error) {
	fd, err := socketSCTP(w.Client, netip.AddrPortFrom(w.Client.Addr6, 0))
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, recvErr), unix.SetNonblock(fd, true)); err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, sockaddr(target)); !errors.Is(err, unix.EINPROGRESS) {
		return 0, fmt.Errorf("connect: %w", err)
	}
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); {
		ready := []unix.PollFd{{Fd: int32(fd)}} // POLLERR is always told
		if _, err := unix.Poll(ready, 100); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("poll: %w", err)
		}
		if ready[0].Revents&unix.POLLERR != 0 {
			code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			return unix.Errno(code), err
		}
	}
	return 0, nil
}

// answersSCTP asks until all these backends have answered.
func (w *world) answersSCTP(from *kerneltest.Host, target netip.AddrPort, names ...string) {
	w.t.Helper()
	seen := map[string]bool{}
	for range 30 * len(names) {
		name := w.mustSCTP(from, target)
		if !slices.Contains(names, name) {
			w.t.Fatalf("%s asks %s/sctp: answered by %q", from.Name, target, name)
		}
		if seen[name] = true; len(seen) == len(names) {
			return
		}
	}
	w.t.Fatalf("%s asks %s/sctp: answered by %v only, want all of %v", from.Name, target, seen, names)
}

func (w *world) mustSCTP(from *kerneltest.Host, target netip.AddrPort) string {
	w.t.Helper()
	name, err := w.askSCTP(from, target)
	if err != nil {
		w.t.Fatalf("%s asks %s/sctp: %v", from.Name, target, err)
	}
	return name
}

// askSCTP makes an association and returns the name that the backend tells. The
// socket is bound to one address: the others of a host would be offered too, which
// no NAT can translate.
func (w *world) askSCTP(from *kerneltest.Host, target netip.AddrPort) (name string, err error) {
	source := from.Addr4
	if target.Addr().Is6() {
		source = from.Addr6
	}
	fd, err := socketSCTP(from, netip.AddrPortFrom(source, 0))
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Connect(fd, sockaddr(target)); err != nil {
		return "", fmt.Errorf("connect: %w", err)
	}
	b := make([]byte, 16)
	n, err := unix.Read(fd, b)
	return string(b[:n]), err
}

// socketSCTP opens a socket whose calls end after a while.
func socketSCTP(h *kerneltest.Host, at netip.AddrPort) (fd int, err error) {
	err = h.Do(func() (err error) {
		family := unix.AF_INET
		if at.Addr().Is6() {
			family = unix.AF_INET6
		}
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		return err
	})
	if err != nil {
		return -1, err
	}
	wait := unix.Timeval{Sec: 5}
	return fd, errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait), unix.Bind(fd, sockaddr(at)))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// serveSCTP tells each association the name of the host, until the test ends.
func (w *world) serveSCTP(h *kerneltest.Host, at netip.AddrPort) {
	w.t.Helper()
	fd, err := socketSCTP(h, at)
	if err == nil {
		err = unix.Listen(fd, 16)
	}
	if err != nil {
		w.t.Fatalf("%s: SCTP at %s: %v", h.Name, at, err)
	}
	var over atomic.Bool
	var serving sync.WaitGroup
	w.t.Cleanup(func() {
		over.Store(true)
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		serving.Wait()
		_ = unix.Close(fd)
	})
	serving.Go(func() {
		for !over.Load() {
			c, _, err := unix.Accept(fd)
			if err != nil {
				continue // the wait is over, it is made again
			}
			_, _ = unix.Write(c, []byte(h.Name))
			_ = unix.Close(c)
		}
	})
}
