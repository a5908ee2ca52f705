package loss

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Hold is a number of TCP connections that stay open.
type Hold struct {
	Target netip.AddrPort
	Count  int
	Every  time.Duration // how often each asks; 0: idle, it asks when it is opened and at Stop
}

// Held are the connections of one Hold.
type Held struct {
	mu    sync.Mutex
	conns []HeldConn
}

// HeldConn is the state of one connection that is held.
type HeldConn struct {
	Backend   string // who answered first
	Exchanges int
	Err       error         // how it broke; nil: it stands
	Lived     time.Duration // from its opening to its last answer or its end
}

// Conns returns the state of every connection now.
func (h *Held) Conns() []HeldConn {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.conns)
}

// By returns how many connections of each backend stand.
func (h *Held) By() map[string]int {
	by := map[string]int{}
	for _, c := range h.Conns() {
		if c.Err == nil {
			by[c.Backend]++
		}
	}
	return by
}

// Hold opens the connections, waits until each has had its first answer or has
// failed, and keeps them until Stop.
func (l *Load) Hold(h Hold) *Held {
	held := &Held{conns: make([]HeldConn, h.Count)}
	var ready sync.WaitGroup
	ready.Add(h.Count)
	for i := range h.Count {
		l.group.Go(func() { l.holdOne(h, held, i, ready.Done) })
	}
	ready.Wait()
	return held
}

func (l *Load) holdOne(h Hold, held *Held, i int, ready func()) {
	began := time.Now()
	note := func(a Answer, err error) {
		held.mu.Lock()
		defer held.mu.Unlock()
		c := &held.conns[i]
		c.Lived = time.Since(began)
		if c.Err = err; err == nil {
			c.Backend = a.Backend
			c.Exchanges++
		}
	}
	first, err := Answer{}, error(nil)
	var s *socket
	if err = l.options.In.run(func() (err error) {
		s, err = open(unix.SOCK_STREAM, h.Target, 0)
		return err
	}); err == nil {
		defer s.close()
		s.pulse = l.pulse
		release := s.until(l.all, began.Add(l.options.Deadline))
		first, err = ask(s, l.nextToken(0))
		release()
	}
	note(first, err)
	ready()
	if err == nil {
		err = l.keep(h, s, first.Backend, note)
	}
	l.held.settle(began, first.Backend, err)
}

// keep asks again and again until Stop, and then a last time. In the pauses it
// reads, so that a reset is seen when it comes and not at the next request.
func (l *Load) keep(h Hold, s *socket, backend string, note func(Answer, error)) error {
	for last := false; ; {
		err := l.pause(h.Every, s)
		if last = l.stop.Err() != nil; err == nil {
			var a Answer
			release := s.until(l.all, time.Now().Add(l.options.Deadline))
			a, err = s.exchange(l.nextToken(0))
			release()
			if err == nil && a.Backend != backend {
				err = &Fault{Wrong, fmt.Errorf("a connection of %s was answered by %s", backend, a.Backend)}
			}
			note(a, err)
		} else {
			note(Answer{}, err)
		}
		if err != nil || last {
			return err
		}
	}
}

// pause waits for a time (0: without end) or for Stop, whichever is first, and
// returns an error if the connection breaks meanwhile.
func (l *Load) pause(d time.Duration, s *socket) error {
	deadline := time.Time{}
	if d > 0 {
		deadline = time.Now().Add(d)
	}
	defer s.until(l.stop, deadline)()
	one := make([]byte, 1)
	n, err := s.file.Read(one)
	if n > 0 {
		return &Fault{Duplicate, fmt.Errorf("%s sends what it was not asked for", s.target)}
	}
	if err = classify(err, true); ClassOf(err) == Timeout {
		return nil
	}
	return err
}
