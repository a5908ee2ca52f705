// Package desired decides: from the facts and the time it computes what every
// proxier is to serve. It does no I/O and reads no clock.
//
//	desired = Merge (who owns a VIP:port) -> Drain (what must not go yet) -> Place (which mode serves it)
//
// Drain is the last step that removes. A backend or a service that leaves for any
// reason stays, draining, until its deadline, or until its mode has seen the last
// connection end; a service then refuses for one pass, with its VIP still up, and only
// then is gone. A move to another mode is a drain in the old one.
//
// Compute costs what changed since the last call, not what there is: the Memo
// remembers each service, and only the keys that a fact or a deadline touches are
// decided again. An entry of the Memo is never changed in place, so that Clone is
// a copy of the map and Plan can compute without consequences.
package desired

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"vipd/lb"
)

// Facts is all that a decision rests on. Slices and maps must not change afterwards;
// a slice that is the same as in the last call is not read again.
type Facts struct {
	Now     time.Time
	Sources []Source            // in the order of precedence
	Mode    lb.Mode             // is to serve the services that name none
	Modes   map[lb.Mode]Ability // those that can serve on this host
	Lacks   map[lb.Mode]Lack    // those that this host cannot have, though the program can
	Allowed []netip.Prefix      // where VIPs may lie
	Idle    map[Drain]bool      // drains that are over: nothing new came, and the last connection has ended
}

func (f Facts) source(name string) Source {
	for _, s := range f.Sources {
		if s.Name == name {
			return s
		}
	}
	return Source{}
}

// Source is the accepted set of one source.
type Source struct {
	Name     string
	Services []*lb.Spec           // sorted by Key
	Yields   map[lb.Key]time.Time // held services, and when each loses to a live rival
}

func (s Source) get(k lb.Key) *lb.Spec {
	i, found := slices.BinarySearchFunc(s.Services, k, func(s *lb.Spec, k lb.Key) int { return s.Key.Compare(k) })
	if !found {
		return nil
	}
	return s.Services[i]
}

// Result is a decision.
type Result struct {
	Place   map[lb.Mode]lb.Snapshot // what each mode serves
	Door    lb.Snapshot             // the services of all modes, for the VIPs
	Gained  map[lb.Mode]bool        // modes that serve a Key that another mode leaves: they sync first
	Due     time.Time               // when time alone changes the decision; zero: never
	Touched []lb.Key                // whose entries came out different: to be recorded, see Memo.Record
	Claims  []Claim                 // what the sources changed: to be recorded
}

// Claim is what a source newly states of one Key.
type Claim struct {
	Source string
	Key    lb.Key
	Spec   *lb.Spec // nil: it states the Key no more
}

// Problem is an entry that a source states and that is not served.
type Problem struct {
	Source string
	Name   string
	Reason string
}

// Compute decides. It remembers in m what it decided, and only once all of it is:
// a panic on the way leaves m as it was.
func Compute(m *Memo, f Facts) Result {
	touched := m.touched(f)
	choices := m.merge(f, touched)
	decided := make([]*entry, len(touched))
	for i, k := range touched {
		decided[i] = decide(m.entries[k], choices[k], f)
	}
	r := Result{Gained: map[lb.Mode]bool{}, Claims: m.claims(f, touched)}
	m.vipGone = false
	e := m.edit()
	for i, k := range touched {
		before, after := m.entries[k], decided[i]
		if before.equal(after) {
			m.schedule(k, before)
			continue
		}
		r.Touched = append(r.Touched, k)
		m.remember(k, after)
		e.put(k, before, after, r.Gained)
	}
	e.finish()
	m.facts = f
	r.Place, r.Door, r.Due = maps.Clone(m.place), m.door, m.nextDue()
	if m.vipGone && len(m.problems) > 0 { // it may have stood in the way of one of them
		r.Due = f.Now
	}
	return r
}

// edits are the changes that a Compute makes to the snapshots of a Memo.
type edits struct {
	m     *Memo
	place map[lb.Mode]*lb.Editor
	door  *lb.Editor
}

func (m *Memo) edit() *edits {
	return &edits{m: m, place: map[lb.Mode]*lb.Editor{}, door: m.door.Edit()}
}

func (e *edits) mode(mode lb.Mode) *lb.Editor {
	if e.place[mode] == nil {
		e.place[mode] = e.m.place[mode].Edit()
	}
	return e.place[mode]
}

// put replaces what before placed by what after places, and notes in gained the
// modes to which the Key is new although another has it.
func (e *edits) put(k lb.Key, before, after *entry, gained map[lb.Mode]bool) {
	for _, p := range before.modes() {
		if after.placed(p.mode) == nil {
			e.mode(p.mode).Delete(k)
		}
	}
	for _, p := range after.modes() {
		e.mode(p.mode).Put(p.Service)
		if len(before.modes()) > 0 && before.placed(p.mode) == nil {
			gained[p.mode] = true
		}
	}
	if face := after.face(); face != nil {
		e.door.Put(face)
	} else {
		e.door.Delete(k)
	}
}

func (e *edits) finish() {
	for mode, editor := range e.place {
		e.m.place[mode] = editor.Snapshot()
	}
	e.m.door = e.door.Snapshot()
}

// claims lists what the sources say differently of the touched keys.
func (m *Memo) claims(f Facts, touched []lb.Key) []Claim {
	var claims []Claim
	for _, s := range f.Sources {
		old := m.facts.source(s.Name)
		for _, k := range touched {
			if spec := s.get(k); spec != old.get(k) {
				claims = append(claims, Claim{s.Name, k, spec})
			}
		}
	}
	return claims
}
