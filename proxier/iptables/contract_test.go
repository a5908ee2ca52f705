package iptables

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/proxiertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testKernel stands between a Proxier and a kernel: it counts, watches and makes
// faults.
type testKernel struct {
	wholeKernel
	others wholeKernel                // the same one, as somebody else writes to it
	refuse func(script string) bool   // as iptables-restore does
	before func(script string) error  // an error that is no refusal, before the commit
	after  func(script string) error  // the same, after the commit took effect
	watch  func()                     // called after each commit that took effect
	names  func(script string) string // the line that the tool names when it refuses; nil: none

	scripts []string
	refused int // scripts
	reads   int
}

// wholeKernel is a kernel with what only tests ask of it.
type wholeKernel interface {
	kernel
	// Read returns the text of the whole table.
	Read(ctx context.Context, table string) (netfilter.Table, error)
	// Generation returns a number that changes with every commit, or an error.
	Generation(ctx context.Context) (uint32, error)
}

func (k *testKernel) Survey(ctx context.Context, table string, spelt ...string) (netfilter.Listing, netfilter.Table, error) {
	k.reads++
	return k.wholeKernel.Survey(ctx, table, spelt...)
}

func (k *testKernel) Test(ctx context.Context, script []byte) error {
	if k.refuse != nil && k.refuse(string(script)) {
		return &netfilter.RestoreError{Stderr: "refused by the test"}
	}
	return k.wholeKernel.Test(ctx, script)
}

func (k *testKernel) Restore(ctx context.Context, script []byte) error {
	if k.before != nil {
		if err := k.before(string(script)); err != nil {
			return err
		}
	}
	if k.refuse != nil && k.refuse(string(script)) {
		k.refused++
		err := &netfilter.RestoreError{Stderr: "refused by the test"}
		if k.names != nil {
			err.Text = k.names(string(script))
		}
		return err
	}
	if fake, ok := k.wholeKernel.(*fakeKernel); ok {
		fake.ours = true
		defer func() { fake.ours = false }()
	}
	if err := k.wholeKernel.Restore(ctx, script); err != nil {
		return err
	}
	k.scripts = append(k.scripts, string(script))
	if k.watch != nil {
		k.watch()
	}
	if k.after != nil {
		return k.after(string(script))
	}
	return nil
}

// Apply is a Restore, but for what only the kernel can do.
func (k *testKernel) Apply(ctx context.Context, r netfilter.Repair) error {
	if len(r.Script) == 0 {
		return k.wholeKernel.Apply(ctx, r)
	}
	return k.Restore(ctx, r.Script)
}

// dump is all of table nat that is ours, and the base chains.
func dump(t testing.TB, k wholeKernel) string {
	t.Helper()
	table, err := k.Read(t.Context(), "nat")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, chains := range []map[string][]string{table.Base, table.Own} {
		for _, name := range slices.Sorted(maps.Keys(chains)) {
			b.WriteString(":" + name + "\n")
			for _, r := range chains[name] {
				b.WriteString("  " + r + "\n")
			}
		}
	}
	return b.String()
}

var quietLog = slog.New(slog.DiscardHandler)

// harness is this mode on two kernels.
type harness struct {
	kernels map[netfilter.Family]*testKernel
	sets    Sets
	evictor *fakeEvictor
	traced  map[netfilter.Family]traced
}

// traced is a tracer of the rules of some generation.
type traced struct {
	*tracer
	kernel     wholeKernel
	generation uint32
}

func newHarness(make func(netfilter.Family) wholeKernel) *harness {
	h := &harness{kernels: map[netfilter.Family]*testKernel{}, evictor: &fakeEvictor{}, traced: map[netfilter.Family]traced{}}
	for _, f := range netfilter.Families {
		k := make(f)
		h.kernels[f] = &testKernel{wholeKernel: k, others: k}
	}
	return h
}

func newFakeHarness() *harness {
	h := newHarness(func(netfilter.Family) wholeKernel { return newFakeKernel() })
	sets := netfilter.NewFakeSets()
	sets.InUse = func(set string) bool {
		for _, k := range h.kernels {
			if fake, ok := k.wholeKernel.(*fakeKernel); ok && fake.names(set) {
				return true
			}
		}
		return false
	}
	h.sets = sets
	for _, k := range h.kernels {
		k.wholeKernel.(*fakeKernel).sets = sets
	}
	return h
}

func (h *harness) New(testing.TB) proxier.Proxier { return h.proxier() }

func (h *harness) proxier() *Proxier { return h.proxierWith(h.evictor) }

func (h *harness) proxierWith(e Evictor) *Proxier {
	kernels := map[netfilter.Family]kernel{}
	for f, k := range h.kernels {
		kernels[f] = k
	}
	return newProxier(Options{Log: quietLog, Evict: e, Sets: h.sets}, kernels, nil)
}

// tracer follows packets through the rules of one family as they are now.
func (h *harness) tracer(t testing.TB, f netfilter.Family) *tracer {
	t.Helper()
	k := h.kernels[f].wholeKernel
	g, err := k.Generation(t.Context())
	unknown := errors.Is(err, netfilter.ErrNoGeneration)
	if err != nil && !unknown {
		t.Fatal(err)
	}
	if old, found := h.traced[f]; found && !unknown && old.kernel == k && old.generation == g {
		return old.tracer
	}
	table, err := k.Read(t.Context(), "nat")
	if err != nil {
		t.Fatal(err)
	}
	h.traced[f] = traced{newTracer(table.Base, table.Own), k, g}
	return h.traced[f].tracer
}

func (h *harness) Served(t testing.TB, k lb.Key) map[netip.AddrPort]float64 {
	t.Helper()
	return h.tracer(t, netfilter.FamilyOf(k.Addr)).to(k)
}

func (h *harness) Writes() (n int) {
	for _, k := range h.kernels {
		n += len(k.scripts)
	}
	return n
}

func (h *harness) State(t testing.TB) string {
	t.Helper()
	return dump(t, h.kernels[netfilter.IPv4].wholeKernel) + dump(t, h.kernels[netfilter.IPv6].wholeKernel) + strings.Join(h.clientSets(t), "\n")
}

// clientSets are the sets of clients that stand.
func (h *harness) clientSets(t testing.TB) (names []string) {
	t.Helper()
	list, err := h.sets.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if isClientSet(s.Name, s.Family) {
			names = append(names, "set "+s.Name)
		}
	}
	return names
}

func TestContract(t *testing.T) {
	proxiertest.Run(t, func(*testing.T) proxiertest.Harness { return newFakeHarness() })
}

// fakeEvictor notes what it is asked for.
type fakeEvictor struct {
	evicted, cancelled []netfilter.Eviction
	keep               netfilter.Keep
}

func (e *fakeEvictor) Evict(all ...netfilter.Eviction)  { e.evicted = append(e.evicted, all...) }
func (e *fakeEvictor) Cancel(all ...netfilter.Eviction) { e.cancelled = append(e.cancelled, all...) }
func (e *fakeEvictor) Sweep(keep netfilter.Keep)        { e.keep = keep }
