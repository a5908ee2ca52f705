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

// commentMark begins the comment in which a chain of ours carries its checksum and
// its note: "vipd-SUM" or "vipd-SUM:NOTE".
const commentMark = "vipd-"

// MaxComment is the longest comment that we write, in bytes; the kernel keeps 255.
const MaxComment = 128

// Chain is a chain of ours as it is to be written. A Chain is a value: its rules
// are not changed once it is made.
type Chain struct {
	Name  string
	Rules []string // in order, each without "-A NAME "
	// Note says what the chain is for, to people and to a vipd that finds it. It
	// holds no blank and no quote, and is at most 100 bytes long.
	Note string
}

// Sum returns the checksum of the chain: of its name, its note and its rules as
// they are written.
func (c Chain) Sum() string {
	h := sha256.New()
	h.Write([]byte(c.Name))
	if c.Note != "" {
		h.Write([]byte{' '})
		h.Write([]byte(c.Note))
	}
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
	*last = withComment(*last, c.comment())
	return lines
}

// comment returns what the last rule of the chain carries.
func (c Chain) comment() string {
	if c.Note == "" {
		return commentMark + c.Sum()
	}
	return commentMark + c.Sum() + ":" + c.Note
}

// withComment puts a comment before the target of a rule, where it is looked at
// only if all else matches.
func withComment(rule, text string) string {
	comment := "-m comment --comment " + text
	i := targetIndex(rule)
	switch {
	case rule == "":
		return comment
	case i < 0:
		return rule + " " + comment
	}
	return rule[:i] + comment + " " + rule[i:]
}

// parseComment takes a comment of ours apart: its checksum, or "" if it is none of
// ours, and its note.
func parseComment(comment string) (sum, note string) {
	rest, ours := strings.CutPrefix(comment, commentMark)
	if !ours {
		return "", ""
	}
	sum, note, _ = strings.Cut(rest, ":")
	return sum, note
}

// commentOf returns the comment of ours that a rule bears, and the words of the
// rule which say it. iptables-save writes it with or without quotes.
func commentOf(rule string) (comment, words string) {
	for _, quote := range []string{"\"", ""} {
		begin := "-m comment --comment " + quote
		i := strings.Index(rule, begin+commentMark)
		if i < 0 {
			continue
		}
		comment = rule[i+len(begin):]
		if end := strings.IndexAny(comment, "\" "); end >= 0 {
			comment = comment[:end]
		}
		return comment, begin + comment + quote
	}
	return "", ""
}

// SumOf returns the checksum that a rule carries, or "".
func SumOf(rule string) string {
	comment, _ := commentOf(rule)
	sum, _ := parseComment(comment)
	return sum
}

// WithoutSum returns a rule without the comment that carries the checksum.
func WithoutSum(rule string) string {
	_, words := commentOf(rule)
	if words == "" {
		return rule
	}
	return strings.Join(strings.Fields(strings.Replace(rule, words, "", 1)), " ")
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

// Baseline remembers how chains of ours looked when they were first read back
// after a write, and which of them somebody else wrote since. The zero value is not
// ready: use NewBaseline.
//
// A checksum and a count cannot see that somebody replaced one rule by another.
// The first reading that agrees with them is therefore remembered, and any later
// difference from it is drift; and a chain that somebody was seen to write is not
// believed until it is written anew.
type Baseline struct {
	known   map[uint64]Fingerprint // by the hash of the name: there are many chains
	tainted map[string]bool
	marks   map[string]uint32 // by table: the generation as of which tainted is complete
}

// NewBaseline returns a Baseline that knows nothing yet.
func NewBaseline() *Baseline {
	return &Baseline{known: map[uint64]Fingerprint{}, tainted: map[string]bool{}, marks: map[string]uint32{}}
}

// Same reports whether a chain as it was read is one with that checksum and count
// of rules, and remembers how it looked.
func (b *Baseline) Same(name, sum string, count int, have Listed) bool {
	if have.Rules != count || count == 0 || have.Sum != sum || b.tainted[name] {
		return false
	}
	id := nameHash(name)
	if before, found := b.known[id]; found {
		return before == have.Print
	}
	b.known[id] = have.Print
	return true
}

func nameHash(chain string) uint64 { return maphash.String(printSeed, chain) }

// Mark returns the generation of a table up to which it was told what others wrote;
// 0 is none.
func (b *Baseline) Mark(table string) uint32 { return b.marks[table] }

// Take notes what others wrote of a table since its mark: these chains are not
// believed until they are written anew.
func (b *Baseline) Take(table string, s Since) {
	for _, chain := range s.Chains {
		b.tainted[chain] = true
	}
	b.marks[table] = s.Now
}

// Clone returns a copy that goes its own way.
func (b *Baseline) Clone() *Baseline {
	return &Baseline{known: maps.Clone(b.known), tainted: maps.Clone(b.tainted), marks: maps.Clone(b.marks)}
}

// Forget drops what is known of a chain: it was written or removed.
func (b *Baseline) Forget(name string) {
	delete(b.known, nameHash(name))
	delete(b.tainted, name)
}
