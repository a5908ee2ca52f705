package linux

import (
	"context"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// MaxBatch is how many messages one batch may have. If the kernel refuses all of them
// its answers take 100 KiB at most, which is half of the smallest receive buffer.
const MaxBatch = 128

// Batch sends n messages at once, each with its length, and waits until the kernel has
// done them all. It calls refused for each one that failed, in order. Messages take
// effect one by one: one that fails does not stop those behind it. After an error of
// Batch itself it is not known which of them took effect, but for those refused.
//
// Only the last message asks for an acknowledgement, for an error comes unasked
// (netlink_rcv_skb, net/netlink/af_netlink.c). So a batch costs two system calls, and
// no answer can be missed: the kernel has put them all in the receive buffer when it
// returns from the send, and once one has found no room those behind find none either.
func (s *Socket) Batch(ctx context.Context, messages []byte, n int, refused func(i int, errno unix.Errno)) error {
	if n == 0 {
		return nil
	}
	first := s.Next()
	s.seq += uint32(n)
	stamp(messages, first, n)
	if err := s.post(messages); err != nil {
		return err
	}
	return s.replies(ctx, func(r Reply) (done bool, err error) {
		i := r.Seq - first // an earlier number is a great one here
		if i >= uint32(n) || !r.Last {
			return false, nil
		}
		if errno := unix.Errno(0); errors.As(r.Err, &errno) {
			refused(int(i), errno)
		}
		return i == uint32(n)-1, nil
	})
}

// stamp numbers messages and asks for an acknowledgement of the last one.
func stamp(messages []byte, seq uint32, n int) {
	for i := range n {
		binary.NativeEndian.PutUint32(messages[8:], seq+uint32(i))
		if i == n-1 {
			binary.NativeEndian.PutUint16(messages[6:], binary.NativeEndian.Uint16(messages[6:])|unix.NLM_F_ACK)
		}
		messages = messages[Align(int(binary.NativeEndian.Uint32(messages))):]
	}
}
