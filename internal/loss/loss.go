// Package loss makes traffic through a virtual IP and accounts for every single
// connection and datagram of it: what became of it, and which backend answered.
//
// Servers (Serve) answer each request with their name, the client's address as
// they see it, and the request itself. A Load asks them in three ways: new TCP
// connections at a steady rate (Connect), connections that stay (Hold), and UDP
// flows with fixed source ports (Send).
//
// Invariants:
//   - Nothing is left out: every connection or datagram that was begun ends in
//     exactly one Class, and the classes of a Tally add up to its Total.
//   - The rate is open loop: a slow answer does not slow the schedule, or else a
//     stall of the data plane would hide the requests that it should have hit.
//   - Connections end with RST (SO_LINGER 0). With FIN, TIME_WAIT would use up
//     the source ports, and the error would look like a fault of the data plane.
//   - Goroutines end with Stop, Wait or Close, which wait for them.
//
// Trap: a socket belongs to the network namespace of the thread that made it,
// and Go moves goroutines between threads. Sockets are therefore made inside In,
// which runs a function on a thread that stays in the namespace; once made they
// can be used from anywhere.
package loss

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// In runs a function on a thread of one network namespace and returns its error.
// A nil In runs it where it is called.
type In func(func() error) error

func (in In) run(f func() error) error {
	if in == nil {
		return f()
	}
	return in(f)
}

// Class says what became of a connection or a datagram.
type Class string

// The classes. All but OK count as lost.
const (
	OK         Class = "ok"
	Refused    Class = "refused"    // RST to the SYN, or an ICMP error
	Reset      Class = "reset"      // RST or end of the stream after it was established
	Timeout    Class = "timeout"    // no answer before the deadline
	Retransmit Class = "retransmit" // answered, but the SYN had to be sent again
	Wrong      Class = "wrong"      // answered by a backend that must not have got it: see Load.Forbid
	Duplicate  Class = "duplicate"  // answered more than once
	Failed     Class = "failed"     // anything else: a garbled answer, no free port, the context ended
)

// Classes lists the classes in the order in which reports show them.
func Classes() []Class {
	return []Class{OK, Refused, Reset, Timeout, Retransmit, Wrong, Duplicate, Failed}
}

// DefaultDeadline is how long an answer may take. It is longer than the second
// after which a client repeats its SYN, so that Retransmit and Timeout differ.
const DefaultDeadline = 3 * time.Second

// Fault is the error of a request that was not answered as it should be.
type Fault struct {
	Class Class
	Err   error
}

// Error says the class and the cause.
func (f *Fault) Error() string { return fmt.Sprintf("%s: %v", f.Class, f.Err) }

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Err }

// ClassOf returns the class of a request that ended with err.
func ClassOf(err error) Class {
	if err == nil {
		return OK
	}
	if f, ok := errors.AsType[*Fault](err); ok {
		return f.Class
	}
	return Failed
}

// classify turns the error of a socket into a Fault. Established says whether
// the connection stood before: a RST then is a reset and no refusal.
func classify(err error, established bool) error {
	if _, done := errors.AsType[*Fault](err); err == nil || done {
		return err
	}
	class := Failed
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		class = Timeout
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNABORTED):
		class = Reset
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH),
		errors.Is(err, syscall.EACCES), errors.Is(err, syscall.ENOPROTOOPT), errors.Is(err, syscall.EPROTO):
		class = Refused // an RST, or what ip(7) makes of the ICMP errors
	}
	if class == Refused && established {
		class = Reset
	}
	return &Fault{Class: class, Err: err}
}
