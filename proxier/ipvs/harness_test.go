package ipvs

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	vs "vipd/internal/ipvs"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/proxiertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	prune = proxier.How{Prune: true}
	fresh = proxier.How{Prune: true, Fresh: true}
	gated = proxier.How{}
)

// testKernel stands between a Proxier and a kernel: it writes down what is done and
// read, and makes faults.
type testKernel struct {
	Kernel
	before func(c vs.Command) error // an error in place of the command
	after  func(c vs.Command) error // an error although it took effect

	look atomic.Pointer[func()] // called before a virtual server is looked at

	miss  map[lb.Key]bool // not in a dump, which somebody else's change tore
	twice bool            // every destination is in a dump twice, for the same reason

	log *[]string // commands that took effect, and what happens to the journal

	commands int
	dumps    int          // calls of Servers
	lists    atomic.Int32 // and of Destinations, which Watch makes, too
	looks    atomic.Int32 // and of Server, likewise
}

func (k *testKernel) Do(ctx context.Context, commands []vs.Command) []error {
	if k.before == nil && k.after == nil {
		errs := k.Kernel.Do(ctx, commands)
		for i, c := range commands {
			if errs == nil || errs[i] == nil {
				k.did(c)
			}
		}
		return errs
	}
	errs := make([]error, len(commands))
	for i, c := range commands {
		errs[i] = k.one(ctx, c)
	}
	return errs
}

func (k *testKernel) one(ctx context.Context, c vs.Command) error {
	if k.before != nil {
		if err := k.before(c); err != nil {
			return err
		}
	}
	if errs := k.Kernel.Do(ctx, []vs.Command{c}); errs != nil {
		return errs[0]
	}
	k.did(c)
	if k.after != nil {
		return k.after(c)
	}
	return nil
}

func (k *testKernel) did(c vs.Command) {
	k.commands++
	*k.log = append(*k.log, c.String())
}

func (k *testKernel) Servers(ctx context.Context, each func(vs.Server) error) error {
	k.dumps++
	return k.Kernel.Servers(ctx, func(s vs.Server) error {
		if k.miss[s.Key] {
			return nil
		}
		return each(s)
	})
}

func (k *testKernel) Destinations(ctx context.Context, key lb.Key, each func(vs.Entry) error) error {
	k.lists.Add(1)
	return k.Kernel.Destinations(ctx, key, func(e vs.Entry) error {
		if k.twice {
			if err := each(e); err != nil {
				return err
			}
		}
		return each(e)
	})
}

func (k *testKernel) Server(ctx context.Context, key lb.Key) (vs.Server, bool, error) {
	k.looks.Add(1)
	if look := k.look.Load(); look != nil {
		(*look)()
	}
	return k.Kernel.Server(ctx, key)
}

// testJournal is a Journal in memory.
type testJournal struct {
	keys map[lb.Key]bool
	log  *[]string
	full error // what every write answers, and does nothing
}

func (j *testJournal) Owned() iter.Seq[lb.Key] { return maps.Keys(j.keys) }

func (j *testJournal) Own(keys []lb.Key) error {
	if j.full != nil {
		return j.full
	}
	for _, k := range keys {
		j.keys[k] = true
		*j.log = append(*j.log, "own "+k.String())
	}
	return nil
}

func (j *testJournal) Disown(keys []lb.Key) error {
	if j.full != nil {
		return j.full
	}
	for _, k := range keys {
		delete(j.keys, k)
		*j.log = append(*j.log, "disown "+k.String())
	}
	return nil
}

// harness is this mode on some kernel.
type harness struct {
	others  Kernel // the kernel, as somebody else writes to it
	kernel  *testKernel
	journal *testJournal
	witness func(context.Context) (map[lb.Key]bool, error)
	evictor *fakeEvictor
	log     []string
}

func newHarness(k Kernel) *harness {
	h := &harness{others: k, evictor: &fakeEvictor{}}
	h.kernel = &testKernel{Kernel: k, log: &h.log}
	h.journal = &testJournal{keys: map[lb.Key]bool{}, log: &h.log}
	return h
}

func (h *harness) New(testing.TB) proxier.Proxier { return h.proxier() }

func (h *harness) proxier() *Proxier {
	return New(Options{Kernel: h.kernel, Journal: h.journal, Witness: h.witness, Evict: h.evictor, Log: slog.New(slog.DiscardHandler)})
}

// Served tells who gets the next connection, by what the kernel does with the two
// schedulers that the contract asks for.
func (h *harness) Served(t testing.TB, k lb.Key) map[netip.AddrPort]float64 {
	t.Helper()
	shares := map[netip.AddrPort]float64{}
	server, found, err := h.others.Server(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	if !found {
		return shares
	}
	sum := 0.0
	err = h.others.Destinations(t.Context(), k, func(e vs.Entry) error {
		share := float64(e.Weight)
		if server.Scheduler == string(lb.RR) {
			share = min(share, 1)
		}
		if sum += share; share > 0 {
			shares[e.Addr] = share
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for a := range shares {
		shares[a] /= sum
	}
	return shares
}

func (h *harness) Writes() int { return h.kernel.commands }

func (h *harness) State(t testing.TB) string { return state(t, h.others) }

// state is all that a kernel holds, in the words of ipvsadm.
func state(t testing.TB, k Kernel) string {
	t.Helper()
	var servers []vs.Server
	err := k.Servers(t.Context(), func(s vs.Server) error {
		servers = append(servers, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, s := range servers {
		lines = append(lines, vs.Command{Op: vs.AddServer, Server: s}.String())
		err := k.Destinations(t.Context(), s.Key, func(e vs.Entry) error {
			lines = append(lines, vs.Command{Op: vs.AddDestination, Server: s, Destination: e.Destination}.String())
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// did returns what was done since it was asked last, and what the journal was told if
// journal is set.
func (h *harness) did(journal bool) string {
	var lines []string
	for _, l := range h.log {
		if journal || strings.HasPrefix(l, "-") {
			lines = append(lines, l)
		}
	}
	h.log = nil
	return strings.Join(lines, "; ")
}

// foreign does commands as somebody else.
func (h *harness) foreign(t testing.TB, commands ...vs.Command) {
	t.Helper()
	if err := errors.Join(h.others.Do(t.Context(), commands)...); err != nil {
		t.Fatal(err)
	}
}

// sync syncs and returns what was done. It fails unless exactly the services of failed
// are.
func (h *harness) sync(t testing.TB, p *Proxier, how proxier.How, services []*lb.Service, failed ...string) string {
	t.Helper()
	h.did(false)
	err := p.Sync(t.Context(), lb.NewSnapshot(services...), how)
	rejected, only := proxier.FailedServices(err)
	if err != nil && !only {
		t.Fatalf("Sync: %v", err)
	}
	for _, k := range failed {
		if rejected[svc(k).Key] == nil {
			t.Errorf("%s did not fail", k)
		}
	}
	if len(rejected) != len(failed) {
		t.Errorf("failed: %v, want %v", rejected, failed)
	}
	return h.did(false)
}

// svc makes a service from text: "192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*3
// 10.0.0.3:80*draining scheduler=mh port fallback dr tunnel gue affinity=1m". Weights
// are 1 unless said.
func svc(text string) *lb.Service {
	words := strings.Fields(text)
	s := proxiertest.Service(words[0])
	for _, w := range words[1:] {
		name, value, _ := strings.Cut(w, "=")
		switch name {
		case "scheduler":
			s.Scheduler = lb.Scheduler(value)
		case "port":
			s.Flags |= lb.FlagPort
		case "fallback":
			s.Flags |= lb.FlagFallback
		case "dr":
			s.Forward = lb.ForwardDR
		case "tunnel":
			s.Forward = lb.ForwardTunnel
		case "gue":
			s.Forward, s.Tunnel = lb.ForwardTunnel, lb.Tunnel{Type: lb.TunnelGUE, Port: 6080}
		case "affinity":
			d, err := time.ParseDuration(value)
			if err != nil {
				panic(err)
			}
			s.Affinity = d
		default:
			s.Backends = append(s.Backends, backend(w))
		}
	}
	slices.SortFunc(s.Backends, func(a, b lb.Backend) int { return a.Addr.Compare(b.Addr) })
	return s
}

func backend(text string) lb.Backend {
	addr, rest, _ := strings.Cut(text, "*")
	b := lb.Backend{Addr: netip.MustParseAddrPort(addr), Weight: 1}
	switch rest {
	case "":
	case "draining":
		b.Draining = true
	default:
		if _, err := fmt.Sscan(rest, &b.Weight); err != nil {
			panic(err)
		}
	}
	return b
}

// services makes services, one a text.
func services(texts ...string) (all []*lb.Service) {
	for _, t := range texts {
		all = append(all, svc(t))
	}
	return all
}

// fakeEvictor notes what it is asked for.
type fakeEvictor struct {
	words []string
	keep  netfilter.Keep
}

func (e *fakeEvictor) Evict(all ...netfilter.Eviction) { e.note("end ", all) }
func (e *fakeEvictor) Note(_ context.Context, all ...netfilter.Eviction) error {
	e.note("note ", all)
	return nil
}
func (e *fakeEvictor) Cancel(all ...netfilter.Eviction) { e.note("keep ", all) }
func (e *fakeEvictor) Sweep(keep netfilter.Keep)        { e.keep = keep }

func (e *fakeEvictor) note(what string, all []netfilter.Eviction) {
	for _, ev := range all {
		e.words = append(e.words, what+ev.Key.String()+">"+ev.Backend.String())
	}
}

// asked returns what the evictor was asked for since it was asked last.
func (e *fakeEvictor) asked() string {
	slices.Sort(e.words)
	defer func() { e.words = nil }()
	return strings.Join(e.words, "; ")
}
