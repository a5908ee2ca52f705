package discovery

import (
	"slices"
	"time"

	"vipd/lb"
)

// View is what the Hub accepts at one moment: one entry a source, in the order
// of precedence. It is immutable.
type View struct {
	Seq     uint64 // grows with each View
	Sources []SourceView
}

// Spoken reports whether every source has given an answer since the start.
func (v *View) Spoken() bool {
	for _, s := range v.Sources {
		if !s.Spoken {
			return false
		}
	}
	return true
}

// Source returns the view of one source.
func (v *View) Source(name string) (SourceView, bool) {
	for _, s := range v.Sources {
		if s.Name == name {
			return s, true
		}
	}
	return SourceView{}, false
}

// SourceView is the accepted set of one source and what is known of its health.
type SourceView struct {
	Name     string
	Services []*lb.Spec      // accepted, sorted by Key; the same slice as before if nothing changed
	Held     map[lb.Key]Hold // the services of it that the source no longer states
	Rejected []Rejection
	Spoken   bool // gave an answer since the start; until then Services come from state/
	Class    Class
	Err      error
	Revision string
	Answered time.Time // when the last trusted answer came
}

// With returns the View as it would be after a source answered with set under
// policy p. It is pure: Plan asks it what a new configuration would lead to.
func (v *View) With(source string, set Set, p Policy, now time.Time) *View {
	next := &View{Seq: v.Seq, Sources: slices.Clone(v.Sources)}
	for i, s := range next.Sources {
		if s.Name != source {
			continue
		}
		l := &ledger{services: s.Services, held: s.Held}
		l, class := l.accept(set, p, now, v.rival(source))
		next.Sources[i] = SourceView{
			Name: s.Name, Services: l.services, Held: l.held, Rejected: slices.Concat(set.Rejected, l.doubles),
			Spoken: true, Class: class, Revision: set.Revision, Answered: now,
		}
	}
	return next
}

// rival returns whether another source than this one claims a Key with a live entry.
func (v *View) rival(source string) func(lb.Key) bool {
	return func(k lb.Key) bool {
		for _, s := range v.Sources {
			hold, held := s.Held[k]
			if s.Name != source && (!held || hold.stated()) && (&ledger{services: s.Services}).get(k) != nil {
				return true
			}
		}
		return false
	}
}
