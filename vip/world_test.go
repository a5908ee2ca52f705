package vip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// world is a host: one in memory, or the network namespace of the test. The same
// scenarios run on both.
type world struct {
	raw     *kernel                            // without the recorder
	journal []string                           // every write, in order
	shell   func(t *testing.T, words []string) // a change by somebody else, as ip(8), ipset(8) or iptables(8) take it
	fake    *fakeHost                          // nil: the real kernel
}

type fakeHost struct {
	links  *fakeLinks
	sets   *netfilter.FakeSets
	tables [2]*fakeTables
	sys    *fakeSysctls
}

func newFakeWorld() *world {
	h := &fakeHost{links: newFakeLinks(), sets: netfilter.NewFakeSets(), sys: newFakeSysctls()}
	for i := range h.tables {
		h.tables[i] = newFakeTables(h.sets)
	}
	h.sets.InUse = func(name string) bool { return h.tables[0].uses(name) || h.tables[1].uses(name) }
	return &world{
		raw: &kernel{links: h.links, sets: h.sets, sysctls: h.sys,
			tables: func(f netfilter.Family) (tables, error) { return h.tables[index(f)], nil }},
		fake: h, shell: h.shell,
	}
}

// sh makes changes as somebody else would, a line each.
func (w *world) sh(t *testing.T, lines string) {
	t.Helper()
	for line := range strings.Lines(lines) {
		if words := strings.Fields(line); len(words) > 0 {
			w.shell(t, words)
		}
	}
}

// door returns a new Door, as after a restart of the daemon.
func (w *world) door(t *testing.T, change ...func(*Options)) *Door {
	t.Helper()
	o := Options{Log: slog.New(slog.DiscardHandler), kernel: w.recording()}
	for _, c := range change {
		c(&o)
	}
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// taken returns the writes since the last call.
func (w *world) taken() []string {
	j := w.journal
	w.journal = nil
	return j
}

func (w *world) note(format string, args ...any) {
	w.journal = append(w.journal, fmt.Sprintf(format, args...))
}

// recording returns the kernel of the world with every write in the journal.
func (w *world) recording() *kernel {
	return &kernel{
		links: recordedLinks{w.raw.links, w}, sets: recordedSets{w.raw.sets, w}, sysctls: recordedSysctls{w.raw.sysctls, w},
		tables: func(f netfilter.Family) (tables, error) {
			t, err := w.raw.tables(f)
			return recordedTables{t, w, f}, err
		},
	}
}

type recordedLinks struct {
	links
	w *world
}

func (r recordedLinks) Create(ctx context.Context, name, kind string) error {
	r.w.note("create %s", name)
	return r.links.Create(ctx, name, kind)
}

func (r recordedLinks) Enable(ctx context.Context, index int) error {
	r.w.note("enable")
	return r.links.Enable(ctx, index)
}

func (r recordedLinks) Remove(ctx context.Context, index int) error {
	r.w.note("remove")
	return r.links.Remove(ctx, index)
}

func (r recordedLinks) Add(ctx context.Context, index int, addrs []netip.Addr) (map[netip.Addr]error, error) {
	r.w.note("+ address %v", addrs)
	return r.links.Add(ctx, index, addrs)
}

func (r recordedLinks) Delete(ctx context.Context, index int, addrs []netip.Addr) error {
	r.w.note("- address %v", addrs)
	return r.links.Delete(ctx, index, addrs)
}

type recordedSets struct {
	netfilter.Sets
	w *world
}

func (r recordedSets) Create(ctx context.Context, set netfilter.Set) error {
	r.w.note("create %s", set.Name)
	return r.Sets.Create(ctx, set)
}

func (r recordedSets) Add(ctx context.Context, set netfilter.Set, entries []netfilter.Entry) error {
	r.w.note("+ %s %v", set.Name, entries)
	return r.Sets.Add(ctx, set, entries)
}

func (r recordedSets) Delete(ctx context.Context, set netfilter.Set, entries []netfilter.Entry) error {
	r.w.note("- %s %v", set.Name, entries)
	return r.Sets.Delete(ctx, set, entries)
}

func (r recordedSets) Destroy(ctx context.Context, name string) error {
	r.w.note("destroy %s", name)
	return r.Sets.Destroy(ctx, name)
}

type recordedTables struct {
	tables
	w *world
	f netfilter.Family
}

func (r recordedTables) Restore(ctx context.Context, script []byte) error {
	table, _, _ := strings.Cut(string(script[1:]), "\n")
	r.w.note("commit %s %s", r.f, table)
	return r.tables.Restore(ctx, script)
}

type recordedSysctls struct {
	sysctls
	w *world
}

func (r recordedSysctls) Set(key, value string) error {
	r.w.note("sysctl %s=%s", key, value)
	return r.sysctls.Set(key, value)
}

// dump tells all that is of interest on the host: devices that bear our name or
// mark, all addresses but those of lo and link-local ones, our sets, chains and
// jumps. Rules are told by their checksum, as the kernel spells them differently.
func (w *world) dump(t *testing.T) []string {
	t.Helper()
	ctx := t.Context()
	var out []string
	h, err := w.raw.links.Read(ctx)
	fatal(t, err)
	names := map[int]string{}
	for _, l := range h.links {
		names[l.Index] = l.Name
		if l.ours() || strings.HasPrefix(l.Name, "vipd") {
			out = append(out, fmt.Sprintf("device %s ours=%t up=%t arp=%t", l.Name, l.ours(), l.Up, l.ARP))
		}
	}
	for _, a := range h.addrs {
		if ip := a.Prefix.Addr(); !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
			out = append(out, fmt.Sprintf("address %s dev %s shaped=%t", a.Prefix, names[a.Link], a.shaped()))
		}
	}
	sets, err := w.raw.sets.List(ctx)
	fatal(t, err)
	for _, set := range sets {
		out = append(out, fmt.Sprintf("set %s %s %s", set.Name, set.Type, set.Family))
		entries, err := w.raw.sets.Entries(ctx, set)
		fatal(t, err)
		for e := range entries {
			out = append(out, "entry "+set.Name+" "+e.String())
		}
	}
	for _, f := range netfilter.Families {
		tool, err := w.raw.tables(f)
		if err != nil {
			continue
		}
		for _, name := range []string{"filter", "nat"} {
			table, err := tool.Read(ctx, name)
			fatal(t, err)
			out = append(out, dumpTable(f, table)...)
		}
	}
	slices.Sort(out)
	return out
}

func dumpTable(f netfilter.Family, table netfilter.Table) (out []string) {
	for chain, rules := range table.Own {
		sum := ""
		if len(rules) > 0 {
			sum = sumIn(rules[len(rules)-1])
		}
		out = append(out, fmt.Sprintf("chain %s %s %s %d %s", f, table.Name, chain, len(rules), sum))
	}
	for base, rules := range table.Base {
		for i, r := range rules {
			if strings.HasPrefix(targetOf(r), netfilter.ChainPrefix) {
				out = append(out, fmt.Sprintf("jump %s %s %s %d %s", f, table.Name, base, i, targetOf(r)))
			}
		}
	}
	return out
}

// sumIn returns the checksum in the comment of a rule.
func sumIn(rule string) string {
	_, rest, _ := strings.Cut(rule, "vipd:")
	return rest[:min(len(rest), 16)]
}

// has fails the test unless the dump has exactly these lines of one kind.
func (w *world) has(t *testing.T, kind string, want ...string) {
	t.Helper()
	var got []string
	for _, line := range w.dump(t) {
		if rest, found := strings.CutPrefix(line, kind+" "); found {
			got = append(got, rest)
		}
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("%s:\n%s\nwant:\n%s", kind, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// prune is a pass that may remove, fresh one that reads all as well.
var (
	prune = proxier.How{Prune: true}
	fresh = proxier.How{Prune: true, Fresh: true}
)

// onePass makes one pass as the reconciler does, without a proxier.
func onePass(t *testing.T, d *Door, want lb.Snapshot, how proxier.How) map[lb.Key]error {
	t.Helper()
	failed, err := tryPass(t.Context(), d, want, how)
	fatal(t, err)
	return failed
}

func tryPass(ctx context.Context, d *Door, want lb.Snapshot, how proxier.How) (map[lb.Key]error, error) {
	err := d.Shut(ctx, want, how)
	failed, partial := proxier.FailedServices(err)
	if err != nil && !partial {
		return nil, err
	}
	left := want.Edit()
	for k := range failed {
		left.Delete(k)
	}
	if err := d.Open(ctx, left.Snapshot(), how); err != nil {
		more, partial := proxier.FailedServices(err)
		if !partial {
			return failed, err
		}
		failed = merged(maps.Clone(failed), more)
	}
	return failed, nil
}

// clean makes a pass in which no service may fail.
func clean(t *testing.T, d *Door, want lb.Snapshot, how proxier.How) {
	t.Helper()
	if failed := onePass(t, d, want, how); len(failed) > 0 {
		t.Fatalf("failed: %v", failed)
	}
}

// quiet makes passes that must not write: on this door, fresh, and after a
// restart.
func (w *world) quiet(t *testing.T, d *Door, want lb.Snapshot) {
	t.Helper()
	for name, p := range map[string]func(){
		"again":  func() { clean(t, d, want, prune) },
		"resync": func() { clean(t, d, want, fresh) },
		"restart": func() {
			clean(t, w.door(t, func(o *Options) { o.Device, o.Mark, o.ARP = d.device, d.mark, d.arp }), want, prune)
		},
	} {
		w.taken()
		p()
		if wrote := w.taken(); len(wrote) > 0 {
			t.Fatalf("%s: a pass without a change wrote:\n%s", name, strings.Join(wrote, "\n"))
		}
	}
	changes, err := d.Plan(t.Context(), want, fresh)
	if err != nil || len(changes) > 0 {
		t.Fatalf("plan without a change = %v, %v", changes, err)
	}
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// svc makes a service from "192.0.2.10:80/tcp", a masquerade and its backends.
func svc(key string, masq lb.Masquerade, backends ...string) *lb.Service {
	k, err := lb.ParseKey(key)
	if err != nil {
		panic(err)
	}
	s := &lb.Service{Key: k, Scheduler: lb.WRR, Masquerade: masq}
	for _, b := range backends {
		s.Backends = append(s.Backends, lb.Backend{Addr: netip.MustParseAddrPort(b), Weight: 1})
	}
	return s
}

// backend returns a backend at the address of the key.
func backendAt(key string) lb.Backend {
	return lb.Backend{Addr: netip.MustParseAddrPort(key), Weight: 1}
}

func services(list ...*lb.Service) lb.Snapshot { return lb.NewSnapshot(list...) }

// shell makes a change of the fake host.
func (h *fakeHost) shell(t *testing.T, words []string) {
	t.Helper()
	var err error
	switch line := strings.Join(words, " "); {
	case words[0] == "ip":
		err = h.links.ip(words[1:])
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
	i := slices.IndexFunc(sets, func(s netfilter.Set) bool { return s.Name == words[1] })
	if i < 0 {
		return netfilter.ErrNoSet
	}
	entries, err := h.sets.Entries(t.Context(), sets[i])
	fatal(t, err)
	maps.DeleteFunc(entries, func(e netfilter.Entry, _ struct{}) bool { return words[0] == "del" && e.String() != words[2] })
	return h.sets.Delete(t.Context(), sets[i], slices.Collect(maps.Keys(entries)))
}

// edit knows "-t TABLE -F CHAIN", "-t TABLE -D CHAIN 1", "-t TABLE -I CHAIN 1 RULE",
// and "-t TABLE -N CHAIN".
func (f *fakeTables) edit(words []string) error {
	table, op, chain := words[1], words[2], words[3]
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
		f.tell(event{Index: f.addrs[i].Link, Address: true})
	case "addr flush":
		dev := named(arg("dev")).Index
		f.dropAddrs(func(a address) bool { return a.Link == dev })
	default:
		return errors.New("unknown ip command")
	}
	return nil
}
