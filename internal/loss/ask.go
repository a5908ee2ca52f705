package loss

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Request is one question, for tests that look at a single answer.
type Request struct {
	In       In
	Network  string // "tcp" or "udp"
	Target   netip.AddrPort
	Port     uint16 // source port; 0: any
	Size     int    // bytes; 0: a few
	Deadline time.Duration
}

// Ask asks once and returns the answer. A *Fault says what went wrong.
func (r Request) Ask(ctx context.Context) (Answer, error) {
	kind := unix.SOCK_STREAM
	if r.Network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	if r.Deadline == 0 {
		r.Deadline = DefaultDeadline
	}
	began := time.Now()
	var s *socket
	if err := r.In.run(func() (err error) {
		s, err = open(kind, r.Target, r.Port)
		return err
	}); err != nil {
		return Answer{}, err
	}
	defer s.close()
	defer s.until(ctx, began.Add(r.Deadline))()
	token := pad(began.UnixNano(), r.Size)
	if kind == unix.SOCK_STREAM {
		return ask(s, token)
	}
	return s.exchangeDatagram(token)
}

var errRetransmitted = errors.New("the SYN was sent more than once")

// ask waits for the connection, asks and reads the answer. The answer may come
// along with a Fault of class Retransmit.
func ask(s *socket, token []byte) (Answer, error) {
	retransmitted, err := s.established()
	if err != nil {
		return Answer{}, err
	}
	answer, err := s.exchange(token)
	if err == nil && retransmitted {
		err = &Fault{Retransmit, errRetransmitted}
	}
	return answer, err
}
