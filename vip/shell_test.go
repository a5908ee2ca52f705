package vip

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vipd/internal/netfilter"
)

// shell makes a change of the fake host.
func (h *fakeHost) shell(t *testing.T, words []string) {
	t.Helper()
	var err error
	switch line := strings.Join(words, " "); {
	case strings.HasPrefix(line, "ip rule add fwmark "):
		h.policies.rules = append(h.policies.rules, parseFwmark(words[4]))
	case words[0] == "ip":
		err = h.links.ip(words[1:])
	case words[0] == "nft":
		err = h.anchors.nft(words[1:])
	case words[0] == "ipset":
		err = h.ipset(t, words[1:])
	case strings.HasSuffix(words[0], "tables"):
		i := map[string]int{"iptables": 0, "ip6tables": 1}[words[0]]
		err = h.tables[i].edit(words[1:])
	default:
		err = errors.New("unknown command " + line)
	}
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(words, " "), err)
	}
}

func (h *fakeHost) ipset(t *testing.T, words []string) error {
	if words[0] == "create" {
		return h.sets.Create(t.Context(), netfilter.Set{Name: words[1], Type: netfilter.SetType(words[2]), Family: netfilter.IPv4})
	}
	sets, err := h.sets.List(t.Context())
	fatal(t, err)
	i := slices.IndexFunc(sets, func(s netfilter.SetInfo) bool { return s.Name == words[1] })
	if i < 0 {
		return netfilter.ErrNoSet
	}
	if words[0] == "add" {
		return h.sets.Add(t.Context(), sets[i].Set, []netfilter.Entry{{Addr: netip.MustParseAddr(words[2])}})
	}
	var entries []netfilter.Entry
	fatal(t, h.sets.Entries(t.Context(), sets[i].Set, func(e netfilter.Entry) {
		if words[0] != "del" || e.String() == words[2] {
			entries = append(entries, e)
		}
	}))
	return h.sets.Delete(t.Context(), sets[i].Set, entries)
}

// edit knows "-t TABLE -F CHAIN", "-t TABLE -D CHAIN 1", "-t TABLE -I CHAIN 1 RULE",
// and "-t TABLE -N CHAIN".
func (f *fakeTables) edit(words []string) error {
	f.generation++
	table, op, chain := words[1], words[2], words[3]
	f.foreign = append(f.foreign, foreignWrite{f.generation, table, chain})
	chains := f.base[table]
	if strings.HasPrefix(chain, netfilter.ChainPrefix) {
		chains = f.own[table]
	}
	switch op {
	case "-F":
		chains[chain] = []string{}
	case "-D":
		chains[chain] = slices.Delete(chains[chain], 0, 1)
	case "-I":
		chains[chain] = slices.Insert(chains[chain], 0, strings.Join(words[5:], " "))
	case "-N":
		chains[chain] = []string{}
	default:
		return errors.New("unknown operation")
	}
	return nil
}

// ip knows the forms that the tests use.
func (f *fakeLinks) ip(words []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	named := func(name string) link { l, _ := f.byName(name); return l }
	arg := func(key string) string {
		if i := slices.Index(words, key); i >= 0 {
			return words[i+1]
		}
		return ""
	}
	switch words[0] + " " + words[1] {
	case "link add":
		f.put(link{Name: words[2], Kind: arg("type"), ARP: true})
	case "link del":
		f.remove(named(words[2]))
	case "link set":
		l := named(words[2])
		switch words[3] {
		case "up":
			l.Up = true
		case "down":
			l.Up = false
			f.dropAddrs(func(a address) bool { return a.Link == l.Index && a.Prefix.Addr().Is6() })
		case "arp":
			l.ARP = words[4] == "on"
		case "alias":
			l.Alias = words[4]
		default:
			return errors.New("unknown setting " + words[3])
		}
		f.put(l)
	case "addr add":
		p := netip.MustParsePrefix(words[2])
		a := address{Link: named(arg("dev")).Index, Prefix: p, HostScope: arg("scope") == "host"}
		if peer := arg("peer"); peer != "" {
			a.Prefix, a.Peer = netip.PrefixFrom(p.Addr(), p.Addr().BitLen()), netip.MustParseAddr(peer)
		}
		f.addAddr(a)
	case "addr del":
		p, dev := netip.MustParsePrefix(words[2]), named(arg("dev")).Index
		f.dropAddrs(func(a address) bool { return a.Link == dev && a.Prefix == p })
	case "addr change":
		i := f.find(named(arg("dev")).Index, netip.MustParsePrefix(words[2]))
		f.addrs[i].Deprecated = false
		f.tell(event{Index: f.addrs[i].Link, Address: true, Addr: f.addrs[i].Prefix.Addr()})
	case "addr flush":
		dev := named(arg("dev")).Index
		f.dropAddrs(func(a address) bool { return a.Link == dev })
	default:
		return errors.New("unknown ip command")
	}
	return nil
}

// parseFwmark reads "MARK/MASK" of ip-rule(8).
func parseFwmark(s string) markRule {
	mark, mask, _ := strings.Cut(s, "/")
	m, _ := strconv.ParseUint(mark, 0, 32)
	k, _ := strconv.ParseUint(mask, 0, 32)
	return markRule{family: netfilter.IPv4, priority: 100, mark: uint32(m), mask: uint32(k)}
}
