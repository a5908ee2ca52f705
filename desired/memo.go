package desired

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vipd/lb"
)

// entry is what was decided for one Key. It is immutable; a nil entry is that of
// a Key that nobody knows.
type entry struct {
	owner   string   // the source that has the Key, also while it leaves
	name    string   // what it calls the service
	spec    *lb.Spec // nil: no source wants it any more
	mode    lb.Mode  // of spec
	timeout time.Duration
	due     time.Time  // when time alone changes the decision; zero: never
	served  []placedIn // by mode, each once
}

// placedIn is what one mode serves.
type placedIn struct {
	mode lb.Mode
	*placed
}

func (e *entry) ownerName() string {
	if e == nil {
		return ""
	}
	return e.owner
}

func (e *entry) empty() bool { return len(e.served) == 0 }

func (e *entry) placed(m lb.Mode) *placed {
	for _, s := range e.modes() {
		if s.mode == m {
			return s.placed
		}
	}
	return nil
}

func (e *entry) modes() []placedIn {
	if e == nil {
		return nil
	}
	return e.served
}

func (e *entry) place(m lb.Mode, p *placed) {
	if p == nil {
		return
	}
	at, _ := slices.BinarySearchFunc(e.served, m, func(s placedIn, m lb.Mode) int { return strings.Compare(string(s.mode), string(m)) })
	e.served = slices.Insert(e.served, at, placedIn{m, p})
}

// wakeFor makes the entry due when the next backend has drained, and at once
// when a service refuses, which lasts one pass.
func (e *entry) wakeFor(p *placed, now time.Time) {
	wake := func(t time.Time) {
		if e.due.IsZero() || t.Before(e.due) {
			e.due = t
		}
	}
	if p.Refusing {
		wake(now)
	}
	for _, until := range p.Drains {
		if until.After(now) {
			wake(until)
		}
	}
}

// face is the service that the outside sees: that of the mode that gains it. Its
// Mode tells which one that is.
func (e *entry) face() *lb.Service {
	if e == nil {
		return nil
	}
	if p := e.placed(e.mode); p != nil {
		return p.Service
	}
	if e.empty() {
		return nil
	}
	return e.served[0].Service
}

// equal reports whether two entries decide the same.
func (e *entry) equal(o *entry) bool {
	if e == nil || o == nil {
		return e == o
	}
	return e.owner == o.owner && e.spec == o.spec && e.mode == o.mode && e.due.Equal(o.due) &&
		slices.EqualFunc(e.served, o.served, func(a, b placedIn) bool {
			return a.mode == b.mode && a.Leaving == b.Leaving && a.Refusing == b.Refusing && a.Service.Equal(b.Service) &&
				maps.EqualFunc(a.Drains, b.Drains, time.Time.Equal)
		})
}

// Memo is what Compute remembers from call to call. Make one with NewMemo or
// Restore. It belongs to one goroutine.
type Memo struct {
	facts    Facts
	entries  map[lb.Key]*entry
	problems map[lb.Key][]Problem
	due      map[lb.Key]time.Time               // of the entries that have one
	vips     map[netip.Addr]int                 // how many entries have this VIP
	backends tally                              // of the addresses of the backends of wanted entries
	stands   map[lb.Mode]map[lb.Key]*lb.Service // see Stand
	place    map[lb.Mode]lb.Snapshot
	door     lb.Snapshot
	vipGone  bool // in the last Compute a VIP lost its last service
}

// NewMemo returns the Memo of a host on which nothing is served.
func NewMemo() *Memo {
	return &Memo{
		entries: map[lb.Key]*entry{}, problems: map[lb.Key][]Problem{}, due: map[lb.Key]time.Time{},
		vips: map[netip.Addr]int{}, backends: tally{}, stands: map[lb.Mode]map[lb.Key]*lb.Service{},
		place: map[lb.Mode]lb.Snapshot{},
	}
}

// Clone returns a Memo that decides the same and remembers apart from m.
func (m *Memo) Clone() *Memo {
	c := *m
	c.entries, c.problems, c.due = maps.Clone(m.entries), maps.Clone(m.problems), maps.Clone(m.due)
	c.vips, c.backends, c.stands, c.place = maps.Clone(m.vips), maps.Clone(m.backends), m.cloneStands(), maps.Clone(m.place)
	return &c
}

// Still returns a Memo for Len, Services and Problems that m's Computes leave as it
// is. It costs less than Clone.
func (m *Memo) Still() *Memo {
	return &Memo{entries: maps.Clone(m.entries), problems: maps.Clone(m.problems), facts: Facts{Mode: m.facts.Mode}}
}

// remember replaces the entry of k; nil forgets the Key.
func (m *Memo) remember(k lb.Key, e *entry) {
	old, known := m.entries[k]
	m.count(old, -1)
	m.count(e, 1)
	switch {
	case e == nil && known:
		delete(m.entries, k)
		for _, there := range m.stands {
			delete(there, k)
		}
		if m.vips[k.Addr]--; m.vips[k.Addr] == 0 {
			delete(m.vips, k.Addr)
			m.vipGone = true
		}
	case e != nil:
		m.entries[k] = e
		if !known {
			m.vips[k.Addr]++
		}
	}
	m.schedule(k, e)
}

// count adds n for each backend that an entry wants.
func (m *Memo) count(e *entry, n int32) {
	if e == nil || e.spec == nil {
		return
	}
	for _, b := range e.spec.Backends {
		m.backends.add(b.Addr.Addr(), n)
	}
}

func (m *Memo) schedule(k lb.Key, e *entry) {
	if e == nil || e.due.IsZero() {
		delete(m.due, k)
		return
	}
	m.due[k] = e.due
}

func (m *Memo) nextDue() time.Time {
	var next time.Time
	for _, t := range m.due {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	return next
}

func (m *Memo) setProblems(k lb.Key, p []Problem) {
	if len(p) == 0 {
		delete(m.problems, k)
		return
	}
	m.problems[k] = p
}

// touched returns the keys that have to be decided again, in order: those of
// which a source says something else, those whose time has come, and all of them
// when a fact changed that concerns all.
func (m *Memo) touched(f Facts) []lb.Key {
	keys := map[lb.Key]bool{}
	old := m.facts
	if old.Mode != f.Mode || !maps.EqualFunc(old.Modes, f.Modes, Ability.equal) || !maps.Equal(old.Lacks, f.Lacks) ||
		!slices.Equal(old.Allowed, f.Allowed) ||
		!slices.EqualFunc(old.Sources, f.Sources, func(a, b Source) bool { return a.Name == b.Name }) {
		m.touchAll(f, keys)
	} else {
		for i, s := range f.Sources {
			touchChanged(old.Sources[i], s, keys)
		}
	}
	for k, t := range m.due {
		if !t.After(f.Now) {
			keys[k] = true
		}
	}
	for d := range f.Idle {
		if m.entries[d.Key] != nil {
			keys[d.Key] = true
		}
	}
	m.touchRivals(keys)
	return slices.SortedFunc(maps.Keys(keys), lb.Key.Compare)
}

// touchRivals adds the keys that have a problem whenever anything changes, or a
// VIP went since: what stood in their way may be gone. There are few of them.
func (m *Memo) touchRivals(keys map[lb.Key]bool) {
	if len(keys) == 0 && !m.vipGone {
		return
	}
	for k := range m.problems {
		keys[k] = true
	}
}

func (m *Memo) touchAll(f Facts, keys map[lb.Key]bool) {
	for k := range m.entries {
		keys[k] = true
	}
	for _, s := range f.Sources {
		for _, spec := range s.Services {
			keys[spec.Key] = true
		}
	}
}

// touchChanged adds the keys in which two sets of one source differ.
func touchChanged(old, now Source, keys map[lb.Key]bool) {
	if !maps.EqualFunc(old.Yields, now.Yields, time.Time.Equal) {
		for _, held := range []map[lb.Key]time.Time{old.Yields, now.Yields} {
			for k := range held {
				keys[k] = true
			}
		}
	}
	a, b := old.Services, now.Services
	if len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) {
		return
	}
	for {
		same := 0 // nearly all of them, unread
		for same < len(a) && same < len(b) && a[same] == b[same] {
			same++
		}
		a, b = a[same:], b[same:]
		switch {
		case len(a) == 0 && len(b) == 0:
			return
		case len(b) == 0 || len(a) > 0 && a[0].Key.Compare(b[0].Key) < 0:
			keys[a[0].Key] = true
			a = a[1:]
		case len(a) == 0 || b[0].Key.Compare(a[0].Key) < 0:
			keys[b[0].Key] = true
			b = b[1:]
		default:
			keys[a[0].Key] = true
			a, b = a[1:], b[1:]
		}
	}
}

// Unserved returns how many entries Problems yields.
func (m *Memo) Unserved() (n int) {
	for _, p := range m.problems {
		n += len(p)
	}
	return n
}

// Problems yields the entries that are not served, and why, in order.
func (m *Memo) Problems() iter.Seq2[lb.Key, Problem] {
	return func(yield func(lb.Key, Problem) bool) {
		for _, k := range slices.SortedFunc(maps.Keys(m.problems), lb.Key.Compare) {
			for _, p := range m.problems[k] {
				if !yield(k, p) {
					return
				}
			}
		}
	}
}
