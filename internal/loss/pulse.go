package loss

import (
	"context"
	"sync"
	"time"
)

// A pulse that comes later than stall after the one before tells that the process
// did not run in between.
const (
	beat  = 20 * time.Millisecond
	stall = 250 * time.Millisecond
)

// pulse knows when this very process stood still: on a machine that is overloaded,
// or paused by its hypervisor, for seconds at times. Nothing can be said of an
// answer that was due then, so deadlines are longer by that time, and the report
// says how long it was. A load balancer that drops packets stops no pulse.
type pulse struct {
	done chan struct{} // closed when it has ended

	mu    sync.Mutex
	last  time.Time
	gaps  []gap
	total time.Duration
}

// gap is a time in which the process did not run.
type gap struct {
	end    time.Time
	length time.Duration
}

// newPulse returns a pulse that beats until ctx ends.
func newPulse(ctx context.Context) *pulse {
	p := &pulse{done: make(chan struct{}), last: time.Now()}
	go func() {
		defer close(p.done)
		ticker := time.NewTicker(beat)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				p.note()
			case <-ctx.Done():
				return
			}
		}
	}()
	return p
}

// note is one beat.
func (p *pulse) note() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if length := now.Sub(p.last); length > stall {
		p.gaps = append(p.gaps, gap{now, length})
		p.total += length
	}
	p.last = now
}

// since returns how long the process stood still after a time, up to now: the beat
// that is overdue counts as well. A nil pulse has never missed a beat.
func (p *pulse) since(t time.Time) time.Duration {
	if p == nil {
		return 0
	}
	p.note()
	p.mu.Lock()
	defer p.mu.Unlock()
	var sum time.Duration
	for i := len(p.gaps) - 1; i >= 0 && p.gaps[i].end.After(t); i-- {
		sum += p.gaps[i].length
	}
	return sum
}

func (p *pulse) stalled() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}
