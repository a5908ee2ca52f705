package discovery

import (
	"maps"
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
	// held version. Zero: never, since the source still states the service.
	Yields time.Time

	confirmed bool // a verified answer confirmed the big removal: it drips away
}

// stated reports whether the source still has the service itself.
func (h Hold) stated() bool { return h.Kind == HoldBackends }

// drip is how long a part of a confirmed big removal waits for the next.
const drip = time.Second

// ledger is the accepted set of one source, and what of it is held.
type ledger struct {
	services []*lb.Spec // sorted by Key
	held     map[lb.Key]Hold
	doubles  []Rejection // what lost to another entry of the same source
	dripped  time.Time   // when the last part of a confirmed big removal went
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
	next := &ledger{held: map[lb.Key]Hold{}, dripped: l.dripped}
	next.services, next.doubles = l.intern(set.Services)
	missing, emptied := l.losses(next.services)
	judge := judgement{old: l, policy: p, now: now, verified: set.Verified}
	class := OK
	if !p.Trusted {
		next.holdLastBackends(judge, emptied)
	}
	switch {
	case len(missing) > 0 && len(next.services) == 0 && !p.AllowEmpty:
		next.hold(judge, missing, HoldEmpty)
		class = OKEmpty
	case p.Trusted: // what the operator wrote is meant
	case l.big(len(missing), p):
		next.hold(judge, missing, HoldShrink)
		class = OKShrink
	default:
		missing = slices.DeleteFunc(missing, func(s *lb.Spec) bool { return !rival(s.Key) })
		next.hold(judge, missing, HoldHandOver)
	}
	if len(next.held) > 0 {
		lb.SortSpecs(next.services)
	}
	return next.settle(l), class
}

// judgement is what a removal is judged by.
type judgement struct {
	old      *ledger
	policy   Policy
	now      time.Time
	verified bool
}

// hold returns the hold on a removal, which lasts since it began.
func (j judgement) hold(k lb.Key, kind HoldKind) Hold {
	h := j.old.held[k]
	if h.Kind != kind {
		h = Hold{Kind: kind, Since: j.now}
	}
	if !h.stated() {
		h.Yields = h.Since.Add(j.policy.Hold)
	}
	h.confirmed = h.confirmed || kind == HoldShrink && j.verified && j.over(h)
	return h
}

// over reports whether a hold has lasted its time.
func (j judgement) over(h Hold) bool { return !j.now.Before(h.Since.Add(j.policy.Hold)) }

// hold keeps what the old ledger has and the answer has not, except what may go
// by now. A hand-over needs no more than its time: the VIP:port stays served
// either way. What went empty waits for an operator, or for an answer that is not.
func (l *ledger) hold(j judgement, missing []*lb.Spec, kind HoldKind) {
	budget := j.policy.Drip
	if j.now.Before(l.dripped.Add(drip)) {
		budget = 0
	}
	for _, s := range missing {
		h := j.hold(s.Key, kind)
		if kind == HoldHandOver && j.over(h) {
			continue
		}
		if h.confirmed && budget > 0 {
			budget--
			l.dripped = j.now
			continue
		}
		l.services = append(slices.Clip(l.services), s) // those of the answer are not ours to change
		l.held[s.Key] = h
	}
}

// holdLastBackends keeps the old version of services that lost all backends,
// until a verified answer says so after the time of the hold.
func (l *ledger) holdLastBackends(j judgement, emptied []int) {
	if len(emptied) > 0 {
		l.services = slices.Clone(l.services)
	}
	for _, i := range emptied {
		k := l.services[i].Key
		if h := j.hold(k, HoldBackends); !j.verified || !j.over(h) {
			l.services[i] = j.old.get(k)
			l.held[k] = h
		}
	}
}

// big reports whether n removals at once are too many to believe. What is held
// already stays a big removal until it is done.
func (l *ledger) big(n int, p Policy) bool {
	for _, h := range l.held {
		if h.Kind == HoldShrink || h.Kind == HoldEmpty {
			return n > 0
		}
	}
	return n >= minBigRemoval && float64(n) > p.MaxRemoval*float64(len(l.services))
}

// settle returns old itself if nothing is different, so that an answer that
// repeats the last one wakes nobody.
func (l *ledger) settle(old *ledger) *ledger {
	sameServices := slices.Equal(l.services, old.services)
	if sameServices && maps.Equal(l.held, old.held) && l.dripped.Equal(old.dripped) && slices.Equal(l.doubles, old.doubles) {
		return old
	}
	if sameServices {
		l.services = old.services
	}
	return l
}

// due returns when time alone may release something, or the zero time.
func (l *ledger) due(p Policy) time.Time {
	var due time.Time
	for _, h := range l.held {
		at := h.Since.Add(p.Hold)
		if h.confirmed {
			at = l.dripped.Add(drip)
		} else if h.Kind != HoldHandOver {
			continue
		}
		if due.IsZero() || at.Before(due) {
			due = at
		}
	}
	return due
}
