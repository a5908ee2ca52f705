package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"vipd/internal/netfilter"
)

// fakeKernel is table nat as the kernel keeps it, and strict: what the kernel
// refuses it refuses, and nothing of a refused commit is done.
type fakeKernel struct {
	base map[string][]string
	own  map[string][]string // every chain that is no base chain

	generation uint32
	ours       bool                // who writes is the proxier
	foreign    []foreignWrite      // by somebody else
	blind      bool                // nobody can tell who wrote what: the legacy backend
	sets       *netfilter.FakeSets // those of clients; nil: rules that name one are refused
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{
		base: map[string][]string{"PREROUTING": nil, "INPUT": nil, "OUTPUT": nil, "POSTROUTING": nil},
		own:  map[string][]string{}, generation: 1,
	}
}

// foreignWrite is a write by somebody else to chains of ours, and base chains.
type foreignWrite struct {
	generation uint32
	chains     []string
}

// harmed says that somebody else wrote chains.
func (k *fakeKernel) harmed(chains ...string) {
	k.generation++
	k.foreign = append(k.foreign, foreignWrite{k.generation, chains})
}

// Since tells what was noted of the writes of others.
func (k *fakeKernel) Since(ctx context.Context, mark uint32, _ string) (netfilter.Since, error) {
	s := netfilter.Since{Now: k.generation, Unknown: mark == 0 || k.blind}
	for _, w := range k.foreign {
		if w.generation > mark && !s.Unknown {
			s.Chains = append(s.Chains, w.chains...)
		}
	}
	return s, ctx.Err()
}

// Survey spells what it lists as Read does.
func (k *fakeKernel) Survey(ctx context.Context, name string, spelt ...string) (netfilter.Listing, netfilter.Table, error) {
	all, err := k.Read(ctx, name)
	if err != nil {
		return netfilter.Listing{}, all, err
	}
	text, err := k.ReadChains(ctx, name, spelt...)
	return all.Listing(), text, err
}

// List lists some of what Survey does.
func (k *fakeKernel) List(ctx context.Context, name string, chains ...string) (netfilter.Listing, error) {
	text, err := k.ReadChains(ctx, name, chains...)
	return text.Listing(), err
}

// ReadChains returns some of what Read returns.
func (k *fakeKernel) ReadChains(ctx context.Context, name string, chains ...string) (netfilter.Table, error) {
	all, err := k.Read(ctx, name)
	other := func(chain string, _ []string) bool { return !slices.Contains(chains, chain) }
	maps.DeleteFunc(all.Base, other)
	maps.DeleteFunc(all.Own, other)
	return all, err
}

// Read spells rules in another way than they were written, as the kernel does.
func (k *fakeKernel) Read(ctx context.Context, name string) (netfilter.Table, error) {
	if err := ctx.Err(); err != nil {
		return netfilter.Table{}, err
	}
	t := netfilter.Table{Name: name, Base: map[string][]string{}, Own: map[string][]string{}}
	for name, rules := range k.base {
		t.Base[name] = respell(rules)
	}
	for name, rules := range k.own {
		if strings.HasPrefix(name, netfilter.ChainPrefix) {
			t.Own[name] = respell(rules)
		}
	}
	return t, nil
}

func respell(rules []string) []string {
	out := slices.Clone(rules)
	for i, r := range out {
		if before, after, found := strings.Cut(r, "--comment "); found {
			comment, rest, _ := strings.Cut(after, " ")
			out[i] = strings.TrimSuffix(before+`--comment "`+comment+`" `+rest, " ")
		}
	}
	return out
}

// Leading finds the rules in chains that are not ours.
func (k *fakeKernel) Leading(ctx context.Context, name string) (netfilter.Leading, error) {
	l := netfilter.Leading{}
	for chain, rules := range k.own {
		for _, r := range rules {
			if to := netfilter.Target(r); strings.HasPrefix(to, netfilter.ChainPrefix) && !strings.HasPrefix(chain, netfilter.ChainPrefix) {
				l[to] = append(l[to], "iptables -t "+name+" -D "+chain+" "+r)
			}
		}
	}
	return l, ctx.Err()
}

// commitChains is how many chains a commit to a fakeKernel may name.
const commitChains = 500

func (k *fakeKernel) CommitChains() int { return commitChains }

// Generation grows with every commit.
func (k *fakeKernel) Generation(ctx context.Context) (uint32, error) { return k.generation, ctx.Err() }

// Test does a script on a copy.
func (k *fakeKernel) Test(ctx context.Context, script []byte) error {
	return (&fakeKernel{base: cloneChains(k.base), own: cloneChains(k.own), sets: k.sets}).Restore(ctx, script)
}

// Apply makes a repair: a fake table shows all of its rules.
func (k *fakeKernel) Apply(ctx context.Context, r netfilter.Repair) error {
	return k.Restore(ctx, r.Script)
}

// Restore does a script, commit by commit.
func (k *fakeKernel) Restore(ctx context.Context, script []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	tx := &fakeKernel{base: cloneChains(k.base), own: cloneChains(k.own), sets: k.sets}
	for i, line := range strings.Split(strings.TrimSuffix(string(script), "\n"), "\n") {
		if err := tx.line(line); err != nil {
			return &netfilter.RestoreError{Line: i + 1, Text: line, Stderr: err.Error()}
		}
		if line == "COMMIT" {
			k.base, k.own = cloneChains(tx.base), cloneChains(tx.own)
			k.generation++
			if !k.ours {
				k.harmed(touchedBy(string(script))...)
			}
		}
	}
	return nil
}

// touchedBy returns the chains of ours, and the base chains, of a script.
func touchedBy(script string) (chains []string) {
	for line := range strings.Lines(script) {
		if words := strings.Fields(line); words[0][0] == ':' {
			chains = append(chains, words[0][1:])
		} else if len(words) > 1 {
			chains = append(chains, words[1])
		}
	}
	return slices.DeleteFunc(chains, func(c string) bool {
		return !strings.HasPrefix(c, netfilter.ChainPrefix) && !strings.HasSuffix(c, "PUT") && !strings.HasSuffix(c, "ROUTING")
	})
}

func cloneChains(m map[string][]string) map[string][]string {
	c := maps.Clone(m)
	for name := range c {
		c[name] = slices.Clip(c[name])
	}
	return c
}

func (k *fakeKernel) line(line string) error {
	words := strings.SplitN(line, " ", 3)
	switch {
	case line == "*nat", line == "COMMIT":
		return nil
	case strings.HasPrefix(line, ":"):
		name := words[0][1:]
		if _, found := k.base[name]; found || len(name) > netfilter.MaxChainName {
			return fmt.Errorf("bad chain name %q", name)
		}
		k.own[name] = nil
		return nil
	case len(words) == 3 && words[0] == "-A":
		return k.add(k.own, words[1], words[2])
	case len(words) == 3 && words[0] == "-I":
		rule, found := strings.CutPrefix(words[2], "1 ")
		if !found {
			return errors.New("inserts elsewhere than at the top")
		}
		rest := k.base[words[1]]
		k.base[words[1]] = nil
		err := k.add(k.base, words[1], rule)
		k.base[words[1]] = append(k.base[words[1]], rest...)
		return err
	case len(words) == 3 && words[0] == "-D":
		i := slices.IndexFunc(k.base[words[1]], func(r string) bool { return r == words[2] || respell([]string{r})[0] == words[2] })
		if i < 0 {
			return errors.New("Bad rule (does a matching rule exist in that chain?).")
		}
		k.base[words[1]] = slices.Delete(slices.Clone(k.base[words[1]]), i, i+1)
		return nil
	case len(words) == 2 && words[0] == "-F":
		if _, found := k.own[words[1]]; !found {
			return errors.New("No chain/target/match by that name.")
		}
		k.own[words[1]] = nil
		return nil
	case len(words) == 2 && words[0] == "-X":
		return k.drop(words[1])
	}
	return fmt.Errorf("unknown line %q", line)
}

func (k *fakeKernel) add(chains map[string][]string, name, rule string) error {
	if _, found := chains[name]; !found {
		return fmt.Errorf("Chain '%s' does not exist", name)
	}
	to := ""
	fields := strings.Fields(rule)
	for i, w := range fields {
		switch w {
		case "-j", "-g":
			to = fields[i+1]
		case "--match-set", "--add-set", "--del-set":
			if set := fields[i+1]; strings.Contains(set, netfilter.SetClients) && !k.hasSet(set) {
				return fmt.Errorf("Set %s doesn't exist.", set)
			}
		case "--comment":
			if len(fields[i+1]) > 128 {
				return errors.New("comment too long")
			}
		}
	}
	if _, found := k.own[to]; !found && !slices.Contains([]string{"", "RETURN", "MARK", "CONNMARK", "DNAT", "ACCEPT", "SET"}, to) {
		return fmt.Errorf("Chain '%s' does not exist", to)
	}
	chains[name] = append(slices.Clip(chains[name]), rule)
	return nil
}

func (k *fakeKernel) hasSet(name string) bool {
	if k.sets == nil {
		return false
	}
	list, err := k.sets.List(context.Background())
	return err == nil && slices.ContainsFunc(list, func(s netfilter.SetInfo) bool { return s.Name == name })
}

// names reports whether a rule names a set.
func (k *fakeKernel) names(set string) bool {
	for _, rules := range k.own {
		for _, r := range rules {
			if strings.Contains(r, "-set "+set+" ") {
				return true
			}
		}
	}
	return false
}

func (k *fakeKernel) drop(name string) error {
	if rules, found := k.own[name]; !found || len(rules) > 0 {
		return fmt.Errorf("CHAIN_DEL failed: chain %s is missing or not empty", name)
	}
	for _, chains := range []map[string][]string{k.base, k.own} {
		for _, rules := range chains {
			for _, r := range rules {
				if strings.HasSuffix(r, " "+name) || strings.HasPrefix(r, "-j "+name) {
					return fmt.Errorf("CHAIN_DEL failed (Device or resource busy): chain %s", name)
				}
			}
		}
	}
	delete(k.own, name)
	return nil
}

func TestFakeKernelIsStrict(t *testing.T) {
	const setup = "*nat\n:VIPD-A - [0:0]\n:VIPD-B - [0:0]\n-A VIPD-A -g VIPD-B\n-I PREROUTING 1 -j VIPD-A\nCOMMIT\n"
	for _, tc := range []struct{ name, lines, why string }{
		{"unknown target", "-A VIPD-A -j VIPD-C\n", "does not exist"},
		{"target declared too late", "-A VIPD-A -j VIPD-C\n:VIPD-C - [0:0]\n", "does not exist"},
		{"unknown chain", "-A VIPD-C -j VIPD-A\n", "does not exist"},
		{"delete of a chain in use", ":VIPD-B - [0:0]\n-X VIPD-B\n", "busy"},
		{"delete of a chain with rules", "-D PREROUTING -j VIPD-A\n-X VIPD-A\n", "not empty"},
		{"delete of no chain", "-X VIPD-C\n", "missing"},
		{"long name", ":VIPD-9012345678901234567890123 - [0:0]\n", "bad chain name"},
		{"unknown rule", "-D PREROUTING -j VIPD-B\n", "Bad rule"},
	} {
		k := newFakeKernel()
		if err := k.Restore(t.Context(), []byte(setup)); err != nil {
			t.Fatal(err)
		}
		stood := dump(t, k)
		err := k.Restore(t.Context(), []byte("*nat\n:VIPD-NEW - [0:0]\n"+tc.lines+"COMMIT\n"))
		if !refused(err) || !strings.Contains(err.Error(), tc.why) {
			t.Errorf("%s: error %v", tc.name, err)
		}
		if dump(t, k) != stood {
			t.Errorf("%s: something of the refused commit was done", tc.name)
		}
	}
}

// deadKernel answers nothing but an error.
type deadKernel struct{ err error }

func (d deadKernel) Read(context.Context, string) (netfilter.Table, error) {
	return netfilter.Table{}, d.err
}
func (d deadKernel) Survey(context.Context, string, ...string) (netfilter.Listing, netfilter.Table, error) {
	return netfilter.Listing{}, netfilter.Table{}, d.err
}
func (d deadKernel) List(context.Context, string, ...string) (netfilter.Listing, error) {
	return netfilter.Listing{}, d.err
}
func (d deadKernel) ReadChains(context.Context, string, ...string) (netfilter.Table, error) {
	return netfilter.Table{}, d.err
}
func (d deadKernel) Since(context.Context, uint32, string) (netfilter.Since, error) {
	return netfilter.Since{}, d.err
}
func (d deadKernel) Restore(context.Context, []byte) error                      { return d.err }
func (d deadKernel) Leading(context.Context, string) (netfilter.Leading, error) { return nil, d.err }
func (d deadKernel) Apply(context.Context, netfilter.Repair) error {
	return d.err
}
func (d deadKernel) Test(context.Context, []byte) error         { return d.err }
func (d deadKernel) Generation(context.Context) (uint32, error) { return 0, d.err }
func (d deadKernel) CommitChains() int                          { return commitChains }
