package netfilter

import (
	"strings"
)

// Table is what one table holds, as iptables-save spells it. That spelling
// differs from the one rules were written in ("-d 10.0.0.1" comes back as
// "-d 10.0.0.1/32"), so rules read are never compared with rules to write: a
// Chain carries a checksum for that.
type Table struct {
	Name string
	// Base holds the rules of every base chain, foreign ones included, in order:
	// the position of a jump matters.
	Base map[string][]string
	// Own holds the rules of the chains with ChainPrefix.
	Own map[string][]string
}

// parseTable reads the output of iptables-save for one table. Rules of foreign
// chains that are not base chains are dropped.
func parseTable(name, text string) (Table, error) {
	t := Table{Name: name, Base: map[string][]string{}, Own: map[string][]string{}}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, ":"):
			chain, policy, _ := strings.Cut(line[1:], " ")
			if !strings.HasPrefix(policy, "-") || isOwn(chain) {
				t.put(chain, nil)
			}
		case strings.HasPrefix(line, "-A "):
			chain, rule, _ := strings.Cut(line[len("-A "):], " ")
			t.append(chain, rule)
		case strings.HasPrefix(line, "#") && strings.Contains(line, "incompatible, use 'nft'"):
			return Table{}, ErrIncompatible
		}
	}
	return t, nil
}

// parseRules reads the output of "iptables -S CHAIN".
func parseRules(chain, text string) (rules []string) {
	for line := range strings.Lines(text) {
		if rule, found := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "-A "+chain+" "); found {
			rules = append(rules, rule)
		}
	}
	return rules
}

func (t *Table) put(chain string, rules []string) {
	if isOwn(chain) {
		t.Own[chain] = rules
	} else {
		t.Base[chain] = rules
	}
}

func (t *Table) append(chain, rule string) {
	if rules, found := t.Own[chain]; found {
		t.Own[chain] = append(rules, rule)
	} else if rules, found := t.Base[chain]; found {
		t.Base[chain] = append(rules, rule)
	}
}

// chain returns the rules of a chain, and whether there is one.
func (t *Table) chain(name string) ([]string, bool) {
	if rules, found := t.Own[name]; found {
		return rules, true
	}
	rules, found := t.Base[name]
	return rules, found
}

// only returns the named chains alone.
func (t Table) only(names []string) Table {
	result := Table{Name: t.Name, Base: map[string][]string{}, Own: map[string][]string{}}
	for _, name := range names {
		if rules, found := t.chain(name); found {
			result.put(name, rules)
		}
	}
	return result
}

// isOwn reports whether a chain of that name belongs to vipd.
func isOwn(chain string) bool { return strings.HasPrefix(chain, ChainPrefix) }

// Target returns the chain or target that a rule jumps or goes to, or "".
func Target(rule string) string {
	i := targetIndex(rule)
	if i < 0 {
		return ""
	}
	rest := rule[i+len("-j "):]
	if end := strings.IndexByte(rest, ' '); end >= 0 {
		rest = rest[:end]
	}
	return rest
}

// targetIndex returns where "-j X" or "-g X" begins in a rule, or -1. What stands
// in quotes does not count: a comment or a log prefix may hold the same letters.
func targetIndex(rule string) int {
	quoted := false
	for i := 0; i < len(rule); i++ {
		switch c := rule[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted || c != '-' || i > 0 && rule[i-1] != ' ':
		case strings.HasPrefix(rule[i:], "-j "), strings.HasPrefix(rule[i:], "-g "):
			return i
		}
	}
	return -1
}
