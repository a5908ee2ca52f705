package vip

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"vipd/internal/netfilter"
)

// fakeTables is the packet filter of one family in memory. It is strict: a
// commit with a rule that goes to a chain or names a set that does not exist, or
// that removes a chain in use, is refused whole.
type fakeTables struct {
	sets *netfilter.FakeSets
	fail func(op string) error          // before op ("read", "restore")
	base map[string]map[string][]string // by table and chain
	own  map[string]map[string][]string

	plain      bool   // the tool does not know --random-fully
	refuses    string // a rule with this in it is refused
	generation uint32
	foreign    []foreignWrite // what somebody else did
	reads      int
}

// foreignWrite is a write by somebody else to a chain.
type foreignWrite struct {
	generation   uint32
	table, chain string
}

var fakeBases = map[string][]string{
	"filter": {"INPUT", "FORWARD", "OUTPUT"}, "nat": {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
	"mangle": {"PREROUTING", "INPUT", "OUTPUT"}, "raw": {"PREROUTING"},
}

func newFakeTables(sets *netfilter.FakeSets) *fakeTables {
	f := &fakeTables{generation: 1, sets: sets, base: map[string]map[string][]string{}, own: map[string]map[string][]string{}}
	for table, chains := range fakeBases {
		f.base[table], f.own[table] = map[string][]string{}, map[string][]string{}
		for _, c := range chains {
			f.base[table][c] = nil
		}
	}
	return f
}

func (f *fakeTables) HasRandomFully() bool { return !f.plain }

func (f *fakeTables) CommitChains() int { return 3 }

func (f *fakeTables) Generation(context.Context) (uint32, error) { return f.generation, nil }

func (f *fakeTables) Read(ctx context.Context, table string) (netfilter.Table, error) {
	if err := ctx.Err(); err != nil {
		return netfilter.Table{}, err
	}
	if f.fail != nil {
		if err := f.fail("read"); err != nil {
			return netfilter.Table{}, err
		}
	}
	f.reads++
	return netfilter.Table{Name: table, Base: cloneChains(f.base[table]), Own: cloneChains(f.own[table])}, nil
}

func (f *fakeTables) ReadBase(ctx context.Context, table string) (netfilter.Table, error) {
	t, err := f.Read(ctx, table)
	t.Own = nil
	return t, err
}

func (f *fakeTables) PlanSkeleton(ctx context.Context, s netfilter.Skeleton, seen *netfilter.Baseline) (netfilter.Repair, error) {
	since := netfilter.Since{Now: f.generation}
	for _, w := range f.foreign {
		if before := seen.Mark(s.Table); w.table == s.Table && before > 0 && w.generation > before {
			since.Chains = append(since.Chains, w.chain)
		}
	}
	seen.Take(s.Table, since)
	have, err := f.Read(ctx, s.Table)
	if err != nil {
		return netfilter.Repair{}, err
	}
	return s.Compare(have, seen), nil
}

func (f *fakeTables) PlanRemoval(ctx context.Context, s netfilter.Skeleton) (netfilter.Repair, error) {
	have, err := f.Read(ctx, s.Table)
	return s.Removal(have), err
}

func (f *fakeTables) Apply(ctx context.Context, r netfilter.Repair) error {
	return f.Restore(ctx, r.Script)
}

// RemoveOwn is not asked for: a fake table shows all of its rules.
func (f *fakeTables) RemoveOwn(context.Context, string) error { return netfilter.ErrIncompatible }

func (f *fakeTables) Restore(ctx context.Context, script []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.fail != nil {
		if err := f.fail("restore"); err != nil {
			return err
		}
	}
	var table string
	var base, own map[string][]string
	for line := range strings.Lines(string(script)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line[0] == '*':
			table = line[1:]
			base, own = cloneChains(f.base[table]), cloneChains(f.own[table])
		case line == "COMMIT":
			f.base[table], f.own[table] = base, own
			f.generation++
		default:
			if f.refuses != "" && strings.Contains(line, f.refuses) {
				return fmt.Errorf("commit: %w", &netfilter.RestoreError{Text: line, Stderr: "Invalid argument"})
			}
			if err := f.step(base, own, line); err != nil {
				return fmt.Errorf("refused %q: %w", line, err)
			}
		}
	}
	return nil
}

// step makes one line of a script.
func (f *fakeTables) step(base, own map[string][]string, line string) error {
	if name, found := strings.CutPrefix(line, ":"); found {
		own[strings.Fields(name)[0]] = []string{}
		return nil
	}
	op, rest, _ := strings.Cut(line, " ")
	name, rule, _ := strings.Cut(rest, " ")
	chains := own
	if !strings.HasPrefix(name, netfilter.ChainPrefix) {
		chains = base
	}
	if _, found := chains[name]; !found {
		return errors.New("no such chain")
	}
	switch op {
	case "-A":
		chains[name] = append(chains[name], rule)
		return f.refers(own, rule)
	case "-I":
		rule = strings.TrimPrefix(rule, "1 ")
		chains[name] = slices.Insert(chains[name], 0, rule)
		return f.refers(own, rule)
	case "-D":
		i := slices.Index(chains[name], rule)
		if i < 0 {
			return errors.New("no such rule")
		}
		chains[name] = slices.Delete(chains[name], i, i+1)
	case "-F":
		chains[name] = []string{}
	case "-X":
		if len(chains[name]) > 0 {
			return errors.New("chain not empty")
		}
		for _, set := range []map[string][]string{base, own} {
			for _, rules := range set {
				if slices.ContainsFunc(rules, func(r string) bool { return targetOf(r) == name }) {
					return errors.New("chain in use")
				}
			}
		}
		delete(chains, name)
	default:
		return errors.New("unknown operation")
	}
	return nil
}

// refers checks what a rule refers to.
func (f *fakeTables) refers(own map[string][]string, rule string) error {
	words := strings.Fields(rule)
	for i, w := range words[:len(words)-1] {
		switch next := words[i+1]; w {
		case "-j", "-g":
			if _, found := own[next]; strings.HasPrefix(next, netfilter.ChainPrefix) && !found {
				return errors.New("no chain " + next)
			}
		case "--match-set":
			if !slices.ContainsFunc(f.sets.Dump(), func(l string) bool { return strings.HasPrefix(l, "set "+next+" ") }) {
				return errors.New("no set " + next)
			}
		}
	}
	return nil
}

// uses reports whether a rule names the set.
func (f *fakeTables) uses(set string) bool {
	for _, tables := range []map[string]map[string][]string{f.base, f.own} {
		for _, chains := range tables {
			for _, rules := range chains {
				if slices.ContainsFunc(rules, func(r string) bool { return strings.Contains(r, "--match-set "+set+" ") }) {
					return true
				}
			}
		}
	}
	return false
}

func targetOf(rule string) string {
	words := strings.Fields(rule)
	for i, w := range words {
		if (w == "-j" || w == "-g") && i+1 < len(words) {
			return words[i+1]
		}
	}
	return ""
}

func cloneChains(m map[string][]string) map[string][]string {
	out := map[string][]string{}
	for k, v := range m {
		out[k] = slices.Clone(v)
	}
	return out
}

// fakeSysctls is settings in memory.
type fakeSysctls struct {
	values map[string]string
	fail   error
}

func newFakeSysctls() *fakeSysctls {
	return &fakeSysctls{values: map[string]string{
		"net/ipv6/conf/default/disable_ipv6": "0",
		"net/ipv4/ip_forward":                "1", "net/ipv6/conf/all/forwarding": "1",
		"net/ipv4/conf/all/arp_ignore": "0", "net/ipv4/conf/all/arp_announce": "0",
		"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/all/route_localnet": "0",
		"net/ipv4/conf/eth0/rp_filter": "0", "net/ipv4/conf/eth1/rp_filter": "0", "net/ipv4/conf/eth1/route_localnet": "0",
	}}
}

func (f *fakeSysctls) Get(key string) (string, error) {
	v, found := f.values[key]
	if !found {
		return "", fmt.Errorf("sysctl %s: %w", key, fs.ErrNotExist)
	}
	return v, nil
}

func (f *fakeSysctls) Set(key, value string) error {
	if f.fail != nil {
		return f.fail
	}
	if _, err := f.Get(key); err != nil {
		return err
	}
	f.values[key] = value
	return nil
}

func (f *fakeSysctls) Devices(family string) ([]string, error) {
	devices := map[string]bool{}
	for key := range f.values {
		if parts := strings.Split(key, "/"); len(parts) == 5 && parts[1] == family && parts[3] != "all" && parts[3] != "default" {
			devices[parts[3]] = true
		}
	}
	return slices.Sorted(maps.Keys(devices)), nil
}

// fakePolicies is routing policy rules in memory.
type fakePolicies struct{ rules []markRule }

func (f *fakePolicies) Marked(context.Context) ([]markRule, error) { return f.rules, nil }
