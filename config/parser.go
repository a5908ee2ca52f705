package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vipd/lb"
)

// parser makes one Config of some files.
type parser struct {
	modes     map[lb.Mode]Capability
	modeNames []string // sorted
	keys      []key
	known     map[string]bool // path of a key or a table: whether it is a table
	problems  problems
	config    *Config

	inheritable bool    // the mode in force can do what [defaults] say
	inherited   clients // those of [defaults]
	mainFile    string
	entries     []*entry
}

func newParser(modes map[lb.Mode]Capability) *parser {
	p := &parser{modes: modes, known: map[string]bool{}, config: Default(), inheritable: true}
	for m := range modes {
		p.modeNames = append(p.modeNames, string(m))
	}
	slices.Sort(p.modeNames)
	p.keys = p.settings()
	paths := slices.Clone(serviceKeys)
	for _, k := range p.keys {
		paths = append(paths, k.path)
	}
	for _, path := range paths {
		p.known[path] = false
		for i, c := range path {
			if c == '.' {
				p.known[path[:i]] = true
			}
		}
	}
	return p
}

// file reads one file; the first one is the main file.
func (p *parser) file(index int, f File) {
	root, ok := parseFile(&source{name: f.Name, index: index, data: f.Data, problems: &p.problems})
	if index == 0 {
		p.mainFile = f.Name
		if ok {
			p.globals(root)
		}
	} else if ok {
		p.onlyServices(root)
	}
	if ok {
		for _, t := range root.tables("service") {
			p.entries = append(p.entries, p.service(t))
		}
	}
}

// globals reads all that is no [[service]].
func (p *parser) globals(root node) {
	p.checkKeys(root)
	for _, k := range p.keys {
		if n, found := root.lookup(k.path); found {
			k.read(n, p.config)
		}
	}
	c := p.config
	if _, found := root.lookup("defaults.scheduler_flags"); !found {
		c.Defaults.Flags = defaultFlags(c.Defaults.Scheduler)
	}
	if _, found := root.lookup("vip.allowed"); !found {
		at, _ := root.lookup("vip")
		at.failKey(`vip.allowed is missing; name the prefixes that VIPs may be in, like allowed = ["192.0.2.0/24"]`)
	}
	if c.Sync.SyncPeriod < c.Sync.MinSyncPeriod {
		n, found := root.lookup("sync.sync_period")
		if !found {
			n, _ = root.lookup("sync.min_sync_period")
		}
		n.fail("sync_period %s is shorter than min_sync_period %s; make it at least as long",
			FormatDuration(c.Sync.SyncPeriod), FormatDuration(c.Sync.MinSyncPeriod))
	}
	if n, found := root.lookup("proxy.fallback"); found && c.Proxy.Mode == Auto && c.Proxy.Fallback == None {
		n.fail(`fallback "none" contradicts mode auto, which takes what the host can do; write mode = "ipvs" or remove it`)
	}
	p.checkDefaults(root)
}

// checkDefaults reports what the mode in force cannot do of [defaults].
func (p *parser) checkDefaults(root node) {
	d := p.config.Defaults
	p.inherited = newClients(d.Allow)
	for key, able := range map[string]func(node) bool{
		"scheduler":        func(n node) bool { return p.checkScheduler(n, "", d.Scheduler) },
		"scheduler_flags":  func(n node) bool { return p.checkFlags(n, "", d.Flags) },
		"affinity_timeout": func(n node) bool { return p.checkAffinity(n, "", d.Affinity) },
		"allow":            func(n node) bool { return p.checkClients(n, "", p.inherited.some) },
		"forward":          func(n node) bool { return p.checkForward(n, "", d.Forward) },
	} {
		if n, found := root.lookup("defaults." + key); found && !able(n) {
			p.inheritable = false
		}
	}
}

// lookup returns the value at a dotted path outside of lists. If it is not there
// the node is the last table on the way.
func (n node) lookup(path string) (node, bool) {
	for name := range strings.SplitSeq(path, ".") {
		f, found := n.field(name)
		if !found {
			return n, false
		}
		f.table = join(n.table, name)
		n = f
	}
	return n, true
}

// checkKeys reports the keys of a table that are not known, and the tables in it
// that are none.
func (p *parser) checkKeys(n node) {
	for _, name := range n.names() {
		if p.problems.full {
			return // looking for near words costs more than the file is worth
		}
		path := join(n.table, name)
		f := node{n.src, n.inside(name), path, nil}
		isTable, known := p.known[path]
		switch {
		case slices.Contains(laterKeys, path):
			f.failKey("%s is not available in this version of vipd; remove it", path)
		case !known:
			f.failKey("unknown key %s%s; %s", quote(name), in(n.table), p.suggestKey(n.table, name))
		case isTable && !isList(path):
			if t, ok := n.subtable(name); ok {
				p.checkKeys(t)
			}
		}
	}
}

// isList says whether a table stands in double brackets.
func isList(table string) bool { return table == "service" || table == "service.backend" }

// in names a table in a message.
func in(table string) string {
	switch {
	case table == "":
		return ""
	case isList(table):
		return " in [[" + table + "]]"
	}
	return " in [" + table + "]"
}

// suggestKey says what an unknown key could have been: a key of that table, or
// the same word in another table.
func (p *parser) suggestKey(table, name string) string {
	var here, elsewhere []string
	for path := range p.known {
		parent, last := "", path
		if i := strings.LastIndexByte(path, '.'); i >= 0 {
			parent, last = path[:i], path[i+1:]
		}
		if parent == table {
			here = append(here, last)
		} else if last == name && parent != "" {
			elsewhere = append(elsewhere, strings.TrimSpace(strings.TrimPrefix(in(parent), " in ")))
		}
	}
	slices.Sort(here)
	slices.Sort(elsewhere)
	if _, near := nearest(name, here); !near && len(elsewhere) > 0 {
		return "it belongs in " + strings.Join(elsewhere, " or ")
	}
	return suggest(name, here)
}

// onlyServices reports what may not stand in a file of conf.d.
func (p *parser) onlyServices(root node) {
	for _, name := range root.names() {
		if name == "service" {
			continue
		}
		f := node{root.src, root.inside(name), name, nil}
		if _, known := p.known[name]; known {
			f.failKey("only [[service]] may stand in a file of conf.d; move %s to %s", name, p.mainFile)
		} else {
			f.failKey("unknown key %s; only [[service]] may stand in a file of conf.d", quote(name))
		}
	}
}

// modesFor returns the modes that may come to serve a service of that mode, the
// empty one meaning that it does not say.
func (p *parser) modesFor(m lb.Mode) []string {
	if m == "" {
		m = p.config.Proxy.Mode
	}
	if m == Auto {
		return p.modeNames
	}
	return []string{string(m)}
}

// mode reads the name of a mode that this program has.
func (p *parser) mode(n node, name string, words []string) (lb.Mode, bool) {
	exists := []string{string(lb.IPTables), string(lb.IPVS), string(lb.Userspace)}
	if slices.Contains(exists, name) && !slices.Contains(words, name) {
		n.fail("mode %s is not available in this version of vipd; use %s", name, strings.Join(words, " or "))
		return "", false
	}
	s, ok := n.word(words...)
	return lb.Mode(s), ok
}

// checkWord reports a word that no mode in question knows.
func (p *parser) checkWord(n node, m lb.Mode, what, word string, known func(Capability) []string) bool {
	modes := p.modesFor(m)
	var can []string
	for _, name := range modes {
		for _, w := range known(p.modes[lb.Mode(name)]) {
			if !slices.Contains(can, w) {
				can = append(can, w)
			}
		}
	}
	if len(modes) == 0 || slices.Contains(can, word) {
		return true
	}
	n.fail("mode %s cannot do %s %s; it knows %s", strings.Join(modes, " or "), what, word, strings.Join(can, ", "))
	return false
}

// checkAffinity reports an affinity that no mode in question can keep.
func (p *parser) checkAffinity(n node, m lb.Mode, affinity time.Duration) bool {
	return affinity == 0 || p.checkFeature(n, m, `affinity_timeout; write "0s"`, func(c Capability) bool { return c.Affinity })
}

// checkClients reports client ranges that no mode in question can hold.
func (p *parser) checkClients(n node, m lb.Mode, some bool) bool {
	return !some || p.checkFeature(n, m, "allow; write []", func(c Capability) bool { return c.Clients })
}

func (p *parser) checkFeature(n node, m lb.Mode, what string, able func(Capability) bool) bool {
	modes := p.modesFor(m)
	if len(modes) == 0 || slices.ContainsFunc(modes, func(name string) bool { return able(p.modes[lb.Mode(name)]) }) {
		return true
	}
	n.fail("mode %s cannot do %s", strings.Join(modes, " or "), what)
	return false
}

// checkProtocol reports a protocol that no mode in question knows.
func (p *parser) checkProtocol(n node, m lb.Mode, proto lb.Protocol) {
	p.checkWord(n, m, "protocol", proto.String(), func(c Capability) []string {
		words := make([]string, len(c.Protocols))
		for i, can := range c.Protocols {
			words[i] = can.String()
		}
		return words
	})
}

// inAllowed says whether a VIP is inside vip.allowed. If that could not be read
// (it may not be empty) the VIP is not to blame.
func (p *parser) inAllowed(a netip.Addr) bool {
	allowed := p.config.VIP.Allowed
	return len(allowed) == 0 || slices.ContainsFunc(allowed, func(prefix netip.Prefix) bool { return prefix.Contains(a) })
}

// warn notes what is allowed and probably not meant.
func (p *parser) warn(n node, format string, args ...any) {
	if len(p.config.Warnings) < maxErrors {
		p.config.Warnings = append(p.config.Warnings, n.String()+": "+fmt.Sprintf(format, args...))
	}
}
