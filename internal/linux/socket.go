package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// ReceiveSize is more than the kernel puts in one datagram of a dump (32 KiB).
	ReceiveSize = 64 << 10
	// answerTimeout bounds the wait for a kernel that answers at once or never.
	answerTimeout = 5 * time.Second
)

// ErrInterrupted says that what is dumped changed its shape under the dump, so that
// entries may have been missed: dump again.
var ErrInterrupted = errors.New("the dump was interrupted")

// Socket is a netlink socket with a buffer of its own. It belongs to one goroutine.
type Socket struct {
	fd     int
	seq    uint32
	buffer []byte
}

// OpenSocket opens a socket of a netlink protocol (unix.NETLINK_NETFILTER...) in the
// network namespace of the calling thread.
func OpenSocket(protocol int) (*Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &Socket{fd: fd, buffer: make([]byte, ReceiveSize)}
	timeout := unix.NsecToTimeval(int64(answerTimeout))
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	if err == nil { // acknowledgements do not repeat the request (Linux 4.2)
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	}
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("setsockopt", err), s.Close())
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(os.NewSyscallError("bind", err), s.Close())
	}
	return s, nil
}

// Close frees the socket.
func (s *Socket) Close() error { return os.NewSyscallError("close", unix.Close(s.fd)) }

// Port returns the number by which the kernel knows the socket.
func (s *Socket) Port() (uint32, error) {
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	if netlink, ok := name.(*unix.SockaddrNetlink); ok {
		return netlink.Pid, nil
	}
	return 0, errors.New("getsockname: no netlink address")
}

// Next returns the number that the next request will bear.
func (s *Socket) Next() uint32 { return s.seq + 1 }

// Send stamps a message with its length and the next number, and sends it.
func (s *Socket) Send(m []byte) error {
	binary.NativeEndian.PutUint32(m[0:], uint32(len(m)))
	binary.NativeEndian.PutUint32(m[8:], s.Next())
	return s.SendAll(m)
}

// SendAll sends messages that all bear the next number, and have their lengths.
func (s *Socket) SendAll(messages []byte) error {
	s.seq++
	return s.post(messages)
}

func (s *Socket) post(messages []byte) error {
	for {
		err := unix.Sendto(s.fd, messages, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return os.NewSyscallError("sendto", err)
		}
	}
}

// receive returns the messages of one datagram. They are valid until the next
// call.
func (s *Socket) receive() ([]byte, error) {
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

// replies calls each with the messages that come, until it is done or fails.
func (s *Socket) replies(ctx context.Context, each func(Reply) (done bool, err error)) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		datagram, err := s.receive()
		if err != nil {
			return err
		}
		for len(datagram) > 0 {
			var r Reply
			if r, datagram, err = NextReply(datagram); err != nil {
				return err
			}
			if done, err := each(r); done || err != nil {
				return err
			}
		}
	}
}

// Ask sends a request that is answered by one message, or by an error, which is a
// unix.Errno. read gets the body of that message.
func (s *Socket) Ask(ctx context.Context, m []byte, read func(body []byte) error) error {
	if err := s.Send(m); err != nil {
		return err
	}
	return s.replies(ctx, func(r Reply) (done bool, err error) {
		switch {
		case r.Seq != s.seq: // the rest of an earlier answer
			return false, nil
		case r.Err != nil:
			return true, r.Err
		case r.Last:
			return true, errors.New("the kernel answers that all is well, and nothing else")
		}
		return true, read(r.Body)
	})
}

// Answers calls each with the body of every message that answers the last request,
// until the kernel says that it was the last one. The error of the kernel is a
// unix.Errno.
func (s *Socket) Answers(ctx context.Context, each func(body []byte) error) error {
	var interrupted error
	return s.replies(ctx, func(r Reply) (done bool, err error) {
		if r.Seq != s.seq {
			return false, nil // the rest of an earlier answer
		}
		if r.Flags&unix.NLM_F_DUMP_INTR != 0 {
			interrupted = ErrInterrupted
		}
		if r.Last {
			return true, errors.Join(r.Err, interrupted)
		}
		return false, each(r.Body)
	})
}
