package netfilter

import (
	"context"
	"fmt"
	"strings"
)

// maxCommands is how many rules an advice names.
const maxCommands = 3

// Leading are the rules in chains of others, base chains aside, that lead to chains of
// ours, by the chain they lead to: each as the command that removes it.
type Leading map[string][]string

// Leading reads who leads to chains of ours. Rules that only nft can show are missing.
// It costs a reading of the whole table, for an error to say what to do.
func (t *Tool) Leading(ctx context.Context, table string) (Leading, error) {
	out, err := t.run(ctx, t.save, []string{"-t", table}, nil)
	if err != nil {
		return nil, fmt.Errorf("reading %s table %s: %w", t.family, table, err)
	}
	return leadingIn(string(out), t.iptables+" -t "+table), nil
}

// leadingIn reads the output of iptables-save.
func leadingIn(text, command string) Leading {
	l, base := Leading{}, map[string]bool{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if name, found := strings.CutPrefix(line, ":"); found {
			chain, policy, _ := strings.Cut(name, " ")
			base[chain] = !strings.HasPrefix(policy, "-")
			continue
		}
		rule, found := strings.CutPrefix(line, "-A ")
		chain, rest, _ := strings.Cut(rule, " ")
		if to := Target(rest); found && isOwn(to) && !isOwn(chain) && !base[chain] {
			l[to] = append(l[to], command+" -D "+rule)
		}
	}
	return l
}

// Advice says what to do for chains that cannot be removed, because something leads to
// one of them.
func (l Leading) Advice(chains ...string) string {
	var commands []string
	for _, chain := range chains {
		commands = append(commands, l[chain]...)
	}
	if len(commands) == 0 {
		return `remove the rule that leads to it (find it by "nft list ruleset", or "iptables-save" with the legacy backend)`
	}
	more := ""
	if n := len(commands) - maxCommands; n > 0 {
		commands, more = commands[:maxCommands], fmt.Sprintf("; and %d more", n)
	}
	return "remove what leads to it: " + strings.Join(commands, "; ") + more
}
