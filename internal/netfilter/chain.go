package netfilter

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"hash/maphash"
	"maps"
	"strings"
)

// MaxChainName is the longest name of a chain that the kernel takes.
const MaxChainName = 28

// commentMark begins the comment in which a chain of ours carries its checksum. It
// has no byte for which iptables-save would quote the comment.
const commentMark = "vipd-"

// Chain is a chain of ours as it is to be written. A Chain is a value: its rules
// are not changed once it is made.
type Chain struct {
	Name  string
	Rules []string // in order, each without "-A NAME "
}

// Sum returns the checksum of the chain: of its name and of its rules as they
// are written.
func (c Chain) Sum() string {
	h := sha256.New()
	h.Write([]byte(c.Name))
	for _, r := range c.Rules {
		h.Write([]byte{'\n'})
		h.Write([]byte(r))
	}
	return base32.StdEncoding.EncodeToString(h.Sum(nil))[:16]
}

// Lines returns the rules as they are written: the last one carries the checksum
// in a comment. A chain without rules gets one that matches and does nothing.
func (c Chain) Lines() []string {
	lines := append([]string(nil), c.Rules...)
	if len(lines) == 0 {
		lines = []string{""}
	}
	last := &lines[len(lines)-1]
	*last = withSum(*last, c.Sum())
	return lines
}

// withSum puts a comment with the checksum before the target of a rule, where it
// is looked at only if all else matches.
func withSum(rule, sum string) string {
	comment := "-m comment --comment " + commentMark + sum
	i := targetIndex(rule)
	switch {
	case rule == "":
		return comment
	case i < 0:
		return rule + " " + comment
	}
	return rule[:i] + comment + " " + rule[i:]
}

// SumOf returns the checksum that a rule carries, or "". iptables-save writes the
// comment with or without quotes.
func SumOf(rule string) string {
	for _, begin := range []string{"--comment \"" + commentMark, "--comment " + commentMark} {
		if i := strings.Index(rule, begin); i >= 0 {
			rest := rule[i+len(begin):]
			if end := strings.IndexAny(rest, "\" "); end >= 0 {
				rest = rest[:end]
			}
			return rest
		}
	}
	return ""
}

// WithoutSum returns a rule without the comment that carries the checksum.
func WithoutSum(rule string) string {
	sum := SumOf(rule)
	if sum == "" {
		return rule
	}
	for _, comment := range []string{commentMark + sum, `"` + commentMark + sum + `"`} {
		rule = strings.Replace(rule, "-m comment --comment "+comment, "", 1)
	}
	return strings.Join(strings.Fields(rule), " ")
}

// WriteDeclare writes the line that makes the chain, or empties it if it stands.
// In a commit all of them come before the first rule.
func (c Chain) WriteDeclare(b *bytes.Buffer) {
	b.WriteString(":" + c.Name + " - [0:0]\n")
}

// WriteRules writes the rules of the chain.
func (c Chain) WriteRules(b *bytes.Buffer) {
	for _, line := range c.Lines() {
		b.WriteString("-A " + c.Name + " " + line + "\n")
	}
}

// Fingerprint tells two readings of one chain apart.
type Fingerprint uint64

// Baseline remembers how chains of ours looked when they were first read back
// after a write. The zero value is not ready: use NewBaseline.
//
// A checksum and a count cannot see that somebody replaced one rule by another.
// The first reading that agrees with them is therefore remembered, and any later
// difference from it is drift.
type Baseline struct {
	seed  maphash.Seed
	known map[string]known
}

type known struct {
	sum  string
	text Fingerprint
}

// NewBaseline returns a Baseline that knows nothing yet.
func NewBaseline() *Baseline {
	return &Baseline{seed: maphash.MakeSeed(), known: map[string]known{}}
}

// Same reports whether rules read from the kernel are those of a chain with that
// checksum and count of lines, and remembers how they looked.
func (b *Baseline) Same(name, sum string, count int, have []string) bool {
	if len(have) != count || count == 0 || SumOf(have[count-1]) != sum {
		return false
	}
	var h maphash.Hash
	h.SetSeed(b.seed)
	for _, r := range have {
		_, _ = h.WriteString(r)
		_ = h.WriteByte('\n')
	}
	now := known{sum: sum, text: Fingerprint(h.Sum64())}
	if before, found := b.known[name]; found && before.sum == sum {
		return before == now
	}
	b.known[name] = now
	return true
}

// Clone returns a copy that goes its own way.
func (b *Baseline) Clone() *Baseline { return &Baseline{seed: b.seed, known: maps.Clone(b.known)} }

// Forget drops what is known of a chain: it is about to be written or removed.
func (b *Baseline) Forget(name string) { delete(b.known, name) }
