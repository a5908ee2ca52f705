package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The line to ctnetlink, the kernel's table of connections: one dump that is
// read as a stream, and requests that are acknowledged one by one. Formats are
// those of linux/netlink.h and linux/netfilter/nfnetlink.h.

const (
	// receiveSize is more than the kernel puts in one datagram of a dump (32 KiB).
	receiveSize = 64 << 10
	// answerTimeout bounds the wait for a kernel that answers at once or never.
	answerTimeout = 5 * time.Second
)

// errInterrupted says that the table changed its shape under a dump, so that
// entries may have been missed: dump again.
var errInterrupted = errors.New("the dump was interrupted")

// nfSocket is a netfilter netlink socket with a buffer of its own. It belongs
// to one goroutine.
type nfSocket struct {
	fd     int
	seq    uint32
	buffer []byte
}

func openSocket() (*nfSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &nfSocket{fd: fd, buffer: make([]byte, receiveSize)}
	timeout := unix.NsecToTimeval(int64(answerTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return nil, errors.Join(os.NewSyscallError("setsockopt", err), s.close())
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(os.NewSyscallError("bind", err), s.close())
	}
	return s, nil
}

func (s *nfSocket) close() error { return os.NewSyscallError("close", unix.Close(s.fd)) }

// send stamps m with its length and a number of its own, and sends it.
func (s *nfSocket) send(m message) error {
	binary.NativeEndian.PutUint32(m[0:], uint32(len(m)))
	binary.NativeEndian.PutUint32(m[8:], s.seq+1)
	return s.sendAll(m)
}

// sendAll sends messages that all bear the next number.
func (s *nfSocket) sendAll(messages []byte) error {
	s.seq++
	for {
		err := unix.Sendto(s.fd, messages, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return os.NewSyscallError("sendto", err)
		}
	}
}

// receive returns the messages of one datagram. They are valid until the next
// call.
func (s *nfSocket) receive() ([]byte, error) {
	for {
		n, _, flags, _, err := unix.Recvmsg(s.fd, s.buffer, nil, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil, fmt.Errorf("the kernel did not answer within %s", answerTimeout)
		case err != nil:
			return nil, os.NewSyscallError("recvmsg", err)
		case flags&unix.MSG_TRUNC != 0:
			return nil, errors.New("the kernel's answer is larger than the buffer")
		}
		return s.buffer[:n], nil
	}
}

// answers calls each with the body of every message that answers the last
// request, until the kernel says that it was the last one. The error of the
// kernel is an unix.Errno.
func (s *nfSocket) answers(ctx context.Context, each func(body []byte) error) error {
	var interrupted error
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		datagram, err := s.receive()
		if err != nil {
			return err
		}
		for len(datagram) > 0 {
			var r reply
			if r, datagram, err = nextReply(datagram); err != nil {
				return err
			}
			if r.seq != s.seq {
				continue // the rest of an earlier answer
			}
			if r.flags&unix.NLM_F_DUMP_INTR != 0 {
				interrupted = errInterrupted
			}
			if r.last {
				return errors.Join(r.err, interrupted)
			}
			if err := each(r.body); err != nil {
				return err
			}
		}
	}
}

// request sends m and waits for its acknowledgement.
func (s *nfSocket) request(ctx context.Context, m message) error {
	if err := s.send(m); err != nil {
		return err
	}
	return s.answers(ctx, func([]byte) error { return nil })
}

// reply is one netlink message of an answer.
type reply struct {
	seq   uint32
	flags uint16
	body  []byte // after the netlink header
	last  bool   // NLMSG_DONE or NLMSG_ERROR: nothing follows
	err   error  // what it says then
}

// nextReply cuts the first message off a datagram.
func nextReply(b []byte) (r reply, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return r, nil, fmt.Errorf("a netlink message of %d bytes is too short", len(b))
	}
	size := int(binary.NativeEndian.Uint32(b))
	if size < unix.SizeofNlMsghdr || size > len(b) {
		return r, nil, fmt.Errorf("a netlink message says that it has %d bytes of %d", size, len(b))
	}
	kind := binary.NativeEndian.Uint16(b[4:])
	r.flags = binary.NativeEndian.Uint16(b[6:])
	r.seq = binary.NativeEndian.Uint32(b[8:])
	r.body = b[unix.SizeofNlMsghdr:size]
	rest = b[min(align(size), len(b)):]
	if kind != unix.NLMSG_DONE && kind != unix.NLMSG_ERROR {
		return r, rest, nil
	}
	r.last = true
	if len(r.body) >= 4 {
		if errno := int32(binary.NativeEndian.Uint32(r.body)); errno < 0 {
			r.err = unix.Errno(-errno)
		}
	}
	return r, rest, nil
}
