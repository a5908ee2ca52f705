package netfilter

import (
	"context"
	"slices"
	"sync"
)

// Ledger knows who wrote what of the nftables rule set of a network namespace.
//
// Each commit to any table, by iptables or nft or over netlink, is one generation of
// the rule set. The Ledger books them in order:
//
//   - Our own: as many as a write has commits. If the rule set is so many generations
//     further than before the write, nobody else wrote meanwhile.
//   - Those of others: judged from what the kernel tells of them (Watch). One that
//     touched what is ours is kept as an incident. All others are nothing to us:
//     fail2ban may write as often as it likes and nothing is read.
//   - Those of which nobody knows what they did, because no watch was running or
//     events were lost, count as an incident in every table.
//
// So whoever remembers the generation as of which he knew a table can ask what
// happened since, at the cost of one message to the kernel (Since). A nil *Ledger
// knows nothing: with the legacy backend, which has no generations, everything has
// to be read.
//
// Trap: a generation grows before the kernel tells of it, and what it told waits in
// a socket. A generation that was not judged yet is never taken for nothing.
type Ledger struct {
	now  func(context.Context) (uint32, error) // the generation of the rule set
	busy chan struct{}                         // holds a token while we write

	mu        sync.Mutex
	begun     bool   // booked and floor are known
	booked    uint32 // everything up to here is accounted for
	floor     uint32 // incidents up to here are forgotten
	incidents []incident
	writes    []write     // of ours, beyond booked: what came before them is not judged yet
	writing   *write      // under way
	held      []news      // told meanwhile
	tell      func(Drift) // of the watch that runs; nil: none does
	deafen    func(bool)  // makes the watch that runs not hear of what is committed, and hear again
}

// incident is that somebody else touched what is ours, or may have.
type incident struct {
	generation uint32
	place
	unknown bool // nobody knows what was written
}

// maxIncidents is how many incidents are kept, and maxAge for how many generations:
// further apart two numbers of 32 bits do not tell which came first. Who knew less
// than the oldest has to read.
const (
	maxIncidents = 1024
	maxAge       = 1 << 30
)

// maxHeld is how much news is kept until a write of ours has ended.
const maxHeld = 4096

// Since is what happened to a table of one family since a generation.
type Since struct {
	Now     uint32   // the generation as of which this is said: all of Chains up to it
	Unknown bool     // nobody knows: the table has to be read, and may hold anything
	Chains  []string // which somebody else wrote, made or removed, ours and base chains; "" is the table
}

// Nothing reports whether nobody else touched the table.
func (s Since) Nothing() bool { return !s.Unknown && len(s.Chains) == 0 }

func newLedger() *Ledger { return &Ledger{now: generation, busy: make(chan struct{}, 1)} }

// after reports whether generation a is later than b. They are numbers of 32 bits
// that may wrap.
func after(a, b uint32) bool { return int32(a-b) > 0 }

// Since returns what others did to a table after a generation. 0 is that of who
// never knew the table: then it is unknown, and nobody is said to have touched it.
// Who reads the table after this call knows it as of Now.
func (l *Ledger) Since(ctx context.Context, mark uint32, f Family, table string) (Since, error) {
	if l == nil {
		return Since{Unknown: true}, ctx.Err()
	}
	now, err := l.now(ctx)
	if err != nil {
		return Since{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begin(now)
	s := Since{Now: now, Unknown: mark == 0}
	l.settle()
	switch {
	case !after(now, l.booked):
	case l.tell == nil:
		l.lose(now)
	default: // somebody wrote a moment ago: the kernel is still telling what, and that is said the next time
		s.Now, s.Unknown = l.booked, true
	}
	if mark == 0 {
		return s, nil
	}
	s.Unknown = s.Unknown || after(l.floor, mark)
	for _, i := range l.incidents {
		switch {
		case !after(i.generation, mark):
		case i.unknown:
			s.Unknown = true
		case i.family == f && i.table == table && !slices.Contains(s.Chains, i.chain):
			s.Chains = append(s.Chains, i.chain)
		}
	}
	return s, nil
}

// begin starts the books, unless they are begun.
func (l *Ledger) begin(now uint32) {
	if !l.begun {
		l.begun, l.booked, l.floor = true, now, now
	}
}

// lose notes that nobody knows what happened up to a generation.
func (l *Ledger) lose(now uint32) {
	l.note(incident{generation: now, unknown: true})
	l.booked, l.writes = now, nil
}

func (l *Ledger) note(i incident) {
	if len(l.incidents) == maxIncidents {
		half := l.incidents[:maxIncidents/2]
		l.floor = half[len(half)-1].generation
		l.incidents = slices.Delete(l.incidents, 0, len(half))
	}
	l.incidents = append(l.incidents, i)
}

// settle books the writes of ours whose turn has come, and forgets what is too old.
func (l *Ledger) settle() {
	if oldest := l.booked - maxAge; after(oldest, l.floor) {
		l.floor = oldest
		l.incidents = slices.DeleteFunc(l.incidents, func(i incident) bool { return !after(i.generation, oldest) })
	}
	for len(l.writes) > 0 {
		switch w := l.writes[0]; {
		case !after(w.to, l.booked): // all of it is judged
		case !w.mixed && !after(w.from, l.booked):
			l.booked = w.to
		default:
			return
		}
		l.writes = l.writes[1:]
	}
}

// hear takes over what the kernel told of one commit, of ours or of others, and
// tells what is foreign and touches what is ours.
func (l *Ledger) hear(n news) {
	l.mu.Lock()
	drift, tell := l.judge(n), l.tell
	l.mu.Unlock()
	if tell != nil && drift.Object != "" {
		tell(drift)
	}
}

func (l *Ledger) judge(n news) (d Drift) {
	if l.settle(); !after(n.generation, l.booked) {
		return Drift{}
	}
	if l.writing != nil && after(n.generation, l.writing.from) {
		l.held = append(l.held, n) // ours, most likely; known when the write has ended
		if len(l.held) > maxHeld {
			l.writing.miss(n.generation)
			l.held = nil
		}
		return Drift{}
	}
	if n.generation != l.booked+1 {
		l.lose(n.generation - 1)
		d.Object = eventsLost
	}
	l.booked = n.generation
	if len(l.writes) > 0 && after(n.generation, l.writes[0].from) && n.port == l.writes[0].pid {
		return d
	}
	for _, p := range n.places {
		l.note(incident{generation: n.generation, place: p})
	}
	if len(n.places) > 0 {
		d = n.drift()
	}
	return d
}

// watch begins a watch. What happened while none was running is unknown, and told:
// the pass that asked last may have asked before that.
func (l *Ledger) watch(now uint32, tell func(Drift), deafen func(bool)) {
	l.mu.Lock()
	l.begin(now)
	l.settle()
	l.tell, l.deafen = tell, deafen
	lost := after(now, l.booked)
	if lost {
		l.lose(now)
	}
	l.mu.Unlock()
	if lost {
		tell(Drift{Object: unwatched})
	}
}

// unwatch ends it.
func (l *Ledger) unwatch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tell, l.deafen = nil, nil
}

// recover is called when the kernel had to leave out what it would have told, of
// commits up to now. It tells so only if that matters.
func (l *Ledger) recover(now uint32) {
	l.mu.Lock()
	if l.writing != nil { // it is seen when that has ended
		l.writing.miss(now)
		l.mu.Unlock()
		return
	}
	l.settle()
	lost, tell := after(now, l.booked), l.tell
	if lost {
		l.lose(now)
	}
	l.mu.Unlock()
	if lost && tell != nil {
		tell(Drift{Object: eventsLost})
	}
}
