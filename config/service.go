package config

import (
	"net/netip"
	"regexp"
	"strings"
	"time"

	"vipd/lb"
)

// entry is a [[service]] as it is written, with what it inherits.
type entry struct {
	at         node
	name       string
	vips       []placed[netip.Addr]
	ports      []placed[uint16]
	protocol   lb.Protocol
	mode       lb.Mode
	scheduler  lb.Scheduler
	flags      lb.SchedulerFlags
	affinity   time.Duration
	drain      time.Duration
	ranges     []placed[netip.Prefix] // what "allow" of the service itself says
	clients    clients                // what holds, by it or by [defaults]
	forward    lb.Forward
	tunnel     lb.Tunnel
	masquerade lb.Masquerade
	backends   []placed[backend]
	whole      bool // every VIP, range and backend could be read
}

// placed is a value and where it was read.
type placed[T any] struct {
	at node
	v  T
}

// serviceName is what a name may be: it goes into messages, file names and URLs.
var serviceName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,63}$`)

// service reads a [[service]].
func (p *parser) service(n node) *entry {
	p.checkKeys(n)
	d := p.config.Defaults
	e := &entry{
		at: n, protocol: lb.TCP, scheduler: d.Scheduler, affinity: d.Affinity, drain: d.DrainTimeout,
		clients: p.inherited, whole: true,
	}
	if _, found := n.field("name"); !found {
		n.failKey(`the service has no name; add one like name = "web"`)
	}
	optional(n, "name", readName, &e.name)
	e.vips = oneOrMore(e, "vip", "vips", `vip = "192.0.2.10"`, p.readVIP)
	e.ports = oneOrMore(e, "port", "ports", "port = 80", readPort)
	optional(n, "mode", p.readMode, &e.mode)
	if optional(n, "protocol", readProtocol, &e.protocol) {
		f, _ := n.field("protocol")
		p.checkProtocol(f, e.mode, e.protocol)
	}
	if _, own := n.field("scheduler"); optional(n, "scheduler", p.readScheduler, &e.scheduler) || !own {
		p.flags(e) // else nobody knows of what
	}
	optional(n, "affinity_timeout", readAffinity, &e.affinity)
	optional(n, "drain_timeout", readDrainTimeout, &e.drain)
	p.allow(e)
	p.forward(e)
	p.masquerade(e)
	p.checkAble(e)
	p.backends(e)
	return e
}

// allow reads the client ranges of a service.
func (p *parser) allow(e *entry) {
	n, found := e.at.field("allow")
	if !found {
		return
	}
	var ok bool
	e.ranges, ok = readRanges(n)
	e.whole = e.whole && ok
	e.clients = newClients(values(e.ranges))
}

// checkAble reports what the mode of a service cannot do. Of what it inherits only
// for a mode of its own: for the mode in force [defaults] were checked.
func (p *parser) checkAble(e *entry) {
	checks := []struct {
		key   string
		check func(node)
	}{
		{"scheduler", func(n node) { p.checkScheduler(n, e.mode, e.scheduler) }},
		{"affinity_timeout", func(n node) { p.checkAffinity(n, e.mode, e.affinity) }},
		{"allow", func(n node) { p.checkClients(n, e.mode, e.clients.some) }},
		{"forward", func(n node) { p.checkForward(n, e.mode, e.forward) }},
	}
	if at, own := e.at.field("scheduler_flags"); own { // else the scheduler says it
		p.checkFlags(at, e.mode, e.flags)
	}
	for _, c := range checks {
		if at, own := e.at.field(c.key); own {
			c.check(at)
		} else if e.mode != "" && p.inheritable {
			c.check(e.at)
		}
	}
}

// optional reads a key into a variable, and returns whether it was there and right.
func optional[T any](n node, name string, read func(node) (T, bool), into *T) bool {
	f, found := n.field(name)
	if !found {
		return false
	}
	v, ok := read(f)
	if ok {
		*into = v
	}
	return ok
}

// oneOrMore reads a key that has a plural. One of the two must be there.
func oneOrMore[T comparable](e *entry, singular, plural, example string, read func(node) (T, bool)) []placed[T] {
	one, hasOne := e.at.field(singular)
	many, hasMany := e.at.field(plural)
	list := []node{one}
	switch {
	case hasOne && hasMany:
		many.failKey("%s and %s exclude each other; put all into %s", singular, plural, plural)
	case !hasOne && !hasMany:
		e.at.failKey("the service has no %s; add one like %s", singular, example)
		return nil
	}
	if hasMany {
		list, _ = many.list()
		if values, isList := many.value.([]any); isList && len(values) == 0 {
			many.fail("%s is empty; add one, or remove the service", plural)
		}
	}
	var all []placed[T]
	seen := map[T]bool{}
	for _, n := range list {
		v, ok := read(n)
		if !ok {
			e.whole = false
			continue
		}
		if seen[v] {
			n.fail("%s %v stands twice in this service; remove one", singular, v)
			continue
		}
		seen[v] = true
		all = append(all, placed[T]{n, v})
	}
	return all
}

func readName(n node) (string, bool) {
	s, ok := n.text()
	if ok && !serviceName.MatchString(s) {
		n.fail("%s cannot be the name of a service; use 1 to 63 of A-Z a-z 0-9 . _ -", quote(s))
		return "", false
	}
	return strings.Clone(s), ok // not a piece of the whole file
}

func readPort(n node) (uint16, bool) {
	i, ok := n.integer(1, 65535)
	return uint16(i), ok //nolint:gosec // in range if ok
}

func readProtocol(n node) (lb.Protocol, bool) {
	s, ok := n.text()
	if !ok {
		return 0, false
	}
	proto, err := lb.ParseProtocol(s)
	if err != nil {
		n.fail("%s is not a protocol; %s", quote(s), suggest(s, []string{"tcp", "udp", "sctp"}))
		return 0, false
	}
	return proto, true
}

func (p *parser) readMode(n node) (lb.Mode, bool) {
	s, ok := n.text()
	if !ok {
		return "", false
	}
	return p.mode(n, s, p.modeNames)
}

// title shows a service in a message.
func (e *entry) title() string {
	if e.name == "" {
		return "the service at " + e.at.String()
	}
	return "service " + quote(e.name)
}
