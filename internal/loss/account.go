package loss

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// account is a Tally that goroutines share.
type account struct {
	start time.Time
	rules *rules
	over  func() error // not nil once the context of the Load has ended

	mu    sync.Mutex
	tally Tally
}

func newAccount(start time.Time, r *rules, over func() error) *account {
	return &account{start: start, rules: r, over: over, tally: Tally{Classes: map[Class]int{}, Backends: map[string]int{}}}
}

// settle counts the end of what began at a time: the one place where something
// gets its class. An answer by a backend that was forbidden by then is Wrong.
func (a *account) settle(began time.Time, backend string, err error) {
	took := time.Since(began)
	if err == nil && a.rules.forbids(backend, began) {
		err = &Fault{Wrong, fmt.Errorf("answered by %s, which was forbidden", backend)}
	}
	if over := a.over(); over != nil && ClassOf(err) == Timeout {
		err = &Fault{Failed, fmt.Errorf("ended while in flight: %w", over)}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tally.Total++
	a.tally.Classes[ClassOf(err)]++
	if backend != "" {
		a.tally.Backends[backend]++
		a.tally.Longest = max(a.tally.Longest, took)
	}
	if err != nil {
		a.example(err)
	}
}

func (a *account) example(err error) {
	now := time.Since(a.start)
	for i := range a.tally.Examples {
		if e := &a.tally.Examples[i]; e.Reason == err.Error() {
			e.Count++
			e.Last = now
			return
		}
	}
	if len(a.tally.Examples) < maxExamples {
		a.tally.Examples = append(a.tally.Examples, Example{Class: ClassOf(err), Reason: err.Error(), Count: 1, First: now, Last: now})
	}
}

// reclassify moves one that was settled to the class of err.
func (a *account) reclassify(from Class, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tally.Classes[from]--
	a.tally.Classes[ClassOf(err)]++
	a.example(err)
}

// behind notes how late the schedule is.
func (a *account) behind(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tally.Behind = max(a.tally.Behind, d)
}

func (a *account) report() Tally {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.tally
	t.Classes, t.Backends, t.Examples = maps.Clone(t.Classes), maps.Clone(t.Backends), slices.Clone(t.Examples)
	return t
}

// rules say which backends must not get anything new, and from when on.
type rules struct {
	mu        sync.Mutex
	forbidden map[string]time.Time
}

func (r *rules) set(backend string, forbidden bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if forbidden {
		r.forbidden[backend] = time.Now()
	} else {
		delete(r.forbidden, backend)
	}
}

// forbids tells whether something that began then must not have come to the
// backend.
func (r *rules) forbids(backend string, began time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	since, found := r.forbidden[backend]
	return found && began.After(since)
}
