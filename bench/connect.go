package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// dialTimeout is how long a connection of the benchmark may take; longer is an
// error, and a single error makes a measurement worthless.
const dialTimeout = 3 * time.Second

// listen accepts connections at a port of all addresses of the namespace, until
// the process ends. If tell, it says at which address it was reached; then, and
// else at once, it hangs up.
func (ns namespace) listen(port uint16, tell bool) error {
	return ns.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}),
			unix.Listen(fd, 4096))
		if err != nil {
			return fmt.Errorf("listen on port %d: %w", port, err)
		}
		go accept(fd, tell)
		return nil
	})
}

// accept serves one listener. What a client does wrong shows at the client.
func accept(listener int, tell bool) {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench: accept:", err)
			return
		}
		if sa, err := unix.Getsockname(fd); err == nil && tell {
			if at, ok := sa.(*unix.SockaddrInet4); ok {
				_, _ = unix.Write(fd, at.Addr[:])
			}
		}
		_ = unix.Close(fd)
	}
}

// dial connects and returns how long that took. Closing what it returns resets the
// connection, so that no port waits.
func dial(to netip.AddrPort) (fd int, took time.Duration, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, 0, err
	}
	limit := unix.NsecToTimeval(int64(dialTimeout))
	err = errors.Join(
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	if err == nil {
		start := time.Now()
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
		if errors.Is(err, unix.EINTR) { // a signal of the runtime; the connection goes on coming up
			err = connected(fd)
		}
		took = time.Since(start)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, 0, fmt.Errorf("connect to %s: %w", to, err)
	}
	return fd, took, nil
}

// connected waits until a connection has come up.
func connected(fd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(dialTimeout.Milliseconds())) //nolint:gosec // a descriptor is small
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		}
		value, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && value != 0 {
			err = unix.Errno(value)
		}
		return err
	}
}

// connects makes count connections one after the other, each to what target says,
// and adds to r their median and 99th percentile and how many there were a second.
// The first error ends it.
func (ns namespace) connects(r *reply, count int, target func() netip.AddrPort) error {
	return ns.do(func() error {
		latencies := make([]float64, 0, count)
		start := time.Now()
		for range count {
			fd, took, err := dial(target())
			if err != nil {
				return fmt.Errorf("connection %d of %d: %w", len(latencies)+1, count, err)
			}
			latencies = append(latencies, took.Seconds())
			if err := unix.Close(fd); err != nil {
				return err
			}
		}
		r.add("rate", float64(count)/time.Since(start).Seconds())
		r.add("p50", percentile(latencies, 50))
		r.add("p99", percentile(latencies, 99))
		return nil
	})
}

// whoAnswers connects and returns the address at which the far end was reached.
// It runs in the namespace of its thread.
func whoAnswers(to netip.AddrPort) (netip.Addr, error) {
	fd, _, err := dial(to)
	if err != nil {
		return netip.Addr{}, err
	}
	defer func() { _ = unix.Close(fd) }()
	var answer [4]byte
	n, err := unix.Read(fd, answer[:])
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(fd, answer[:])
	}
	if err == nil && n != len(answer) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("answer of %s: %w", to, err)
	}
	return netip.AddrFrom4(answer), nil
}

// someVIP returns a function that picks one of n services at random: the same ones
// for the same seed, whatever the arm.
func someVIP(n int, seed uint64) func() netip.AddrPort {
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // spreads load, keeps no secret
	return func() netip.AddrPort { return netip.AddrPortFrom(vipOf(r.IntN(n)), servicePort) }
}

// someBackend is someVIP for the backends themselves.
func someBackend(n int, seed uint64) func() netip.AddrPort {
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // as above
	return func() netip.AddrPort {
		return netip.AddrPortFrom(nth(backendNet, r.IntN(n*backendsPerService)), backendPort)
	}
}
