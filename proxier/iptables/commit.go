package iptables

import (
	"bytes"
	"iter"

	"vipd/internal/netfilter"
)

const table = "nat"

// commit is one transaction of the kernel, or a part of one that must not be
// divided between two.
type commit struct {
	write  []netfilter.Chain // made, or rewritten in place
	remove []string          // deleted; nothing may lead to them but each other
	repair netfilter.Repair  // of the skeleton, which stays alone
}

func (c commit) size() int { return len(c.write) + len(c.remove) }

// pack joins parts, in order, into as few commits of at most limit chains as may
// be. A part that is larger is a commit of its own.
func pack(parts iter.Seq2[commit, error], limit int) iter.Seq2[commit, error] {
	return func(yield func(commit, error) bool) {
		var c commit
		flush := func() bool {
			full := c
			c = commit{}
			return full.size() == 0 || yield(full, nil)
		}
		for part, err := range parts {
			alone := err != nil || !part.repair.Empty()
			if (alone || c.size()+part.size() > limit) && !flush() {
				return
			}
			if alone {
				if !yield(part, err) {
					return
				}
				continue
			}
			c.write = append(c.write, part.write...)
			c.remove = append(c.remove, part.remove...)
		}
		flush()
	}
}

// script returns the commit for iptables-restore --noflush. All chains come
// first, for a rule must not lead to one that is declared below it. A chain that
// goes is declared as well: that empties it, and makes it if it is gone already.
func (c commit) script() []byte {
	if !c.repair.Empty() {
		return c.repair.Script
	}
	var b bytes.Buffer
	b.WriteString("*" + table + "\n")
	for _, chain := range c.write {
		chain.WriteDeclare(&b)
	}
	for _, name := range c.remove {
		netfilter.Chain{Name: name}.WriteDeclare(&b)
	}
	for _, chain := range c.write {
		chain.WriteRules(&b)
	}
	for _, name := range c.remove {
		b.WriteString("-X " + name + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.Bytes()
}
