package vip

import (
	"context"
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

	policies *fakePolicies
	tell     func(netfilter.Drift) // of the watch of the rules that runs
	anchors  *fakeAnchors
}

func newFakeWorld() *world {
	h := &fakeHost{links: newFakeLinks(), sets: netfilter.NewFakeSets(), sys: newFakeSysctls(), policies: &fakePolicies{}, anchors: newFakeAnchors()}
	for i := range h.tables {
		h.tables[i] = newFakeTables(h.sets)
	}
	h.sets.InUse = func(name string) bool { return h.tables[0].uses(name) || h.tables[1].uses(name) }
	return &world{
		raw: &kernel{links: h.links, sets: h.sets, sysctls: h.sys, policies: h.policies, anchors: h.anchors, anchored: true,
			tables: func(f netfilter.Family) (tables, error) { return h.tables[index(f)], nil }, watch: h.watchRules},
		fake: h, shell: h.shell,
	}
}

// watchRules tells nothing by itself.
func (h *fakeHost) watchRules(ctx context.Context, tell func(netfilter.Drift)) error {
	h.tell = tell
	<-ctx.Done()
	return nil
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
	o := Options{DropInvalid: true, Log: slog.New(slog.DiscardHandler), kernel: w.recording()}
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
		links: recordedLinks{w.raw.links, w}, sets: recordedSets{w.raw.sets, w}, sysctls: recordedSysctls{w.raw.sysctls, w}, policies: w.raw.policies,
		anchors: recordedAnchors{w.raw.anchors, w}, anchored: w.raw.anchored, watch: w.raw.watch,
		tables: func(f netfilter.Family) (tables, error) {
			t, err := w.raw.tables(f)
			return recordedTables{t, w, f}, err
		},
	}
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
		fatal(t, w.raw.sets.Entries(ctx, set.Set, func(e netfilter.Entry) { out = append(out, "entry "+set.Name+" "+e.String()) }))
	}
	for _, f := range netfilter.Families {
		if anchor, err := w.raw.anchors.State(ctx, f); anchor != netfilter.AnchorAbsent || err != nil {
			out = append(out, fmt.Sprintf("anchor %s %s", f, anchor))
			fatal(t, err)
		}
		tool, err := w.raw.tables(f)
		if err != nil {
			continue
		}
		for _, name := range []string{"filter", "mangle", "nat"} {
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
			sum = netfilter.SumOf(rules[len(rules)-1])
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

// holds fails the test unless some sets, of both families, have exactly these
// entries.
func (w *world) holds(t *testing.T, sets []string, want ...string) {
	t.Helper()
	var got []string
	for _, line := range w.dump(t) {
		words := strings.Fields(line)
		if words[0] == "entry" && slices.ContainsFunc(sets, func(s string) bool { return words[1][:len(words[1])-1] == netfilter.SetPrefix+s }) {
			got = append(got, words[1]+" "+words[2])
		}
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("entries:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
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
			clean(t, w.door(t, func(o *Options) {
				o.Device, o.Mark, o.ARP, o.DropInvalid, o.Input = d.device, d.mark, d.arp, d.drop, d.input
			}), want, prune)
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

// ranged gives a service its ranges of clients.
func ranged(s *lb.Service, prefixes ...string) *lb.Service {
	for _, p := range prefixes {
		s.Clients = append(s.Clients, netip.MustParsePrefix(p))
	}
	s.Clients = lb.NormalizeClients(s.Clients)
	return s
}

// backend returns a backend at the address of the key.
func backendAt(key string) lb.Backend {
	return lb.Backend{Addr: netip.MustParseAddrPort(key), Weight: 1}
}

func services(list ...*lb.Service) lb.Snapshot { return lb.NewSnapshot(list...) }
