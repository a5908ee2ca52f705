package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
)

// eventBuffer holds what the kernel tells while nobody listens: a commit of 500
// chains with ten rules each is 3 MB.
const eventBuffer = 32 << 20

// watchEvents hears every commit to the nftables rule set and hands it to the
// ledger, which calls drift for those of others that touched what is ours. It
// returns nil when ctx ends.
func watchEvents(ctx context.Context, l *Ledger, drift func(Drift)) error {
	s, err := openEvents(eventBuffer)
	if err != nil {
		return fmt.Errorf("hear of changes of the packet filter: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) })
	defer func() { stop(); _ = s.file.Close() }()
	now, err := l.now(ctx)
	if err == nil {
		l.watch(now, drift, s.deafen)
		defer l.unwatch()
		err = s.listen(ctx, l)
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("hear of changes of the packet filter: %w", err)
}

// eventSocket is a socket in the group NFNLGRP_NFTABLES. It belongs to one
// goroutine.
type eventSocket struct {
	file   *os.File
	conn   syscall.RawConn
	buffer []byte
	next   func(wait bool) ([]byte, error) // receive
	reader eventReader
}

func openEvents(buffer int) (*eventSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), "nftables events")
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer) // as much as an unprivileged one gets
	}
	s := &eventSocket{file: file, buffer: make([]byte, linux.ReceiveSize)}
	s.next = s.receive
	err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err == nil {
		s.conn, err = file.SyscallConn()
	}
	if err == nil {
		err = s.join(true)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return s, nil
}

// join enters or leaves the group. If nobody else is in it the kernel does not even
// put together what it would tell.
func (s *eventSocket) join(member bool) error {
	option := unix.NETLINK_DROP_MEMBERSHIP
	if member {
		option = unix.NETLINK_ADD_MEMBERSHIP
	}
	var err error
	control := s.conn.Control(func(fd uintptr) {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, option, unix.NFNLGRP_NFTABLES))
	})
	return errors.Join(control, err)
}

// deafen leaves the group for a while. A socket that cannot come back ends the watch.
func (s *eventSocket) deafen(deaf bool) {
	if err := s.join(!deaf); err != nil && !deaf {
		_ = s.file.SetReadDeadline(time.Unix(1, 0))
	}
}

// listen hands on commits until there is an error. What was lost, or cannot be
// read, is made up for by looking how far the rule set is.
func (s *eventSocket) listen(ctx context.Context, l *Ledger) error {
	for {
		datagram, err := s.next(true)
		switch {
		case err == nil:
			if s.hear(ctx, l, datagram) == nil {
				continue
			}
		case errors.Is(err, unix.ENOBUFS):
			if err := s.drain(ctx); err != nil {
				return err
			}
		default:
			return err
		}
		s.reader.reset()
		now, err := l.now(ctx)
		if err != nil {
			return err
		}
		l.recover(now)
	}
}

// drain throws away what is queued. Once the kernel had to leave something out it
// goes on until the queue is empty (netlink_rcv_wake): what it tells next may be the
// rest of a commit. Whatever it told only in part is in the rule set afterwards.
func (s *eventSocket) drain(ctx context.Context) error {
	for ctx.Err() == nil {
		_, err := s.next(false)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
	return ctx.Err()
}

// receive returns the next datagram. It waits for it, or returns unix.EAGAIN.
func (s *eventSocket) receive(wait bool) ([]byte, error) {
	var n int
	var err error
	waitErr := s.conn.Read(func(fd uintptr) bool {
		for {
			if n, _, err = unix.Recvfrom(int(fd), s.buffer, 0); err != unix.EINTR {
				return err != unix.EAGAIN || !wait
			}
		}
	})
	return s.buffer[:max(n, 0)], errors.Join(waitErr, err)
}

// hear reads the messages of one datagram.
func (s *eventSocket) hear(ctx context.Context, l *Ledger, datagram []byte) error {
	for len(datagram) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(datagram))
		if size < unix.SizeofNlMsghdr || size > len(datagram) {
			return fmt.Errorf("a netlink message says that it has %d bytes of %d", size, len(datagram))
		}
		kind, flags := binary.NativeEndian.Uint16(datagram[4:]), binary.NativeEndian.Uint16(datagram[6:])
		port := binary.NativeEndian.Uint32(datagram[12:])
		n, ended, err := s.reader.read(kind, flags, port, datagram[unix.SizeofNlMsghdr:size])
		if err != nil {
			return err
		}
		if ended {
			for _, p := range s.reader.inserts {
				if displaced(ctx, p) {
					n.places = append(n.places, p)
				}
			}
			s.reader.reset()
			l.hear(n)
		}
		datagram = datagram[min(linux.Align(size), len(datagram)):]
	}
	return nil
}

// displaced reports whether a rule of others stands before a jump of ours. If that
// cannot be found out it is better looked at.
func displaced(ctx context.Context, p place) bool {
	list, err := listChains(ctx, p.family, p.table, p.chain)
	if err != nil {
		return true
	}
	foreign := false
	for _, rule := range list.Base[p.chain] {
		if isOwn(rule.Target) && foreign {
			return true
		}
		foreign = foreign || !isOwn(rule.Target)
	}
	return false
}
