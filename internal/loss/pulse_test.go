package loss

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestPulseCountsTheTimeInWhichTheProcessStoodStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := newPulse(ctx)
		time.Sleep(10 * time.Second) // fake time: every beat comes when it is due
		if d := p.since(time.Now().Add(-time.Hour)); d != 0 || p.stalled() != 0 {
			t.Errorf("a process that ran stood still for %s", d)
		}
		cancel()
		<-p.done
		began := time.Now()
		time.Sleep(3 * time.Second) // nothing beats
		if d := p.since(began); d < 3*time.Second || d > 3*time.Second+beat || p.stalled() != d {
			t.Errorf("stood still for %s, in all for %s; want 3s", d, p.stalled())
		}
		if d := p.since(time.Now()); d != 0 {
			t.Errorf("what began after it is told of %s", d)
		}
	})
}

// stood returns a pulse of a process that stood still for a second a moment ago.
func stood() *pulse {
	now := time.Now()
	return &pulse{last: now, gaps: []gap{{end: now.Add(time.Hour), length: time.Second}}}
}

func TestDeadlineIsPutOffByTheTimeThatTheProcessStoodStill(t *testing.T) {
	slow := misbehave(t, func(c *net.TCPConn) {
		line := make([]byte, 99)
		n, _ := c.Read(line)
		time.Sleep(300 * time.Millisecond)
		_, _ = io.WriteString(c, "slow 127.0.0.1:1 "+string(line[:n]))
	})
	ask := func(target netip.AddrPort, p *pulse, ctx context.Context) error {
		s, err := open(unix.SOCK_STREAM, target, 0)
		if err != nil {
			return err
		}
		defer s.close()
		s.pulse = p
		defer s.until(ctx, time.Now().Add(100*time.Millisecond))()
		_, err = ask(s, pad(1, 0))
		return err
	}
	if err := ask(slow, &pulse{last: time.Now()}, t.Context()); ClassOf(err) != Timeout {
		t.Errorf("a process that ran: %v, want a timeout", err)
	}
	if err := ask(slow, stood(), t.Context()); err != nil {
		t.Errorf("a process that stood still: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ask(slow, stood(), ended); ClassOf(err) != Timeout {
		t.Errorf("after the end of the context: %v", err)
	}
}

func TestDatagramIsGivenTheTimeThatTheProcessStoodStill(t *testing.T) {
	for _, tt := range []struct {
		age   time.Duration
		pulse *pulse
		lost  int
	}{
		{50 * time.Millisecond, nil, 0},
		{500 * time.Millisecond, nil, 1},
		{500 * time.Millisecond, stood(), 0},
		{1500 * time.Millisecond, stood(), 1},
	} {
		a := newAccount(time.Now(), &rules{}, func() error { return nil })
		w := &flow{socket: &socket{}, account: a, deadline: 100 * time.Millisecond, pulse: tt.pulse,
			recent: []datagram{{token: []byte("1"), sent: time.Now().Add(-tt.age)}}}
		if waits := w.expire(false); waits != (tt.lost == 0) || a.report().Classes[Timeout] != tt.lost {
			t.Errorf("age %s: waits %v, %v", tt.age, waits, a.report().Classes)
		}
	}
}
