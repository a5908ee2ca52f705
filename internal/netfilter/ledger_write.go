package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
)

// write is a write of ours: it made generations after from, up to to.
type write struct {
	from, to uint32
	pid      uint32 // of the socket that wrote
	mixed    bool   // somebody else wrote meanwhile: only the pid tells which are ours
	blind    bool   // the kernel did not tell all of it
}

// errLied is a tool that says that it committed, and did not.
var errLied = errors.New("iptables-restore ends with success, but nothing of it is in the kernel; mend the installation of iptables")

// largeWrite is from how many bytes on the watch does not hear of a write of ours: it
// would cost the kernel a tenth of the load of many services to tell of it.
const largeWrite = 64 << 10

// write makes a write of ours, one at a time, and books it. size is that of what is
// written, in bytes. run calls started with the process that writes, and returns how
// many commits stand.
func (l *Ledger) write(ctx context.Context, size int, run func(started func(pid int)) (commitCount, error)) error {
	if l == nil {
		_, err := run(func(int) {})
		return err
	}
	select {
	case l.busy <- struct{}{}:
		defer func() { <-l.busy }()
	case <-ctx.Done():
		return fmt.Errorf("waiting for another write: %w", context.Cause(ctx))
	}
	deaf := func(bool) {}
	if size >= largeWrite {
		deaf = l.deaf()
	}
	deaf(true)
	before, err := l.now(ctx)
	if err != nil {
		deaf(false)
		return err
	}
	l.open(before, size >= largeWrite)
	stands, err := run(l.started)
	deaf(false)
	now, genErr := l.now(context.WithoutCancel(ctx))
	if genErr != nil {
		now, stands = before, unknownCommits
	}
	l.book(now, stands)
	if err == nil && genErr == nil && stands.sure > 0 && now == before {
		return errLied
	}
	return errors.Join(err, genErr)
}

// deaf returns what makes the watch deaf.
func (l *Ledger) deaf() func(bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.deafen == nil {
		return func(bool) {}
	}
	return l.deafen
}

// open begins a write of ours.
func (l *Ledger) open(before uint32, blind bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begin(before)
	l.writing = &write{from: before, blind: blind}
}

func (l *Ledger) started(pid int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writing.pid = uint32(pid)
}

// book ends a write of ours. If the commits of it that stand are as many as there
// are new generations, all of those are ours; or else the watch has to tell, and if
// it could not hear, nobody knows.
func (l *Ledger) book(now uint32, stands commitCount) {
	l.mu.Lock()
	w, tell, held := l.writing, l.tell, l.held
	l.writing, l.held = nil, nil
	if now != w.from {
		w.to, w.mixed = now, !stands.explain(now-w.from)
		l.writes = append(l.writes, *w)
	}
	l.settle()
	lost := w.blind && tell != nil && after(now, l.booked)
	if lost {
		l.lose(now)
	}
	l.mu.Unlock()
	if lost {
		tell(Drift{Object: eventsLost})
	}
	for _, n := range held {
		l.hear(n)
	}
}

// commitCount is how many generations a write makes.
type commitCount struct {
	sure  int // commits that change something
	maybe int // commits that may find all of it done already
}

// unknownCommits is that of a write whose outcome is unknown.
var unknownCommits = commitCount{sure: -1}

// explain reports whether so many generations can be ours alone.
func (c commitCount) explain(n uint32) bool {
	return c.sure >= 0 && n >= uint32(c.sure) && n <= uint32(c.sure+c.maybe)
}

// countCommits counts those of a script of iptables-restore. A rule that is added
// or deleted is a change, to empty a chain or make one may be none.
func countCommits(script []byte) (c commitCount) {
	sure, maybe := false, false
	for line := range bytes.Lines(script) {
		switch {
		case bytes.HasPrefix(line, []byte("COMMIT")):
			if sure {
				c.sure++
			} else if maybe {
				c.maybe++
			}
			sure, maybe = false, false
		case len(line) > 1 && line[0] == '-' && bytes.IndexByte([]byte("AIDRX"), line[1]) >= 0:
			sure = true
		case line[0] == ':', line[0] == '-':
			maybe = true
		}
	}
	return c
}
