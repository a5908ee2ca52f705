package netfilter

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vipd/lb"
)

const (
	// evictRetryMin and evictRetryMax bound the pause after a failure, which doubles.
	evictRetryMin = time.Second
	evictRetryMax = 30 * time.Second
	// evictAttempts is how often evictions are tried: some two minutes, after which
	// they are given up, for what they name may serve again by then.
	evictAttempts = 9
)

// Keep says whether flows to a service and backend are to stay. It is asked from
// other goroutines than the one that handed it over, and later: it has to answer
// for what is in force when it is asked.
type Keep func(service lb.Key, backend netip.AddrPort) bool

// flowTable is what an Evictor needs of a Conntrack.
type flowTable interface {
	Evict(ctx context.Context, evictions ...Eviction) (Evicted, error)
	Sweep(ctx context.Context, proto lb.Protocol, mark uint32, keeps map[Way]Keep) (Evicted, error)
	Tell(ctx context.Context, flows []flow) (told int, err error)
	Close() error
}

// Evictor ends flows in the background. What is asked of it is gathered in sets
// and never waits; a failure is logged and tried again. TCP, whose resets keep a
// pace, UDP and SCTP have a goroutine each, so that a long drain holds up no datagram.
type Evictor struct {
	log   *slog.Logger
	lanes map[lb.Protocol]*lane
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// NewEvictor starts an Evictor for the network namespace of the process. mark is
// the connmark of the connections that a VIP took. The owner closes it.
func NewEvictor(mark uint32, log *slog.Logger) *Evictor {
	return newEvictor(mark, log, func() (flowTable, error) { return OpenConntrack(log) })
}

func newEvictor(mark uint32, log *slog.Logger, open func() (flowTable, error)) *Evictor {
	ctx, stop := context.WithCancel(context.Background())
	e := &Evictor{log: log, lanes: map[lb.Protocol]*lane{}, stop: stop}
	for _, proto := range [...]lb.Protocol{lb.TCP, lb.UDP, lb.SCTP} {
		l := &lane{proto: proto, mark: mark, log: log, open: open, wake: make(chan struct{}, 1)}
		l.idle.L = &l.mu
		e.lanes[proto] = l
		e.done.Go(func() { l.run(ctx) })
	}
	return e
}

// Evict asks for the end of flows and returns at once. It must be called after
// the rules that made them are gone.
func (e *Evictor) Evict(evictions ...Eviction) {
	for proto, l := range e.lanes {
		w := work{evictions: map[Eviction]bool{}}
		for _, eviction := range evictions {
			if eviction.Key.Protocol == proto {
				w.evictions[eviction] = true
			}
		}
		if !w.empty() {
			l.ask(w)
		}
	}
}

// Note remembers the connections that evictions name until they are asked for, or
// cancelled: for a mode in which they go, conntrack entries and all, with what served
// them, so that nobody could tell their ends any more. Those of TCP; the others have
// nothing to be told. It reads conntrack, and waits for it.
func (e *Evictor) Note(ctx context.Context, evictions ...Eviction) error {
	noted, err := noteFlows(ctx, evictions...)
	if len(noted) > 0 {
		e.lanes[lb.TCP].note(noted)
	}
	return err
}

// Cancel takes back evictions that have not begun, because their backend serves
// again.
func (e *Evictor) Cancel(evictions ...Eviction) {
	for _, eviction := range evictions {
		if l := e.lanes[eviction.Key.Protocol]; l != nil {
			l.cancel(eviction)
		}
	}
}

// Sweep asks for the end of all flows of ours that keep refuses, and returns at
// once. A later Sweep takes the place of one that has not begun.
func (e *Evictor) Sweep(keep Keep) { e.sweep(ByAny, keep) }

func (e *Evictor) sweep(of Way, keep Keep) {
	for _, l := range e.lanes {
		l.ask(work{keeps: map[Way]Keep{of: keep}})
	}
}

// Of returns the part of the Evictor for the flows of one way, for a mode that shares
// it with others. It is closed with the whole.
func (e *Evictor) Of(w Way) EvictorOf { return EvictorOf{e, w} }

// EvictorOf ends the flows that were sent to their backend in one way, and those that
// were sent to nobody. The flows of other ways are left alone.
type EvictorOf struct {
	all *Evictor
	way Way
}

// Evict is as for Evictor.
func (o EvictorOf) Evict(evictions ...Eviction) { o.all.Evict(o.ways(evictions)...) }

// Note is as for Evictor.
func (o EvictorOf) Note(ctx context.Context, evictions ...Eviction) error {
	return o.all.Note(ctx, o.ways(evictions)...)
}

// Cancel is as for Evictor.
func (o EvictorOf) Cancel(evictions ...Eviction) { o.all.Cancel(o.ways(evictions)...) }

// Sweep is as for Evictor. It takes the place of one of the same way alone.
func (o EvictorOf) Sweep(keep Keep) { o.all.sweep(o.way, keep) }

func (o EvictorOf) ways(evictions []Eviction) []Eviction {
	own := slices.Clone(evictions)
	for i, e := range own {
		if e.Backend != e.Key.AddrPort() {
			own[i].Way = o.way
		}
	}
	return own
}

// Wait returns when nothing is left to do, done or given up, or when the Evictor
// is closed; or with the error of ctx.
func (e *Evictor) Wait(ctx context.Context) error {
	for _, l := range e.lanes {
		if err := l.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Close ends what is under way and waits for it. What was not done is dropped; a
// Sweep after the next start makes up for it.
func (e *Evictor) Close() error {
	e.stop()
	e.done.Wait()
	return nil
}

// work is what a lane has to do.
type work struct {
	evictions map[Eviction]bool
	keeps     map[Way]Keep
}

func (w work) empty() bool { return len(w.evictions) == 0 && len(w.keeps) == 0 }

// add joins newer work into w.
func (w *work) add(newer work) {
	if w.evictions == nil {
		w.evictions = map[Eviction]bool{}
	}
	maps.Copy(w.evictions, newer.evictions)
	if w.keeps == nil {
		w.keeps = map[Way]Keep{}
	}
	maps.Copy(w.keeps, newer.keeps)
}

// lane ends the flows of one protocol.
type lane struct {
	proto lb.Protocol
	mark  uint32
	log   *slog.Logger
	open  func() (flowTable, error)
	wake  chan struct{}

	mu      sync.Mutex
	idle    sync.Cond // signals that there is nothing pending nor current, or closed is true
	pending work
	current work // what the goroutine is at
	noted   map[Eviction][]flow
	closed  bool

	table flowTable // of the goroutine; nil until needed
}

func (l *lane) ask(w work) {
	l.mu.Lock()
	l.pending.add(w)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default: // it will look anyway
	}
}

func (l *lane) note(flows map[Eviction][]flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.noted == nil {
		l.noted = map[Eviction][]flow{}
	}
	maps.Copy(l.noted, flows)
}

// takeNotes returns what was noted of evictions, and forgets it.
func (l *lane) takeNotes(evictions []Eviction) (flows []flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range evictions {
		flows = append(flows, l.noted[e]...)
		delete(l.noted, e)
	}
	return flows
}

func (l *lane) cancel(e Eviction) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.noted, e)
	delete(l.pending.evictions, e)
	delete(l.current.evictions, e) // so that it is not tried again
}

func (l *lane) wait(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.idle.Broadcast()
	})()
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.closed && ctx.Err() == nil && !(l.current.empty() && l.pending.empty()) {
		l.idle.Wait()
	}
	return ctx.Err()
}

// take ends the current work and returns the next, or false if there is none.
func (l *lane) take() (evictions []Eviction, keeps map[Way]Keep, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current, l.pending = l.pending, work{}
	if l.current.empty() {
		l.idle.Broadcast()
		return nil, nil, false
	}
	return slices.Collect(maps.Keys(l.current.evictions)), l.current.keeps, true
}

// giveBack puts the current work, which failed, behind what was asked for since.
func (l *lane) giveBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current.add(l.pending)
	l.current, l.pending = work{}, l.current
}

// run is the goroutine of the lane.
func (l *lane) run(ctx context.Context) {
	defer l.end()
	pause, attempt := evictRetryMin, 1
	for {
		evictions, keeps, ok := l.take()
		if !ok {
			select {
			case <-l.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		err := l.do(ctx, evictions, keeps)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			pause, attempt = evictRetryMin, 1
			continue
		case attempt == evictAttempts:
			l.log.Error("flows of removed backends could not be ended; given up: they last until they are idle",
				"protocol", l.proto, "evictions", len(evictions), "error", err)
			pause, attempt = evictRetryMin, 1
			continue
		case attempt == 1:
			l.log.Warn("flows of removed backends could not be ended; trying again",
				"protocol", l.proto, "evictions", len(evictions), "error", err)
		}
		l.giveBack()
		if !sleep(ctx, pause) {
			return
		}
		pause, attempt = min(2*pause, evictRetryMax), attempt+1
	}
}

// do makes one attempt.
func (l *lane) do(ctx context.Context, evictions []Eviction, keeps map[Way]Keep) (err error) {
	if l.table == nil {
		if l.table, err = l.open(); err != nil {
			return err
		}
	}
	start := time.Now()
	var done Evicted
	noted := l.takeNotes(evictions)
	if len(noted) > 0 && !sleep(ctx, forgetTime) {
		return ctx.Err()
	}
	if len(evictions) > 0 {
		done, err = l.table.Evict(ctx, evictions...)
	}
	if len(noted) > 0 && err == nil {
		var told int
		told, err = l.table.Tell(ctx, noted)
		done.Poked += told
	}
	if len(keeps) > 0 && err == nil {
		var swept Evicted
		swept, err = l.table.Sweep(ctx, l.proto, l.mark, keeps)
		done.Add(swept)
	}
	if done.Deleted+done.Poked > 0 {
		l.log.Info("flows of removed backends ended", "protocol", l.proto,
			"flows", done.Deleted, "reset", done.Poked, "took", time.Since(start))
	}
	return err
}

// end frees what the lane holds and lets go of those who wait.
func (l *lane) end() {
	if l.table != nil {
		if err := l.table.Close(); err != nil {
			l.log.Warn("conntrack sockets not closed", "error", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.idle.Broadcast()
}

// sleep waits for d and reports whether ctx lives on.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
