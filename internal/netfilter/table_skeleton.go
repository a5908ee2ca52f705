package netfilter

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
)

// Skeleton is a handful of chains in one table and the jumps into them, which
// stand whole or not at all. Its owner is known by the names of its chains: a
// jump to one of them that the Skeleton does not want is removed.
type Skeleton struct {
	Table  string
	Chains []Chain
	Jumps  []Jump // those of one base chain stand at its top in this order
}

// Line is one rule or chain that a repair adds or removes.
type Line struct {
	Add  bool
	Text string // as iptables-save spells it: ":CHAIN" or "-A CHAIN rule"
}

// Repair is what makes a table equal to a Skeleton. The zero Repair does nothing.
type Repair struct {
	Script []byte // for Restore: one commit; empty if only Apply can make the repair
	Lines  []Line // the same, for people

	table   string
	gone    []string // the chains that are removed
	touched []string // the chains that are written or removed
}

// Made notes that the repair was committed: its chains hold what we wrote, whatever
// somebody else did to them before.
func (r Repair) Made(seen *Baseline) {
	for _, name := range r.touched {
		seen.Forget(name)
	}
}

// Empty reports whether there is nothing to do.
func (r Repair) Empty() bool { return len(r.Script) == 0 && len(r.gone) == 0 }

// Compare returns what has to be done to the table for the Skeleton to stand. A
// chain that differs is written anew, in place.
func (s Skeleton) Compare(have Table, seen *Baseline) Repair {
	return s.CompareListed(have, have.Listing(), seen)
}

// Stands reports whether nothing has to be done.
func (s Skeleton) Stands(have Listing, seen *Baseline) bool {
	for _, c := range s.Chains {
		if !seen.Same(c.Name, c.Sum(), max(len(c.Rules), 1), have.Own[c.Name]) {
			return false
		}
	}
	wanted := s.jumpsOf(s.Jumps, slices.Collect(maps.Keys(have.Base)))
	for base, jumps := range wanted {
		if !jumpsRight(have.Base[base], jumps, s.has) {
			return false
		}
	}
	return true
}

// CompareListed is Compare with a listing that was read beside the text: it says
// what differs, the text says how what goes is spelt.
func (s Skeleton) CompareListed(have Table, list Listing, seen *Baseline) Repair {
	var declare, rules bytes.Buffer
	var r Repair
	for _, c := range s.Chains {
		lines := c.Lines()
		old, found := have.Own[c.Name]
		if seen.Same(c.Name, c.Sum(), len(lines), list.Own[c.Name]) {
			continue
		}
		r.touched = append(r.touched, c.Name)
		c.WriteDeclare(&declare)
		c.WriteRules(&rules)
		r.removed(c.Name, old)
		if !found {
			r.Lines = append(r.Lines, Line{Add: true, Text: ":" + c.Name})
		}
		for _, line := range lines {
			r.Lines = append(r.Lines, Line{Add: true, Text: "-A " + c.Name + " " + line})
		}
	}
	s.compareJumps(have, list, s.Jumps, &rules, &r)
	r.finish(s.Table, &declare, &rules)
	return r
}

// Removal returns what takes the Skeleton away: jumps first, then the chains.
// Rules of others that go to our chains are removed with our own.
func (s Skeleton) Removal(have Table) Repair { return s.RemovalListed(have, have.Listing()) }

// RemovalListed is Removal with a listing that was read beside the text: it says
// what there is, which the text does not where a rule was made with nft.
func (s Skeleton) RemovalListed(have Table, list Listing) Repair {
	if r := s.hiddenRemoval(have, list); !r.Empty() {
		return r
	}
	var rules, remove bytes.Buffer
	r := Repair{table: s.Table}
	s.compareJumps(have, have.Listing(), nil, &rules, &r)
	for _, c := range s.Chains {
		if old, found := have.Own[c.Name]; found {
			rules.WriteString("-F " + c.Name + "\n")
			remove.WriteString("-X " + c.Name + "\n")
			r.touched = append(r.touched, c.Name)
			r.gone = append(r.gone, c.Name)
			r.removed(c.Name, old)
			r.Lines = append(r.Lines, Line{Text: ":" + c.Name})
		}
	}
	r.finish(s.Table, &rules, &remove)
	return r
}

// hiddenRemoval returns what takes the Skeleton away if iptables does not show all
// that is to go.
func (s Skeleton) hiddenRemoval(have Table, list Listing) Repair {
	r := Repair{table: s.Table}
	hidden := false
	for base, rules := range list.Base {
		_, shown := have.Base[base]
		if leads := slices.ContainsFunc(rules, func(m Mark) bool { return s.has(m.Target) }); leads && !shown {
			hidden = true
			r.Lines = append(r.Lines, Line{Text: "-A " + base + ": the jumps of vipd"})
		}
	}
	for _, c := range s.Chains {
		if _, found := list.Own[c.Name]; found {
			_, shown := have.Own[c.Name]
			hidden = hidden || !shown
			r.gone = append(r.gone, c.Name)
			r.removed(c.Name, have.Own[c.Name])
			r.Lines = append(r.Lines, Line{Text: ":" + c.Name})
		}
	}
	if !hidden {
		return Repair{}
	}
	return r
}

func (s Skeleton) compareJumps(have Table, list Listing, want []Jump, rules *bytes.Buffer, r *Repair) {
	wanted := s.jumpsOf(want, slices.Collect(maps.Keys(have.Base)))
	for _, base := range slices.Sorted(maps.Keys(wanted)) {
		marks, jumps := list.Base[base], wanted[base]
		if jumpsRight(marks, jumps, s.has) {
			continue
		}
		text, shown := have.Base[base]
		if !shown && jumpsFirst(marks, jumps) {
			continue // a rule that only nft can show is there; see jumpsFirst
		}
		for _, line := range jumpRepair(base, text, jumps, s.has) {
			rules.WriteString(line.script + "\n")
			r.Lines = append(r.Lines, line.Line)
		}
	}
}

// jumpsOf returns the jumps that each base chain should have.
func (s Skeleton) jumpsOf(want []Jump, bases []string) map[string][]Jump {
	wanted := map[string][]Jump{}
	for _, base := range bases {
		wanted[base] = nil
	}
	for _, j := range want {
		wanted[j.Base] = append(wanted[j.Base], j)
	}
	return wanted
}

// has reports whether a chain is one of the Skeleton.
func (s Skeleton) has(chain string) bool {
	return slices.ContainsFunc(s.Chains, func(c Chain) bool { return c.Name == chain })
}

func (r *Repair) removed(chain string, old []string) {
	for _, rule := range old {
		r.Lines = append(r.Lines, Line{Text: "-A " + chain + " " + rule})
	}
}

// finish joins the parts into one commit, unless there is nothing to do.
func (r *Repair) finish(table string, parts ...*bytes.Buffer) {
	var b bytes.Buffer
	for _, p := range parts {
		b.Write(p.Bytes())
	}
	if b.Len() > 0 {
		r.Script = fmt.Appendf(nil, "*%s\n%sCOMMIT\n", table, b.Bytes())
	}
}

// Names returns the chains that the Skeleton is compared with.
func (s Skeleton) Names() []string {
	names := map[string]bool{}
	for _, c := range s.Chains {
		names[c.Name] = true
	}
	for _, base := range baseChains[s.Table] {
		names[base] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// baseChains are the base chains that iptables has in a table.
var baseChains = map[string][]string{
	"filter": {"INPUT", "FORWARD", "OUTPUT"},
	"nat":    {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
	"mangle": {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"},
	"raw":    {"PREROUTING", "OUTPUT"},
}

// PlanSkeleton reads the table and returns what has to be committed for the Skeleton
// to stand; the zero Repair if it does.
func (t *Tool) PlanSkeleton(ctx context.Context, s Skeleton, seen *Baseline) (Repair, error) {
	since, err := t.Since(ctx, seen.Mark(s.Table), s.Table)
	if err != nil {
		return Repair{}, err
	}
	seen.Take(s.Table, since)
	names := s.Names()
	list, err := t.List(ctx, s.Table, names...)
	if err != nil || s.Stands(list, seen) {
		return Repair{}, err
	}
	have, err := t.ReadChains(ctx, s.Table, names...)
	if err != nil {
		return Repair{}, err
	}
	return s.CompareListed(have, list, seen), nil
}

// PlanRemoval reads the chains of the Skeleton and returns what takes it
// away, for Apply.
func (t *Tool) PlanRemoval(ctx context.Context, s Skeleton) (Repair, error) {
	have, err := t.ReadChains(ctx, s.Table, s.Names()...)
	if err != nil {
		return Repair{}, err
	}
	list, err := t.List(ctx, s.Table, s.Names()...)
	if err != nil {
		return Repair{}, err
	}
	return s.RemovalListed(have, list), nil
}
