package discovery

import (
	"slices"
	"time"

	"vipd/lb"
)

// Policy says what the Hub believes of one source when things go away (R3).
// Additions and changes always apply.
type Policy struct {
	AllowEmpty bool          // zero services are a valid answer
	Trusted    bool          // an operator's file: only zero services are held
	MaxRemoval float64       // share of the services that may go at once, 0 to 1
	Hold       time.Duration // how long a removal that is held must last before a verified answer confirms it
	Drip       int           // services of a confirmed big removal that go a second
}

// DefaultPolicy is the policy for a store.
var DefaultPolicy = Policy{MaxRemoval: 0.3, Hold: 30 * time.Second, Drip: 10}

// minBigRemoval is the least number of services whose going is a big removal:
// of three services any one may go.
const minBigRemoval = 3

// HoldKind says why a removal is held.
type HoldKind string

// The reasons to hold a removal.
const (
	HoldEmpty    HoldKind = "source-empty"  // the whole source went; time alone never releases it
	HoldShrink   HoldKind = "big-removal"   // more than max_removal of the services went
	HoldBackends HoldKind = "last-backend"  // the service lost its last backend
	HoldHandOver HoldKind = "owner-changed" // it went, and another source claims its VIP:port
)

// Hold is a removal that a source stated and the Hub has not accepted: the old
// version of the service stands.
type Hold struct {
	Kind  HoldKind
	Since time.Time // when the source first said so
	// Yields is when another source that claims the same VIP:port wins over the
	// held version.
	Yields time.Time
}

// ledger is the accepted set of one source, and what of it is held.
type ledger struct {
	services  []*lb.Spec // sorted by Key
	held      map[lb.Key]Hold
	confirmed bool // a big removal was confirmed: it drips away
}

func specKey(s *lb.Spec, k lb.Key) int { return s.Key.Compare(k) }

func (l *ledger) get(k lb.Key) *lb.Spec {
	if i, found := slices.BinarySearchFunc(l.services, k, specKey); found {
		return l.services[i]
	}
	return nil
}

// accept returns the ledger after an answer, by the policy. It is pure: l and
// set stay as they are. rival says whether another source claims a Key.
func (l *ledger) accept(set Set, p Policy, now time.Time, rival func(lb.Key) bool) (*ledger, Class) {
	next := &ledger{held: map[lb.Key]Hold{}, services: l.intern(set.Services)}
	missing := l.missing(next)
	class := OK
	switch {
	case len(missing) > 0 && len(next.services) == 0 && !p.AllowEmpty:
		next.hold(l, missing, HoldEmpty, p, now)
		class = OKEmpty
	case p.Trusted: // what the operator wrote is meant
	case l.big(len(missing), p):
		next.hold(l, missing, HoldShrink, p, now)
		class = OKShrink
	default:
		for _, s := range missing {
			if rival(s.Key) {
				next.hold(l, []*lb.Spec{s}, HoldHandOver, p, now)
			}
		}
	}
	if !p.Trusted {
		next.holdLastBackends(l, p, now)
	}
	next.release(set.Verified, p, now)
	next.sort()
	return next.settle(l), class
}

// intern returns the specs sorted, one a Key, with the pointer of the accepted
// version where the value did not change.
func (l *ledger) intern(specs []*lb.Spec) []*lb.Spec {
	sorted := slices.Clone(specs)
	slices.SortStableFunc(sorted, func(a, b *lb.Spec) int { return a.Key.Compare(b.Key) })
	sorted = slices.CompactFunc(sorted, func(a, b *lb.Spec) bool { return a.Key == b.Key })
	for i, s := range sorted {
		if old := l.get(s.Key); old != nil && old.Equal(s) {
			sorted[i] = old
		}
	}
	return sorted
}

// missing returns what l has and next has not.
func (l *ledger) missing(next *ledger) []*lb.Spec {
	var missing []*lb.Spec
	for _, s := range l.services {
		if next.get(s.Key) == nil {
			missing = append(missing, s)
		}
	}
	return missing
}

// big reports whether n removals at once are too many to believe. What already
// drips away after a confirmation stays a big removal until it is done.
func (l *ledger) big(n int, p Policy) bool {
	for _, h := range l.held {
		if h.Kind == HoldShrink || h.Kind == HoldEmpty {
			return n > 0
		}
	}
	return n >= minBigRemoval && float64(n) > p.MaxRemoval*float64(len(l.services))
}

// hold keeps specs, which old has and the answer has not.
func (l *ledger) hold(old *ledger, specs []*lb.Spec, kind HoldKind, p Policy, now time.Time) {
	for _, s := range specs {
		l.services = append(l.services, s)
		l.held[s.Key] = holdSince(old.held[s.Key], kind, p, now)
	}
	l.confirmed = old.confirmed && kind == HoldShrink
}

// holdLastBackends keeps the old version of services that lost all backends.
func (l *ledger) holdLastBackends(old *ledger, p Policy, now time.Time) {
	for i, s := range l.services {
		if _, held := l.held[s.Key]; held || len(s.Backends) > 0 {
			continue
		}
		if before := old.get(s.Key); before != nil && len(before.Backends) > 0 {
			l.services[i] = before
			l.held[s.Key] = holdSince(old.held[s.Key], HoldBackends, p, now)
		}
	}
}

// holdSince returns the hold, which lasts since it began.
func holdSince(before Hold, kind HoldKind, p Policy, now time.Time) Hold {
	if before.Kind == kind {
		return before
	}
	return Hold{Kind: kind, Since: now, Yields: now.Add(p.Hold)}
}

// release lets go what a verified answer confirms after its time. A hand-over
// needs no more than its time: the VIP:port stays served either way.
func (l *ledger) release(verified bool, p Policy, now time.Time) {
	budget := p.Drip
	for _, k := range l.heldKeys() {
		h := l.held[k]
		if now.Before(h.Since.Add(p.Hold)) {
			continue
		}
		switch h.Kind {
		case HoldEmpty: // an operator, or an answer that is not empty
		case HoldHandOver:
			l.drop(k)
		case HoldBackends:
			if verified {
				l.replace(k)
			}
		case HoldShrink:
			l.confirmed = l.confirmed || verified
			if l.confirmed && budget > 0 {
				budget--
				l.drop(k)
			}
		}
	}
}

func (l *ledger) heldKeys() []lb.Key {
	keys := make([]lb.Key, 0, len(l.held))
	for k := range l.held {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, lb.Key.Compare)
	return keys
}

// drop takes a held service out.
func (l *ledger) drop(k lb.Key) {
	delete(l.held, k)
	l.services = slices.DeleteFunc(l.services, func(s *lb.Spec) bool { return s.Key == k })
}

// replace takes the version without backends in place of the held one.
func (l *ledger) replace(k lb.Key) {
	delete(l.held, k)
	for i, s := range l.services {
		if s.Key == k {
			empty := *s
			empty.Backends = nil
			l.services[i] = &empty
		}
	}
}

func (l *ledger) sort() {
	slices.SortFunc(l.services, func(a, b *lb.Spec) int { return a.Key.Compare(b.Key) })
}

// settle returns old itself if nothing is different, so that an answer that
// repeats the last one wakes nobody.
func (l *ledger) settle(old *ledger) *ledger {
	sameHeld := len(l.held) == len(old.held)
	for k, h := range l.held {
		sameHeld = sameHeld && old.held[k] == h
	}
	if sameHeld && l.confirmed == old.confirmed && slices.Equal(l.services, old.services) {
		return old
	}
	if slices.Equal(l.services, old.services) {
		l.services = old.services
	}
	return l
}

// due returns when time alone may release something, or the zero time.
func (l *ledger) due(p Policy) time.Time {
	var due time.Time
	for _, h := range l.held {
		at := h.Since.Add(p.Hold)
		if h.Kind == HoldHandOver || h.Kind == HoldShrink && l.confirmed {
			if due.IsZero() || at.Before(due) {
				due = at
			}
		}
	}
	return due
}
