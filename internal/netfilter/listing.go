package netfilter

import "hash/maphash"

// Listing is what a table holds, without the text of its rules: enough to tell
// whether our chains are as they were written, and where foreign rules stand before
// our jumps. It costs a fraction of what a Table costs.
type Listing struct {
	// Own are the chains with ChainPrefix.
	Own map[string]Listed
	// Base are the rules of the base chains that iptables knows, in order.
	Base map[string][]Mark
}

// Listed is what is known of a chain of ours without its text.
type Listed struct {
	Mark              // of the last rule
	Rules int         // how many there are
	Print Fingerprint // of all of them, without their counters
	To    []string    // the chains of ours that they jump or go to
}

// Mark is what is known of one rule without its text.
type Mark struct {
	Sum    string // the checksum in its comment; "" if the comment is none of ours
	Note   string // the note in its comment
	Target string // the chain that it jumps or goes to; "" if none
}

// Fingerprint tells two readings of one chain apart. Those of one process compare,
// if the same backend was read.
type Fingerprint uint64

// printSeed makes the fingerprints of one process.
var printSeed = maphash.MakeSeed()

// Listing returns the table without its text.
func (t Table) Listing() Listing {
	l := Listing{Own: make(map[string]Listed, len(t.Own)), Base: make(map[string][]Mark, len(t.Base))}
	for name, rules := range t.Own {
		l.Own[name] = listRules(rules)
	}
	for name, rules := range t.Base {
		marks := make([]Mark, len(rules))
		for i, r := range rules {
			marks[i] = markRule(r)
		}
		l.Base[name] = marks
	}
	return l
}

func listRules(rules []string) Listed {
	l := Listed{Rules: len(rules)}
	var h maphash.Hash
	h.SetSeed(printSeed)
	for _, r := range rules {
		_, _ = h.WriteString(r)
		_ = h.WriteByte('\n')
		l.Mark = markRule(r)
		if isOwn(l.Target) {
			l.To = append(l.To, l.Target)
		}
	}
	l.Print = Fingerprint(h.Sum64())
	return l
}

func markRule(rule string) Mark {
	m := Mark{Target: Target(rule)}
	comment, _ := commentOf(rule)
	m.Sum, m.Note = parseComment(comment)
	return m
}
