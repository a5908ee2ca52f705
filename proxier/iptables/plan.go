package iptables

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// rehearsal makes the pass a dry one.
func (p *pass) rehearsal() {
	p.dry = true
	p.names, p.old, p.made, p.was = map[string]string{}, map[string]stamp{}, map[string]bool{}, map[string]netfilter.Chain{}
}

// describe tells what the commits of a dry pass would change. Lines of a chain
// that stay are left out, and so is the comment with the checksum.
func (p *pass) describe(ctx context.Context) (all []proxier.Change, err error) {
	before, err := p.former(ctx)
	if err != nil {
		return nil, err
	}
	owner := p.owners()
	for _, c := range p.commits {
		for _, l := range c.repair.Lines {
			all = append(all, changeOf(l.Add, p.family.String()+" entry", l.Text))
		}
		for _, chain := range c.write {
			all = append(all, p.describeChain(owner(chain.Name), chain.Name, before[chain.Name], chain.Rules, true)...)
			before[chain.Name] = chain.Rules
		}
		for _, name := range c.remove {
			all = append(all, p.describeChain(owner(name), name, before[name], nil, false)...)
		}
	}
	return append(all, p.setChanges...), nil
}

// former returns the rules that the chains had which a dry pass would write or
// remove. Those of a service are rendered from the version that was applied; what
// the kernel is not known to hold just so is read.
func (p *pass) former(ctx context.Context) (map[string][]string, error) {
	rules := map[string][]string{}
	var unknown []string
	for name, stood := range p.old {
		if c, found := p.was[name]; found && stampOf(c) == stood {
			rules[name] = c.Rules
		} else {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return rules, nil
	}
	slices.Sort(unknown)
	text, err := p.kernel.ReadChains(ctx, table, unknown...)
	if err != nil {
		return nil, err
	}
	for _, name := range unknown {
		for _, rule := range text.Own[name] {
			rules[name] = append(rules[name], netfilter.WithoutSum(rule))
		}
	}
	return rules, nil
}

// note keeps to which service chains belong.
func (p *pass) note(k lb.Key, part commit, gone []string) {
	for _, c := range part.write {
		gone = append(gone, c.Name)
	}
	for _, name := range gone {
		p.names[name] = "service " + k.String()
	}
}

// noteWas keeps the chains of the version of a service that was applied.
func (p *pass) noteWas(chains []netfilter.Chain) {
	for _, c := range chains {
		p.was[c.Name] = c
	}
}

// noteOld keeps what stood where a commit writes.
func (p *pass) noteOld(c commit) {
	note := func(name string) {
		if _, done := p.old[name]; done || p.made[name] {
			return
		}
		if stood, found := p.memory.have.of(name); found {
			p.old[name] = stood
		} else {
			p.made[name] = true
		}
	}
	for _, chain := range c.write {
		note(chain.Name)
	}
	for _, name := range c.remove {
		note(name)
	}
}

// rehearse has the tool read the chains of services that a dry pass would write.
// What leads to them, and matches on sets, may rest on commits that were not made.
func (p *pass) rehearse(ctx context.Context) error {
	for _, c := range p.commits {
		var services commit
		for _, chain := range c.write {
			if kindOf(chain.Name) == service {
				chain.Rules = slices.DeleteFunc(slices.Clone(chain.Rules), p.restsOnSet)
				services.write = append(services.write, chain)
			}
		}
		if len(services.write) == 0 {
			continue
		}
		if err := p.kernel.Test(ctx, services.script()); err != nil {
			return fmt.Errorf("%s table %s: the rules would be refused: %w", p.family, table, err)
		}
	}
	return nil
}

// restsOnSet reports whether a rule names a set that is yet to be made.
func (p *pass) restsOnSet(rule string) bool {
	return slices.ContainsFunc(p.setChanges, func(c proxier.Change) bool {
		return c.Op == proxier.Add && strings.Contains(rule, "-"+c.Object+" ")
	})
}

// owners returns a function that says to what a chain belongs.
func (p *pass) owners() func(chain string) string {
	names := maps.Clone(p.names)
	for k := range p.linked {
		names[serviceChain(k)] = "service " + k.String()
	}
	return func(chain string) string {
		if name, found := names[chain]; found {
			return name
		}
		if kindOf(chain) == node {
			return p.family.String() + " dispatch"
		}
		return "chain " + chain
	}
}

// describeChain compares a chain with what it was. stays tells whether there is a
// chain afterwards.
func (p *pass) describeChain(object, name string, before, rules []string, stays bool) (all []proxier.Change) {
	_, found := p.old[name]
	if !found && stays {
		all = append(all, changeOf(true, object, ":"+name))
	}
	for _, l := range difference(before, rules) {
		l.Detail = strings.TrimSpace("-A " + name + " " + l.Detail)
		l.Object = object
		all = append(all, l)
	}
	if found && !stays {
		all = append(all, changeOf(false, object, ":"+name))
	}
	return all
}

func changeOf(add bool, object, detail string) proxier.Change {
	if add {
		return proxier.Change{Op: proxier.Add, Object: object, Detail: detail}
	}
	return proxier.Change{Op: proxier.Remove, Object: object, Detail: detail}
}

// difference returns the lines that go and come, after leaving out those that
// both begin and end with. Chains are short or change at one place.
func difference(before, after []string) (all []proxier.Change) {
	for len(before) > 0 && len(after) > 0 && before[0] == after[0] {
		before, after = before[1:], after[1:]
	}
	for len(before) > 0 && len(after) > 0 && before[len(before)-1] == after[len(after)-1] {
		before, after = before[:len(before)-1], after[:len(after)-1]
	}
	for _, l := range before {
		if !slices.Contains(after, l) {
			all = append(all, changeOf(false, "", l))
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			all = append(all, changeOf(true, "", l))
		}
	}
	return all
}
