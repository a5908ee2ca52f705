package loss

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Flows is a number of UDP flows. Each keeps its source port and sends a datagram
// every so often, whether the last one was answered or not.
type Flows struct {
	Target netip.AddrPort
	Count  int           // flows
	Every  time.Duration // between two datagrams of one flow
	Each   int           // datagrams of a flow; 0: until Stop
	Port   uint16        // source port of the first flow, then counting up; 0: any
}

// Send starts such flows.
func (l *Load) Send(f Flows) {
	for i := range f.Count {
		l.group.Go(func() {
			port := f.Port
			if port != 0 {
				port += uint16(i)
			}
			if err := l.sendFlow(f, port); err != nil {
				l.datagrams.settle(time.Now(), "", err)
			}
		})
	}
}

func (l *Load) sendFlow(f Flows, port uint16) error {
	var s *socket
	err := l.options.In.run(func() (err error) {
		s, err = open(unix.SOCK_DGRAM, f.Target, port)
		return err
	})
	if err != nil {
		return err
	}
	defer s.close()
	defer s.until(l.all, time.Time{})()
	w := &flow{socket: s, account: l.datagrams, deadline: l.options.Deadline, pulse: l.pulse}
	var reader sync.WaitGroup
	reader.Go(w.read)
	ticker := time.NewTicker(max(f.Every, time.Microsecond))
	defer ticker.Stop()
	for i := 0; (f.Each == 0 || i < f.Each) && l.stop.Err() == nil; i++ {
		w.expire(false)
		w.send(l.nextToken(0))
		select {
		case <-ticker.C:
		case <-l.stop.Done():
		}
	}
	ticker.Reset(beat)
	for w.expire(l.all.Err() != nil) { // what is under way
		select {
		case <-ticker.C:
		case <-l.all.Done():
		}
	}
	_ = s.file.SetDeadline(time.Unix(1, 0))
	reader.Wait()
	return nil
}

// flow is one UDP flow and its datagrams of late.
type flow struct {
	socket   *socket
	account  *account
	deadline time.Duration
	pulse    *pulse

	mu     sync.Mutex
	recent []datagram // in the order in which they were sent
}

type datagram struct {
	token   []byte
	sent    time.Time
	settled bool
}

// send sends one datagram. What write(2) returns may be the ICMP error of a
// former datagram, in place of sending this one: that is counted where it
// belongs, and the datagram goes out at the second try.
func (w *flow) send(token []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	sent := time.Now()
	err := w.socket.send(token)
	if errors.Is(err, unix.ECONNREFUSED) {
		w.refuse(err)
		err = w.socket.send(token)
	}
	if err != nil {
		w.account.settle(sent, "", classify(err, false))
		return
	}
	w.recent = append(w.recent, datagram{token: token, sent: sent})
}

// read takes answers until the deadline of the socket.
func (w *flow) read() {
	buf := make([]byte, maxDatagram)
	for {
		n, err := w.socket.file.Read(buf)
		w.mu.Lock()
		switch {
		case err == nil:
			w.answered(bytes.TrimSuffix(buf[:n], []byte{'\n'}))
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EACCES):
			w.refuse(err)
		default:
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
	}
}

// answered settles the datagram that a line answers. One that is not among the
// recent ones is late: its datagram was counted as a timeout.
func (w *flow) answered(line []byte) {
	i := slices.IndexFunc(w.recent, func(d datagram) bool { return bytes.HasSuffix(line, append([]byte{' '}, d.token...)) })
	if i < 0 {
		return
	}
	d := &w.recent[i]
	if d.settled {
		w.account.reclassify(OK, &Fault{Duplicate, fmt.Errorf("%s answered twice", w.socket.target)})
		return
	}
	answer, err := parseAnswer(line, d.token)
	w.settle(d, answer.Backend, err)
}

// refuse settles the newest datagram that waits: an ICMP error does not say which
// it is for, but comes within a round trip, and so before the next one is sent.
func (w *flow) refuse(err error) {
	for i := range slices.Backward(w.recent) {
		if d := &w.recent[i]; !d.settled {
			w.settle(d, "", classify(err, false))
			return
		}
	}
}

func (w *flow) settle(d *datagram, backend string, err error) {
	d.settled = true
	w.account.settle(d.sent, backend, err)
}

// expire settles what has waited too long, or all, forgets it, and tells whether
// anything waits still.
func (w *flow) expire(all bool) (waits bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.recent) > 0 {
		d := &w.recent[0]
		if age := time.Since(d.sent); !all && (age <= w.deadline || age <= w.deadline+w.pulse.since(d.sent)) {
			break
		}
		if !d.settled {
			w.settle(d, "", &Fault{Timeout, fmt.Errorf("%s did not answer within %s", w.socket.target, w.deadline)})
		}
		w.recent = w.recent[1:]
	}
	return slices.ContainsFunc(w.recent, func(d datagram) bool { return !d.settled })
}

// exchangeDatagram sends one datagram and reads the answer.
func (s *socket) exchangeDatagram(token []byte) (Answer, error) {
	if err := s.send(token); err != nil {
		return Answer{}, classify(fmt.Errorf("send to %s: %w", s.target, err), false)
	}
	buf := make([]byte, maxDatagram)
	n, err := s.file.Read(buf)
	if err != nil {
		return Answer{}, classify(fmt.Errorf("read from %s: %w", s.target, err), false)
	}
	return parseAnswer(bytes.TrimSuffix(buf[:n], []byte{'\n'}), token)
}
