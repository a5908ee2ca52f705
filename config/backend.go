package config

import (
	"net/netip"
	"strconv"
	"strings"

	"vipd/lb"
)

// maxBackends is how many backends a service may have.
const maxBackends = 2000

// backend is one as it is written.
type backend struct {
	addr   netip.Addr
	port   uint16 // 0: the port of the service
	weight uint16
	state  lb.AdminState
}

// backends reads both forms of the backends of a service.
func (p *parser) backends(e *entry) {
	short, hasShort := e.at.field("backends")
	_, hasLong := e.at.field("backend")
	var list []node
	if hasShort {
		var ok bool
		list, ok = short.list()
		e.whole = e.whole && ok
	}
	tables := e.at.tables("backend")
	e.backends = make([]placed[backend], 0, len(list)+len(tables)) // there may be many services
	for _, n := range list {
		p.shortBackend(e, n)
	}
	for _, n := range tables {
		p.longBackend(e, n)
	}
	if !hasShort && !hasLong {
		p.warn(e.at, "%s has no backends and refuses every connection; write backends = [] if that is meant", e.title())
	}
	if len(e.backends) > maxBackends {
		e.backends[maxBackends].at.fail("a service has at most %d backends, this one %d; divide it", maxBackends, len(e.backends))
		e.backends = e.backends[:maxBackends]
	}
}

// shortBackend reads "10.0.0.11:8080".
func (p *parser) shortBackend(e *entry, n node) {
	if _, isTable := n.value.(map[string]any); isTable {
		n.fail("backends holds strings; write a table as [[service.backend]]")
		e.whole = false
		return
	}
	b, ok := readAddress(n)
	e.add(n, b, ok)
}

// longBackend reads a [[service.backend]].
func (p *parser) longBackend(e *entry, n node) {
	p.checkKeys(n)
	address, found := n.field("address")
	if !found {
		n.failKey(`the backend has no address; add one like address = "10.0.0.11"`)
		e.whole = false
		return
	}
	b, ok := readAddress(address)
	if port, found := n.field("port"); found {
		v, portOK := readPort(port)
		if ok && b.port != 0 {
			port.failKey("address has a port already; write it once")
		}
		b.port, ok = v, ok && portOK
	}
	optional(n, "weight", func(n node) (uint16, bool) {
		w, ok := n.integer(0, 65535)
		return uint16(w), ok //nolint:gosec // in range if ok
	}, &b.weight)
	optional(n, "state", readState, &b.state)
	e.add(address, b, ok)
}

func readState(n node) (lb.AdminState, bool) {
	w, ok := n.word(lb.Active.String(), lb.Draining.String(), lb.Disabled.String())
	if !ok {
		return 0, false
	}
	state, err := lb.ParseAdminState(w)
	return state, err == nil
}

func readAddress(n node) (backend, bool) {
	b := backend{weight: 1, state: lb.Active}
	s, ok := n.text()
	if !ok {
		return b, false
	}
	addr, port, wrong := parseBackend(s)
	if wrong != "" {
		n.fail("backend %s %s", quote(s), wrong)
		return b, false
	}
	b.addr, b.port = addr, port
	return b, true
}

func (e *entry) add(at node, b backend, ok bool) {
	if !ok {
		e.whole = false
		return
	}
	e.backends = append(e.backends, placed[backend]{at, b})
}

// parseBackend reads ADDRESS or ADDRESS:PORT, where an IPv6 address with a port
// stands in brackets. Port 0 means that there is none.
func parseBackend(s string) (a netip.Addr, port uint16, wrong string) {
	host, portText, hasPort := s, "", false
	if rest, bracket := strings.CutPrefix(s, "["); bracket {
		var closed bool
		if host, portText, closed = strings.Cut(rest, "]"); !closed {
			return a, 0, "has no closing bracket; write it like [2001:db8::11]:80"
		}
		if portText, hasPort = strings.CutPrefix(portText, ":"); !hasPort {
			return a, 0, "has brackets and no port; write it like [2001:db8::11]:80, or without brackets"
		}
	} else if strings.Count(s, ":") == 1 {
		host, portText, hasPort = strings.Cut(s, ":")
	}
	if a, wrong = parseAddr(host); wrong != "" {
		return a, 0, wrong
	}
	if strings.HasPrefix(s, "[") && a.Is4() {
		return a, 0, "is IPv4 and needs no brackets; write it like 192.0.2.11:80"
	}
	if what := whyUnusable(a); what != "" {
		return a, 0, "is " + what + ", which this host cannot forward to; use an address of the backend that this host can reach"
	}
	if !hasPort {
		return a, 0, ""
	}
	p, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || p == 0 || strconv.FormatUint(p, 10) != portText {
		return a, 0, "has no valid port; write a number from 1 to 65535 behind the colon"
	}
	return a, uint16(p), ""
}
