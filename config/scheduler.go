package config

import (
	"slices"
	"strings"

	"vipd/lb"
)

// readScheduler takes the short and the long name. Whether a mode has it is for
// checkScheduler to say.
func (p *parser) readScheduler(n node) (lb.Scheduler, bool) {
	text, ok := n.text()
	if !ok {
		return "", false
	}
	s, err := lb.ParseScheduler(text)
	if err == nil {
		return s, true
	}
	var short, names []string
	for _, s := range lb.Schedulers() {
		if slices.ContainsFunc(p.modeNames, func(m string) bool { return slices.Contains(p.modes[lb.Mode(m)].Schedulers, s) }) {
			short = append(short, string(s))
			names = append(names, string(s), s.LongName())
		}
	}
	if _, near := nearest(text, names); near {
		short = names
	}
	n.fail("%s is not a scheduler; %s", quote(text), suggest(text, short))
	return "", false
}

// checkScheduler reports a scheduler that no mode in question knows.
func (p *parser) checkScheduler(n node, m lb.Mode, s lb.Scheduler) bool {
	return p.checkWord(n, m, "scheduler", string(s), func(c Capability) []string { return texts(c.Schedulers) })
}

// texts returns words as strings.
func texts[T ~string](words []T) []string {
	all := make([]string, len(words))
	for i, w := range words {
		all[i] = string(w)
	}
	return all
}

// schedulerFlags has the flags in the order of their words.
var schedulerFlags = []lb.SchedulerFlags{lb.FlagFallback, lb.FlagPort}

// flagsOf returns the words of all flags that a scheduler has, in that order.
func flagsOf(s lb.Scheduler) []string {
	if !s.Hashes() {
		return nil
	}
	return (lb.FlagFallback | lb.FlagPort).Words(string(s) + "-")
}

// readFlags reads the flags of a scheduler, in the words of ipvsadm.
func readFlags(n node, s lb.Scheduler) (lb.SchedulerFlags, bool) {
	list, ok := n.list()
	if !ok {
		return 0, false
	}
	if len(list) > 0 && !s.Hashes() {
		n.fail("scheduler %s has no flags; remove scheduler_flags, or use scheduler mh or sh", s)
		return 0, false
	}
	var flags lb.SchedulerFlags
	words := flagsOf(s)
	for _, item := range list {
		w, isText := item.text()
		i := slices.Index(words, w)
		switch {
		case !isText:
			ok = false
		case i < 0:
			item.fail("%s is not a flag of scheduler %s; %s", quote(w), s, suggest(w, words))
			ok = false
		case flags&schedulerFlags[i] != 0:
			item.fail("flag %s stands twice; remove one", w)
			ok = false
		default:
			flags |= schedulerFlags[i]
		}
	}
	return flags, ok
}

// defaultFlags are those of a scheduler of which the file says nothing. A backend
// that drains, or has weight 0, keeps its place in the table of SH and MH (the
// kernel's ip_vs_sh.c; last_weight of ip_vs_mh.c), and without FlagFallback who
// hashes to that place is refused although others could serve.
func defaultFlags(s lb.Scheduler) lb.SchedulerFlags {
	if s.Hashes() {
		return lb.FlagFallback
	}
	return 0
}

// ownFlags reads the flags of a scheduler from where they stand.
func (p *parser) ownFlags(n node, s lb.Scheduler, into *lb.SchedulerFlags) {
	flags, ok := readFlags(n, s)
	if !ok {
		return
	}
	*into = flags
	if s.Hashes() && flags&lb.FlagFallback == 0 {
		p.warn(n, "without %s-fallback clients are refused that scheduler %s gives to a backend which drains or has weight 0; add it", s, s)
	}
}

// flags reads those of a service. A service with a scheduler of its own inherits
// none of another one.
func (p *parser) flags(e *entry) {
	e.flags = defaultFlags(e.scheduler)
	if d := p.config.Defaults; e.scheduler == d.Scheduler {
		e.flags = d.Flags
	}
	if n, found := e.at.field("scheduler_flags"); found {
		p.ownFlags(n, e.scheduler, &e.flags)
	}
}

// checkFlags reports flags that no mode in question knows.
func (p *parser) checkFlags(n node, m lb.Mode, flags lb.SchedulerFlags) bool {
	return flags == 0 || p.checkFeature(n, m, "scheduler_flags; write []", func(c Capability) bool { return c.Flags })
}

func showFlags(s lb.Scheduler, flags lb.SchedulerFlags) string {
	words := flags.Words(string(s) + "-")
	for i, w := range words {
		words[i] = showText(w)
	}
	return "[" + strings.Join(words, ", ") + "]"
}
