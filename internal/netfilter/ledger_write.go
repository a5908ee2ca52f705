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
	blind    bool   // the kernel did not tell all of it,
	missed   uint32 // nor of what came up to here
}

// miss notes that the kernel did not tell all up to a generation.
func (w *write) miss(generation uint32) { w.blind, w.missed = true, generation }

// errLied is a tool that says that it committed, and did not.
var errLied = errors.New("iptables-restore ends with success, but nothing of it is in the kernel; mend the installation of iptables")

// largeWrite is from how many bytes on the watch does not hear of a write of ours: it
// would cost the kernel a tenth of the load of many services to tell of it.
const largeWrite = 64 << 10

// write makes a write of ours, one at a time, and books it. size is that of what is
// written, in bytes. run calls started with the process that writes, and returns how
// many commits stand that surely changed something, or unknownCommits.
func (l *Ledger) write(ctx context.Context, size int, run func(started func(pid int)) (int, error)) error {
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
	if err == nil && genErr == nil && stands > 0 && now == before {
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
	l.writing = &write{from: before, missed: before, blind: blind}
}

func (l *Ledger) started(pid int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writing.pid = uint32(pid)
}

// book ends a write of ours. If the commits of it that stand are as many as there
// are new generations, all of those are ours; or else the watch has to tell, and if
// it could not hear, nobody knows. What was told meanwhile is judged before anything
// that is told later.
func (l *Ledger) book(now uint32, stands int) {
	l.mu.Lock()
	w, tell, held := l.writing, l.tell, l.held
	l.writing, l.held = nil, nil
	if now != w.from {
		w.to, w.mixed = now, now-w.from != uint32(stands)
		l.writes = append(l.writes, *w)
	}
	l.settle()
	if after(w.missed, now) {
		now = w.missed
	}
	var drifts []Drift
	if w.blind && tell != nil && after(now, l.booked) {
		l.lose(now)
		drifts = append(drifts, Drift{Object: eventsLost})
	}
	for _, n := range held {
		if d := l.judge(n); d.Object != "" {
			drifts = append(drifts, d)
		}
	}
	l.mu.Unlock()
	for _, d := range drifts {
		if tell != nil {
			tell(d)
		}
	}
}

// unknownCommits is the count of a write whose outcome is unknown: more than any
// write has.
const unknownCommits = -1

// countCommits counts the commits of a script of iptables-restore that surely change
// something: a rule that is added or deleted is a change. To empty a chain or make
// one may be none; if it was one, it is the watch that tells whose.
func countCommits(script []byte) (commits int) {
	sure := false
	for line := range bytes.Lines(script) {
		switch {
		case bytes.HasPrefix(line, []byte("COMMIT")):
			if sure {
				commits++
			}
			sure = false
		case len(line) > 1 && line[0] == '-' && bytes.IndexByte([]byte("AIDRX"), line[1]) >= 0:
			sure = true
		}
	}
	return commits
}
