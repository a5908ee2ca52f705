package netfilter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
)

// Drift is a change to what is ours in the packet filter that somebody else made.
type Drift struct {
	Object string // "IPv4 table nat chain VIPD-SVC"
	By     string // "iptables (pid 1234)"; empty if the kernel does not tell
}

// The Objects of drifts of which nothing is known.
const (
	eventsLost = "perhaps the packet filter: more happened than the kernel could tell"
	unwatched  = "perhaps the packet filter: it was changed while nothing watched it"
)

// maxPlaces is how many places of one commit are told apart. If it touched more,
// whole tables stand for them.
const maxPlaces = 64

// place is a table or chain that concerns us.
type place struct {
	family Family
	table  string
	chain  string // "" is the table
}

// String names the object as people do.
func (p place) String() string {
	s := fmt.Sprintf("%s table %s", p.family, p.table)
	if p.chain != "" {
		s += " chain " + p.chain
	}
	return s
}

// news is what the kernel told of one commit.
type news struct {
	generation uint32
	port       uint32 // of the netlink socket that sent it: the pid of a tool, as its own namespace sees it
	pid        uint32 // of the process
	process    string // its name, at most 15 bytes
	places     []place
}

// drift words the news.
func (n news) drift() Drift {
	const named = 3
	names := make([]string, 0, named)
	for _, p := range n.places[:min(named, len(n.places))] {
		names = append(names, p.String())
	}
	d := Drift{Object: strings.Join(names, ", ")}
	if more := len(n.places) - named; more > 0 {
		d.Object += fmt.Sprintf(" and %d more", more)
	}
	if n.process != "" {
		d.By = fmt.Sprintf("%s (pid %d)", n.process, n.pid)
	}
	return d
}

// eventReader puts the events of the group NFNLGRP_NFTABLES together to news. It
// looks at names only, and skips what is not ours as early as it can. The zero
// eventReader is ready.
type eventReader struct {
	places  []place
	inserts []place // base chains in which a rule was put before another
}

// reset drops what was read of a commit whose end will not come.
func (r *eventReader) reset() { r.places, r.inserts = nil, nil }

// read reads one message. It returns true with the end of a commit.
func (r *eventReader) read(kind uint16, flags uint16, port uint32, body []byte) (n news, ended bool, err error) {
	if kind>>8 != unix.NFNL_SUBSYS_NFTABLES || len(body) < sizeofNfgenmsg {
		return n, false, nil
	}
	attrs := body[sizeofNfgenmsg:]
	family, watched := familyOfEvent(body[0])
	switch kind & 0xff {
	case unix.NFT_MSG_NEWGEN:
		n, err = r.end(attrs)
		n.port = port
		return n, err == nil, err
	case unix.NFT_MSG_DELTABLE:
		if watched {
			err = r.table(family, attrs)
		}
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		if watched {
			made := flags&(unix.NLM_F_CREATE|unix.NLM_F_EXCL) != 0 // iptables makes chains with EXCL alone
			err = r.chain(family, kind&0xff == unix.NFT_MSG_DELCHAIN, made, attrs)
		}
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		if watched {
			inserted := kind&0xff == unix.NFT_MSG_NEWRULE && flags&unix.NLM_F_APPEND == 0
			err = r.rule(family, inserted, attrs)
		}
	}
	return n, false, err
}

func familyOfEvent(af byte) (Family, bool) {
	switch af {
	case unix.AF_INET:
		return IPv4, true
	case unix.AF_INET6:
		return IPv6, true
	}
	return 0, false
}

func (r *eventReader) table(f Family, attrs []byte) (err error) {
	if table := string(untilZero(attributeOf(attrs, unix.NFTA_TABLE_NAME, &err))); watchedTable(table) {
		r.add(place{f, table, ""})
	}
	return err
}

// chain takes a chain that was made, changed or deleted. One that is no base chain can
// be changed in its name alone (nf_tables_updchain), and the kernel does not tell the
// old one: it may be ours.
func (r *eventReader) chain(f Family, deleted, made bool, attrs []byte) error {
	table, name, err := chainHeader(attrs)
	switch {
	case !watchedTable(string(table)):
	case ownOrAnchor(table, name), deleted && slices.Contains(baseChains[string(table)], string(name)):
		r.add(place{f, string(table), string(name)})
	case !deleted && !made && attributeOf(attrs, unix.NFTA_CHAIN_HOOK, &err) == nil:
		r.add(place{f, string(table), ""})
	}
	return err
}

// rule takes a rule that came or went. In a base chain only those that name us
// matter, and those that may stand before a jump of ours now.
func (r *eventReader) rule(f Family, inserted bool, attrs []byte) (err error) {
	var table, chain []byte
	for kind, b := range linux.Attributes(attrs, &err) {
		switch kind {
		case unix.NFTA_RULE_TABLE:
			table = untilZero(b)
		case unix.NFTA_RULE_CHAIN:
			chain = untilZero(b)
		}
		if table != nil && chain != nil {
			break
		}
	}
	switch {
	case !watchedTable(string(table)):
	case ownOrAnchor(table, chain):
		r.add(place{f, string(table), string(chain)})
	case !slices.Contains(baseChains[string(table)], string(chain)):
	case bytes.Contains(attrs, []byte(ChainPrefix)):
		r.add(place{f, string(table), string(chain)})
	case inserted:
		if p := (place{f, string(table), string(chain)}); !slices.Contains(r.inserts, p) {
			r.inserts = append(r.inserts, p)
		}
	}
	return err
}

// add notes a place, once.
func (r *eventReader) add(p place) {
	if len(r.places) >= maxPlaces {
		p.chain = ""
	}
	if !slices.Contains(r.places, p) {
		r.places = append(r.places, p)
	}
}

// end reads the last message of a commit.
func (r *eventReader) end(attrs []byte) (n news, err error) {
	n.places = r.places
	for kind, b := range linux.Attributes(attrs, &err) {
		switch {
		case kind == nftaGenID && len(b) == 4:
			n.generation = binary.BigEndian.Uint32(b)
		case kind == nftaGenPID && len(b) == 4:
			n.pid = binary.BigEndian.Uint32(b)
		case kind == nftaGenName:
			n.process = printable(untilZero(b))
		}
	}
	return n, err
}

// printable returns the name of a process, which may hold any byte, for a log.
func printable(name []byte) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, string(name))
}

// watchedTable reports whether a table may hold what is ours.
func watchedTable(table string) bool {
	return table == "nat" || table == "filter" || table == "mangle" || table == AnchorTable
}

func ownOrAnchor(table, chain []byte) bool {
	return bytes.HasPrefix(chain, []byte(ChainPrefix)) || string(table) == AnchorTable
}
