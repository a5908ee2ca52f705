// Package proxiertest holds the contract of package proxier as tests: what every
// mode must do, whatever its kernel is. A mode runs them on its fake and on the
// real kernel, through a Harness, and has its own tests for the rest.
package proxiertest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vipd/lb"
	"vipd/proxier"
)

// Harness is a mode on some kernel, which is empty at first and outlives proxiers.
type Harness interface {
	// New returns a Proxier that knows nothing yet, as after a restart.
	New(t testing.TB) proxier.Proxier
	// Served returns who gets the next connection to a service, and with what share.
	Served(t testing.TB, k lb.Key) map[netip.AddrPort]float64
	// Writes counts the writes to the kernel so far.
	Writes() int
	// State is all that is in the kernel, as text.
	State(t testing.TB) string
}

// The ways in which a pass is made.
var (
	prune = proxier.How{Prune: true}
	fresh = proxier.How{Prune: true, Fresh: true}
	gated = proxier.How{}
)

// Run runs the contract. make returns a Harness on an empty kernel.
func Run(t *testing.T, make func(t *testing.T) Harness) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, h Harness)
	}{
		{"ServesTheSnapshot", servesTheSnapshot},
		{"B54_NoOpWritesNothing", noOpWritesNothing},
		{"B64_RestartWritesNothing", restartWritesNothing},
		{"RestartFindsWhatChanged", restartFindsWhatChanged},
		{"B38_DrainingBackendGetsNothingNew", drainingGetsNothing},
		{"B53_GateRemovesNothing", gateRemovesNothing},
		{"B53_GateAfterRestartRemovesNothing", gateAfterRestart},
		{"B10_ServiceComesBack", serviceComesBack},
		{"B34_AffinityIsSwitchedAtRunTime", affinityIsSwitched},
		{"B66_EmptySnapshotRemovesAll", emptyRemovesAll},
		{"PlanChangesNothing", planChangesNothing},
		{"CancelledSyncIsMadeUpFor", cancelledSync},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, make(t)) })
	}
}

// Service makes a service from its key and backends. Weights are 1, 2, 3, ...
func Service(key string, backends ...string) *lb.Service {
	k, err := lb.ParseKey(key)
	if err != nil {
		panic(err)
	}
	s := &lb.Service{Key: k, Scheduler: lb.WRR, Masquerade: lb.MasqueradeAlways}
	for i, b := range backends {
		s.Backends = append(s.Backends, lb.Backend{Addr: netip.MustParseAddrPort(b), Weight: uint16(i + 1)})
	}
	slices.SortFunc(s.Backends, func(a, b lb.Backend) int { return a.Addr.Compare(b.Addr) })
	return s
}

// sticky gives a service affinity.
func sticky(s *lb.Service, affinity time.Duration) *lb.Service {
	s.Affinity = affinity
	return s
}

// some returns a snapshot of several services of both families and protocols.
func some() []*lb.Service {
	return []*lb.Service{
		Service("192.0.2.10:80/tcp", "10.0.0.1:8080", "10.0.0.2:8080"),
		Service("192.0.2.10:443/tcp", "10.0.0.1:8443"),
		Service("192.0.2.10:53/udp", "10.0.0.3:53", "10.0.0.4:53", "10.0.0.5:53"),
		Service("192.0.2.10:53/tcp", "10.0.0.6:53"),
		Service("192.0.2.11:80/tcp"), // without a backend
		sticky(Service("192.0.2.12:80/tcp", "10.0.0.1:8080", "10.0.0.2:8080"), time.Minute),
		sticky(Service("[2001:db8::12]:80/tcp", "[fd00::1]:8080", "[fd00::2]:8080"), 3*time.Hour),
		Service("[2001:db8::10]:80/tcp", "[fd00::1]:8080", "[fd00::2]:8080"),
		Service("[2001:db8::10]:53/udp", "[fd00::3]:53"),
	}
}

// Expect checks that exactly the services of want are served, by their usable
// backends and weights, and those of gone are not.
func Expect(t testing.TB, h Harness, want lb.Snapshot, gone ...lb.Key) {
	t.Helper()
	for s := range want.All() {
		if got := h.Served(t, s.Key); !equal(got, Shares(s)) {
			t.Errorf("%s is served by %v, want %v", s.Key, got, Shares(s))
		}
	}
	for _, k := range gone {
		if got := h.Served(t, k); want.Get(k) == nil && len(got) > 0 {
			t.Errorf("%s, which is no service, is served by %v", k, got)
		}
	}
}

// Shares returns what part of new connections each backend has to get.
func Shares(s *lb.Service) map[netip.AddrPort]float64 {
	shares := map[netip.AddrPort]float64{}
	if s == nil {
		return shares
	}
	sum := 0.0
	for _, b := range s.Usable() {
		sum += float64(b.Weight)
	}
	for _, b := range s.Usable() {
		shares[b.Addr] = float64(b.Weight) / sum
	}
	return shares
}

func equal(got, want map[netip.AddrPort]float64) bool {
	for a, share := range want {
		if math.Abs(got[a]-share) > 1e-6 {
			return false
		}
	}
	return len(got) == len(want)
}

func sync(t testing.TB, p proxier.Proxier, want lb.Snapshot, how proxier.How) {
	t.Helper()
	if err := p.Sync(t.Context(), want, how); err != nil {
		t.Fatalf("Sync %+v: %v", how, err)
	}
}

// quiet checks that a Sync writes nothing.
func quiet(t testing.TB, h Harness, p proxier.Proxier, want lb.Snapshot, how proxier.How) {
	t.Helper()
	writes, state := h.Writes(), h.State(t)
	sync(t, p, want, how)
	if n := h.Writes() - writes; n != 0 {
		t.Errorf("Sync %+v made %d writes, want none", how, n)
	}
	if now := h.State(t); now != state {
		t.Errorf("Sync %+v changed the kernel:\n%s\nto\n%s", how, state, now)
	}
}

func servesTheSnapshot(t *testing.T, h Harness) {
	p := h.New(t)
	want := lb.NewSnapshot(some()...)
	sync(t, p, want, prune)
	Expect(t, h, want, lb.Key{Addr: netip.MustParseAddr("192.0.2.10"), Port: 81, Protocol: lb.TCP})
	changed := want.Edit()
	changed.Put(Service("192.0.2.10:80/tcp", "10.0.0.2:8080", "10.0.0.9:8080", "10.0.0.10:80"))
	changed.Delete(some()[1].Key)
	changed.Put(Service("192.0.2.13:80/tcp", "10.0.0.1:80"))
	sync(t, p, changed.Snapshot(), prune)
	Expect(t, h, changed.Snapshot(), some()[1].Key)
}

func noOpWritesNothing(t *testing.T, h Harness) {
	p := h.New(t)
	sync(t, p, lb.NewSnapshot(some()...), prune)
	shuffled := some()
	slices.Reverse(shuffled)
	for _, how := range []proxier.How{prune, fresh, gated, {Fresh: true}, prune} {
		quiet(t, h, p, lb.NewSnapshot(shuffled...), how)
	}
}

func restartWritesNothing(t *testing.T, h Harness) {
	want := lb.NewSnapshot(some()...)
	sync(t, h.New(t), want, prune)
	for _, how := range []proxier.How{prune, gated, fresh} {
		quiet(t, h, h.New(t), want, how)
	}
}

func restartFindsWhatChanged(t *testing.T, h Harness) {
	sync(t, h.New(t), lb.NewSnapshot(some()...), prune)
	e := lb.NewSnapshot(some()[2:]...).Edit()
	e.Put(Service("192.0.2.10:53/udp", "10.0.0.4:53"))
	e.Put(Service("192.0.2.1:1/tcp", "10.0.0.4:53"))
	p := h.New(t)
	sync(t, p, e.Snapshot(), prune)
	Expect(t, h, e.Snapshot(), some()[0].Key, some()[1].Key)
	quiet(t, h, p, e.Snapshot(), fresh)
}

func drainingGetsNothing(t *testing.T, h Harness) {
	p := h.New(t)
	s := Service("192.0.2.10:80/tcp", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
	sync(t, p, lb.NewSnapshot(s), prune)
	d := *s
	d.Backends = slices.Clone(s.Backends)
	d.Backends[0].Draining, d.Backends[1].Weight = true, 0
	sync(t, p, lb.NewSnapshot(&d), prune)
	Expect(t, h, lb.NewSnapshot(&d))
	sync(t, p, lb.NewSnapshot(s), prune)
	Expect(t, h, lb.NewSnapshot(s))
}

func gateRemovesNothing(t *testing.T, h Harness) {
	p := h.New(t)
	all := lb.NewSnapshot(some()...)
	sync(t, p, all, prune)
	other := lb.NewSnapshot(Service("192.0.2.10:8080/tcp", "10.0.0.1:80"))
	sync(t, p, other, gated)
	Expect(t, h, all)
	Expect(t, h, other)
	sync(t, p, other, prune)
	Expect(t, h, other, keys(all)...)
}

func gateAfterRestart(t *testing.T, h Harness) {
	all := lb.NewSnapshot(some()...)
	sync(t, h.New(t), all, prune)
	p := h.New(t)
	quiet(t, h, p, lb.Snapshot{}, gated)
	other := lb.NewSnapshot(Service("192.0.2.10:8080/tcp", "10.0.0.1:80"), Service("192.0.2.10:443/tcp", "10.0.0.9:443"))
	sync(t, p, other, gated)
	Expect(t, h, other)
	for s := range all.All() {
		if other.Get(s.Key) == nil {
			Expect(t, h, lb.NewSnapshot(s))
		}
	}
	quiet(t, h, p, other, gated)
	quiet(t, h, h.New(t), other, gated)
	sync(t, p, other, prune)
	Expect(t, h, other, keys(all)...)
	quiet(t, h, p, other, fresh)
}

func serviceComesBack(t *testing.T, h Harness) {
	p := h.New(t)
	for range 2 {
		for _, want := range []lb.Snapshot{lb.NewSnapshot(some()...), lb.NewSnapshot(some()[1:]...)} {
			sync(t, p, want, prune)
			Expect(t, h, want, some()[0].Key)
		}
	}
}

func affinityIsSwitched(t *testing.T, h Harness) {
	p := h.New(t)
	others := some()[:4]
	key, backends := "192.0.2.20:80/tcp", []string{"10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"}
	for i, affinity := range []time.Duration{0, time.Minute, time.Hour, 0, time.Second, 0} {
		want := lb.NewSnapshot(append(others, sticky(Service(key, backends...), affinity))...)
		writes := h.Writes()
		sync(t, p, want, prune)
		if h.Writes() == writes {
			t.Errorf("the change to an affinity of %s, number %d, wrote nothing", affinity, i)
		}
		Expect(t, h, want)
		quiet(t, h, p, want, prune)
		quiet(t, h, h.New(t), want, prune)
	}
}

func emptyRemovesAll(t *testing.T, h Harness) {
	state := h.State(t)
	p := h.New(t)
	sync(t, p, lb.NewSnapshot(some()...), prune)
	sync(t, p, lb.Snapshot{}, prune)
	if now := h.State(t); now != state {
		t.Errorf("left behind:\n%s\nwhere was\n%s", now, state)
	}
	quiet(t, h, p, lb.Snapshot{}, fresh)
	sync(t, p, lb.NewSnapshot(some()...), prune)
	sync(t, h.New(t), lb.Snapshot{}, prune)
	if now := h.State(t); now != state {
		t.Errorf("a restart left behind:\n%s\nwhere was\n%s", now, state)
	}
	quiet(t, h, h.New(t), lb.Snapshot{}, prune)
}

func planChangesNothing(t *testing.T, h Harness) {
	p := h.New(t)
	plan := func(want lb.Snapshot, how proxier.How) int {
		t.Helper()
		writes, state := h.Writes(), h.State(t)
		changes, err := p.Plan(t.Context(), want, how)
		if err != nil {
			t.Fatal(err)
		}
		if h.Writes() != writes || h.State(t) != state {
			t.Fatal("Plan changed the kernel")
		}
		return len(changes)
	}
	all := lb.NewSnapshot(some()...)
	for _, want := range []lb.Snapshot{all, lb.NewSnapshot(some()[2:]...), all, {}} {
		if plan(want, prune) == 0 {
			t.Error("Plan is empty where Sync has to write")
		}
		writes := h.Writes()
		sync(t, p, want, prune)
		if h.Writes() == writes {
			t.Error("Sync wrote nothing where Plan was not empty")
		}
		if n := plan(want, prune); n != 0 {
			t.Errorf("after Sync Plan has %d lines", n)
		}
	}
}

func cancelledSync(t *testing.T, h Harness) {
	p := h.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	want := lb.NewSnapshot(some()...)
	if err := p.Sync(ctx, want, prune); !errors.Is(err, context.Canceled) {
		t.Errorf("Sync with an ended context: %v", err)
	}
	sync(t, p, want, prune)
	Expect(t, h, want)
	quiet(t, h, p, want, prune)
}

func keys(s lb.Snapshot) (all []lb.Key) {
	for svc := range s.All() {
		all = append(all, svc.Key)
	}
	return all
}

// Describe writes a snapshot in one line a service, for failure messages.
func Describe(s lb.Snapshot) (text string) {
	for svc := range s.All() {
		text += fmt.Sprintln(svc.Key, svc.Scheduler, svc.Affinity, svc.Backends)
	}
	return text
}
