package linux

import (
	"encoding/binary"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

// Formats are those of linux/netlink.h.

// Align rounds up to the four bytes at which netlink messages and attributes begin.
func Align(n int) int { return (n + 3) &^ 3 }

// Nest appends to a message an attribute that holds what inside appends, padded.
func Nest(m *[]byte, kind uint16, inside func()) {
	start := len(*m)
	*m = append(*m, 0, 0, 0, 0)
	inside()
	binary.NativeEndian.PutUint16((*m)[start:], uint16(len(*m)-start))
	binary.NativeEndian.PutUint16((*m)[start+2:], kind)
	for len(*m) != Align(len(*m)) {
		*m = append(*m, 0)
	}
}

// Reply is one netlink message of an answer.
type Reply struct {
	Seq   uint32
	Flags uint16
	Body  []byte // after the netlink header
	Last  bool   // NLMSG_DONE or NLMSG_ERROR: nothing follows to that request
	Err   error  // what it says then: a unix.Errno, or nil
}

// NextReply cuts the first message off a datagram.
func NextReply(b []byte) (r Reply, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return r, nil, fmt.Errorf("a netlink message of %d bytes is too short", len(b))
	}
	size := int(binary.NativeEndian.Uint32(b))
	if size < unix.SizeofNlMsghdr || size > len(b) {
		return r, nil, fmt.Errorf("a netlink message says that it has %d bytes of %d", size, len(b))
	}
	kind := binary.NativeEndian.Uint16(b[4:])
	r.Flags = binary.NativeEndian.Uint16(b[6:])
	r.Seq = binary.NativeEndian.Uint32(b[8:])
	r.Body = b[unix.SizeofNlMsghdr:size]
	rest = b[min(Align(size), len(b)):]
	if kind != unix.NLMSG_DONE && kind != unix.NLMSG_ERROR {
		return r, rest, nil
	}
	r.Last = true
	if len(r.Body) >= 4 {
		if errno := int32(binary.NativeEndian.Uint32(r.Body)); errno < 0 {
			r.Err = unix.Errno(-errno)
		}
	}
	return r, rest, nil
}

// Attributes yields the attributes in b: kind without flags, and payload. It ends at
// the first error, which may also be one that the loop put in *err.
func Attributes(b []byte, err *error) iter.Seq2[uint16, []byte] {
	return func(yield func(kind uint16, payload []byte) bool) {
		for len(b) > 0 && *err == nil {
			if len(b) < unix.SizeofNlAttr {
				*err = fmt.Errorf("%d bytes are left over after the last attribute", len(b))
				return
			}
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofNlAttr || size > len(b) {
				*err = fmt.Errorf("an attribute says that it has %d bytes of %d", size, len(b))
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, b[unix.SizeofNlAttr:size]) {
				return
			}
			b = b[min(Align(size), len(b)):]
		}
	}
}
