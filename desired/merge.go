package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"vipd/lb"
)

// choice is what Merge says of one Key.
type choice struct {
	owner string // the source that has the Key; empty: none states it
	spec  *lb.Spec
	due   time.Time // when a held owner yields

	// What is made of the spec on this host, see assign.
	mode      lb.Mode
	scheduler lb.Scheduler
	flags     lb.SchedulerFlags
}

// merge chooses for each key which source has it, and notes who lost and why.
func (m *Memo) merge(f Facts, keys []lb.Key) map[lb.Key]choice {
	choices := make(map[lb.Key]choice, len(keys))
	for _, k := range keys {
		c, problems := choose(f, k, m.entries[k].ownerName(), nil)
		choices[k] = c
		m.setProblems(k, problems)
	}
	m.refuseLoops(f, keys, choices)
	return choices
}

// choose finds the owner of one Key. The remembered owner wins, then the order
// of the sources. An entry that is only held loses to a live one when its time
// has come. out names the sources that are out of it already.
func choose(f Facts, k lb.Key, remembered string, out []Problem) (choice, []Problem) {
	var best choice
	var problems []Problem
	lost := func(c, winner choice) {
		problems = append(problems, Problem{c.owner, c.spec.Name, fmt.Sprintf(
			"%s belongs to service %s of source %s; use another VIP or port, or remove one of the two", k, winner.spec.Name, winner.owner)})
	}
	for _, s := range f.Sources {
		spec := s.get(k)
		if spec == nil || slices.ContainsFunc(out, func(p Problem) bool { return p.Source == s.Name }) {
			continue
		}
		c, reason := assign(f, choice{owner: s.Name, spec: spec})
		if outside := refuse(f, spec); outside != "" {
			reason = outside
		}
		if reason != "" {
			problems = append(problems, Problem{s.Name, spec.Name, reason})
			continue
		}
		yields, held := s.Yields[k]
		c.due = yields
		live := !held
		switch {
		case best.spec == nil:
			best = c
		case beats(c, best, live, remembered, f.Now):
			lost(best, c)
			best = c
		default:
			lost(c, best)
		}
	}
	if len(problems) == 0 || !best.due.After(f.Now) { // nobody to yield to
		best.due = time.Time{}
	}
	return best, problems
}

// beats reports whether claim c wins over the best so far, which stands earlier
// in the order of the sources.
func beats(c, best choice, live bool, remembered string, now time.Time) bool {
	spent := func(c choice) bool { return !c.due.IsZero() && !now.Before(c.due) }
	if spent(c) != spent(best) {
		return spent(best)
	}
	if best.owner == remembered {
		return false
	}
	if c.owner == remembered {
		return true
	}
	return live && !best.due.IsZero() // both new: what is only held loses
}

// refuse says why an entry may not be served, or nothing.
func refuse(f Facts, spec *lb.Spec) string {
	inside := func(p netip.Prefix) bool { return p.Contains(spec.Key.Addr) }
	if !slices.ContainsFunc(f.Allowed, inside) {
		return fmt.Sprintf("VIP %s is outside [vip] allowed; add its prefix there or change the entry", spec.Key.Addr)
	}
	return ""
}
