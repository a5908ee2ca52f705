package loss

import (
	"context"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Options say where a Load comes from.
type Options struct {
	In       In
	Deadline time.Duration // for each answer; 0 is DefaultDeadline
}

// Load is traffic under account. Connect, Hold and Send add to it, in any number
// and order; Stop ends it.
type Load struct {
	options Options
	start   time.Time
	rules   *rules
	token   atomic.Int64 // makes every request differ

	connections, held, datagrams *account

	pulse *pulse
	calm  context.CancelFunc // ends the pulse

	all   context.Context //nolint:containedctx // a Load is the life of its traffic: this ends every wait
	stop  context.Context //nolint:containedctx // and this what begins new traffic, see Stop
	halt  context.CancelFunc
	group sync.WaitGroup
}

// Start returns a Load without traffic. When ctx ends, so does everything in it,
// and what was in flight is counted as Failed.
func Start(ctx context.Context, o Options) *Load {
	if o.Deadline == 0 {
		o.Deadline = DefaultDeadline
	}
	l := &Load{options: o, start: time.Now(), rules: &rules{forbidden: map[string]time.Time{}}, all: ctx}
	l.stop, l.halt = context.WithCancel(ctx)
	beating, calm := context.WithCancel(ctx)
	l.pulse, l.calm = newPulse(beating), calm
	for _, a := range []**account{&l.connections, &l.held, &l.datagrams} {
		*a = newAccount(l.start, l.rules, ctx.Err)
	}
	return l
}

// Forbid says that from now on no new connection and no datagram may be answered
// by that backend. Connections that it has already keep it.
func (l *Load) Forbid(backend string) { l.rules.set(backend, true) }

// Allow takes a Forbid back.
func (l *Load) Allow(backend string) { l.rules.set(backend, false) }

// Report returns the account so far. What is in flight is not in it yet.
func (l *Load) Report() Report {
	return Report{
		Elapsed:     time.Since(l.start),
		Stalled:     l.pulse.stalled(),
		Connections: l.connections.report(),
		Held:        l.held.report(),
		Datagrams:   l.datagrams.report(),
	}
}

// Stop begins nothing new, waits for the answers to what is in flight, asks every
// held connection once more, and returns the whole account.
func (l *Load) Stop() Report {
	l.halt()
	return l.Wait()
}

// Wait waits until all traffic with a Count has come to its end by itself, and
// returns the account. Traffic without a Count goes on until Stop or the context.
func (l *Load) Wait() Report {
	l.group.Wait()
	l.halt()
	l.calm()
	<-l.pulse.done
	return l.Report()
}

// Connections is an open-loop stream of new TCP connections, each of which asks
// once.
type Connections struct {
	Target netip.AddrPort
	Rate   int // a second
	Count  int // how many; 0: until Stop
	Size   int // bytes of the request; 0: a few
}

// Connect starts such a stream.
func (l *Load) Connect(c Connections) {
	l.group.Go(func() {
		var group sync.WaitGroup
		var from ports
		from.jump()
		err := l.options.In.run(func() error {
			l.schedule(c.Rate, c.Count, l.connections, func(began time.Time) {
				s, err := from.open(unix.SOCK_STREAM, c.Target)
				if err != nil {
					l.connections.settle(began, "", err)
					return
				}
				group.Go(func() { l.askOnce(s, began, c.Size) })
			})
			return nil
		})
		group.Wait()
		if err != nil {
			l.connections.settle(time.Now(), "", err)
		}
	})
}

// schedule calls begin at a steady rate, on the goroutine (and so in the
// namespace) of the caller. When it comes late it catches up.
func (l *Load) schedule(rate, count int, a *account, begin func(time.Time)) {
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := 0; count == 0 || i < count; i++ {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(max(rate, 1)))
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-l.stop.Done():
			}
		}
		if l.stop.Err() != nil {
			return
		}
		now := time.Now()
		a.behind(now.Sub(due))
		begin(now)
	}
}

// askOnce sees one connection of Connect through.
func (l *Load) askOnce(s *socket, began time.Time, size int) {
	defer s.close()
	s.pulse = l.pulse
	defer s.until(l.all, began.Add(l.options.Deadline))()
	answer, err := ask(s, l.nextToken(size))
	l.connections.settle(began, answer.Backend, err)
}

// nextToken returns a request that no other is equal to, padded to a size.
func (l *Load) nextToken(size int) []byte { return pad(l.token.Add(1), size) }

func pad(n int64, size int) []byte {
	token := strconv.AppendInt(make([]byte, 0, max(size, 20)), n, 10)
	for len(token) < size {
		token = append(token, '.')
	}
	return token
}
