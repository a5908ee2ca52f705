package netfilter

// Jump is a rule of ours in a base chain: the way into our chains. It must stand
// before foreign rules, for one of those could accept, translate or drop first.
type Jump struct {
	Base string // the base chain
	Rule string // ends in "-j" or "-g" and a chain of ours
}

// line returns the rule with its checksum, as it is written.
func (j Jump) line() string { return withComment(j.Rule, commentMark+j.sum()) }

func (j Jump) sum() string { return Chain{Name: j.Base, Rules: []string{j.Rule}}.Sum() }

// jumpsRight reports whether the first rules of a base chain are the wanted
// jumps, in order, and whether no other rule there goes to one of our chains.
func jumpsRight(base []Mark, want []Jump, ours func(chain string) bool) bool {
	if !jumpsFirst(base, want) {
		return false
	}
	for _, rule := range base[len(want):] {
		if ours(rule.Target) {
			return false
		}
	}
	return true
}

// jumpsFirst reports whether the first rules of a base chain are the wanted jumps,
// in order. Of a chain with a rule that only nft can show no more is asked: iptables
// neither spells the jumps further down nor can it delete them, and they do no harm.
func jumpsFirst(base []Mark, want []Jump) bool {
	if len(base) < len(want) {
		return false
	}
	for i, j := range want {
		if base[i].Sum != j.sum() || base[i].Target != Target(j.Rule) {
			return false
		}
	}
	return true
}

// jumpLine is one step of a repair: the line of the script, and what it means.
type jumpLine struct {
	Line
	script string
}

// jumpRepair returns the lines which bring the jumps of one base chain into
// order: all of ours out, then the wanted ones in at the top. In one commit with
// the rest there is no moment without them.
func jumpRepair(name string, base []string, want []Jump, ours func(chain string) bool) (lines []jumpLine) {
	for _, rule := range base {
		if ours(Target(rule)) {
			spec := name + " " + rule
			lines = append(lines, jumpLine{Line{Text: "-A " + spec}, "-D " + spec})
		}
	}
	for i := len(want) - 1; i >= 0; i-- {
		rule := want[i].line()
		lines = append(lines, jumpLine{Line{Add: true, Text: "-A " + name + " " + rule}, "-I " + name + " 1 " + rule})
	}
	return lines
}
