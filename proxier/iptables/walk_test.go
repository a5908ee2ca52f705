package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/proxiertest"
)

var errKilled = errors.New("killed by the test")

// poison is in the address of backends that the kernel refuses.
const poison = "10.66."

// walker leads a Proxier through random snapshots, faults and restarts.
type walker struct {
	*harness
	t   *testing.T
	rng *rand.Rand
	p   *Proxier

	want    lb.Snapshot
	settled map[lb.Key]*lb.Service // what has to be served, whatever happens now
	harmed  bool                   // somebody else removed rules of ours
	blank   bool                   // the Proxier may not have read the kernel yet

	clients clientMemory                         // the sets of clients, in the kernel
	last    map[lb.Key]map[string]netip.AddrPort // where clients went last
}

// walk makes a number of steps, and checks after every commit that services which
// do not change are served as before.
func walk(t *testing.T, h *harness, seed uint64, steps int) {
	w := &walker{harness: h, t: t, rng: rand.New(rand.NewPCG(seed, seed)), settled: map[lb.Key]*lb.Service{},
		clients: clientMemory{}, last: map[lb.Key]map[string]netip.AddrPort{}}
	w.restart()
	defer func() {
		if t.Failed() {
			t.Logf("seed %d; wanted was\n%s", seed, proxiertest.Describe(w.want))
		}
	}()
	for i := range steps {
		if t.Failed() {
			return
		}
		w.step(i)
	}
	w.rest()
}

// restart starts anew, with commits of another size: a commit for each chain shows
// every state in which a kill could leave the rules.
func (w *walker) restart() {
	w.p, w.blank = w.proxier(), true
	limit := []int{1, 3, commitChains}[w.rng.IntN(3)]
	for _, f := range w.p.families {
		f.limit = limit
	}
}

func (w *walker) step(i int) {
	for range w.rng.IntN(6) {
		w.edit()
	}
	how := proxier.How{Fresh: w.rng.IntN(4) == 0, Prune: w.rng.IntN(5) > 0}
	if w.rng.IntN(8) == 0 {
		w.restart()
	}
	if w.rng.IntN(8) == 0 {
		w.harm()
		how.Fresh = true
	}
	if w.harmed && w.blank { // who has never seen the chains cannot know the slots
		clear(w.last)
	}
	w.loosen()
	fault := w.arm()
	for k, s := range w.settled {
		now := w.want.Get(k)
		// What nobody wants stays before the gate opens, but who has never seen it
		// cannot mend it.
		if now == nil && (how.Prune || w.harmed) || now != nil && !now.Equal(s) {
			delete(w.settled, k)
		}
	}
	err := w.p.Sync(w.t.Context(), w.want, how)
	w.disarm()
	w.judge(fmt.Sprintf("step %d, %+v, fault %s", i, how, fault), err)
}

// judge checks the outcome of a Sync.
func (w *walker) judge(step string, err error) {
	failed, only := proxier.FailedServices(err)
	if err != nil && !only {
		if !errors.Is(err, errKilled) && !errors.Is(err, context.Canceled) {
			w.t.Fatalf("%s: %v", step, err)
		}
		return
	}
	for _, why := range failed {
		if errors.Is(why, errKilled) {
			return // one family is broken as a whole
		}
	}
	w.harmed, w.blank = false, false
	trace := w.tracers()
	for s := range w.want.All() {
		k := s.Key
		if why, bad := failed[k]; bad {
			if !poisoned(s) {
				w.t.Errorf("%s: %s failed: %v", step, k, why)
			}
			continue
		}
		if poisoned(s) && len(s.Usable()) > 0 {
			w.t.Errorf("%s: %s, which is refused, is not among the failed", step, k)
		}
		w.settled[k] = s
	}
	w.check(step, trace)
	w.visit(step, trace)
}

// check checks all that has to be served by now.
func (w *walker) check(when string, trace map[netfilter.Family]*tracer) {
	w.t.Helper()
	for k, s := range w.settled {
		if got := trace[netfilter.FamilyOf(k.Addr)].to(k); !sameShares(got, proxiertest.Shares(s)) {
			w.t.Errorf("%s: %s is served by %v, want %v", when, k, got, proxiertest.Shares(s))
		}
	}
}

func (w *walker) tracers() map[netfilter.Family]*tracer {
	all := map[netfilter.Family]*tracer{}
	for f := range w.kernels {
		all[f] = w.tracer(w.t, f)
	}
	return all
}

// arm chooses a fault for the next Sync.
func (w *walker) arm() (name string) {
	at := w.rng.IntN(12)
	hit := func(string) error {
		if at--; at < 0 {
			return errKilled
		}
		return nil
	}
	kind := w.rng.IntN(8)
	once := kind == 2 && !w.poisoned() // beside a bisect a service without guilt would be hit
	for f, k := range w.kernels {
		k.refuse = func(script string) bool {
			return strings.Contains(script, poison) || strings.Contains(script, "[fd66:") ||
				once && !strings.Contains(script, chainService) && hit(script) != nil && at == -1
		}
		k.watch = func() {
			if !w.harmed {
				w.check("after a commit", map[netfilter.Family]*tracer{f: w.tracer(w.t, f), other(f): w.tracer(w.t, other(f))})
			}
		}
		switch kind {
		case 0:
			k.before, name = hit, "before a commit"
		case 1:
			k.after, name = hit, "after a commit"
		case 2:
			name = "refuses a commit once"
		}
	}
	return name
}

func other(f netfilter.Family) netfilter.Family {
	if f == netfilter.IPv4 {
		return netfilter.IPv6
	}
	return netfilter.IPv4
}

func (w *walker) disarm() {
	for _, k := range w.kernels {
		k.before, k.after, k.watch = nil, nil, nil
	}
}

// harm does what an administrator might do to our rules.
func (w *walker) harm() {
	k := w.kernels[netfilter.Families[w.rng.IntN(2)]]
	table, err := k.wholeKernel.Read(w.t.Context(), "nat")
	if err != nil {
		w.t.Fatal(err)
	}
	w.harmed = true
	if w.rng.IntN(4) == 0 { // as "nft flush ruleset" does
		all := netfilter.Skeleton{Table: "nat"}
		for name := range table.Own {
			all.Chains = append(all.Chains, netfilter.Chain{Name: name})
		}
		if r := all.Removal(table); !r.Empty() {
			if err := k.others.Restore(w.t.Context(), r.Script); err != nil {
				w.t.Fatal(err)
			}
		}
		return
	}
	var script strings.Builder
	for _, name := range slices.Sorted(maps.Keys(table.Own)) {
		if w.rng.IntN(4) == 0 {
			script.WriteString("-F " + name + "\n")
		}
	}
	for _, base := range []string{"PREROUTING", "OUTPUT"} {
		for _, rule := range table.Base[base] {
			if strings.Contains(rule, netfilter.ChainPrefix) && w.rng.IntN(3) == 0 {
				script.WriteString("-D " + base + " " + rule + "\n")
			}
		}
	}
	if w.rng.IntN(3) == 0 {
		script.WriteString("-I PREROUTING 1 -p udp -j ACCEPT\n")
	}
	if err := k.others.Restore(w.t.Context(), []byte("*nat\n"+script.String()+"COMMIT\n")); err != nil {
		w.t.Fatal(err)
	}
}

// edit changes what is wanted.
func (w *walker) edit() {
	if w.rng.IntN(3) == 0 {
		w.flip()
		return
	}
	e := w.want.Edit()
	v6 := w.rng.IntN(3) == 0
	key := fmt.Sprintf("192.0.2.%d:%d/%s", w.rng.IntN(40), 1+w.rng.IntN(3), []string{"tcp", "udp", "sctp"}[w.rng.IntN(3)])
	if w.rng.IntN(4) == 0 {
		key = fmt.Sprintf("198.51.100.1:%d", 1+w.rng.IntN(60))
	}
	if v6 {
		key = fmt.Sprintf("[2001:db8::%x]:%d", w.rng.IntN(20), 1+w.rng.IntN(2))
	}
	s := svc(key)
	if w.rng.IntN(3) == 0 {
		e.Delete(s.Key)
		w.want = e.Snapshot()
		return
	}
	n := w.rng.IntN(5)
	if w.rng.IntN(10) == 0 {
		n = 15 + w.rng.IntN(40)
	}
	bad := w.rng.IntN(12) == 0
	for i := range n {
		s.Backends = append(s.Backends, lb.Backend{Addr: w.backend(i, v6, bad), Weight: uint16(w.rng.IntN(4)), Draining: w.rng.IntN(6) == 0})
	}
	if w.rng.IntN(3) == 0 {
		s.Scheduler = lb.RR
	}
	if w.rng.IntN(3) == 0 {
		s.Affinity = time.Duration(1+w.rng.IntN(3)) * time.Minute
	}
	e.Put(s)
	w.want = e.Snapshot()
}

func (w *walker) backend(i int, v6, bad bool) netip.AddrPort {
	text := fmt.Sprintf("10.0.0.%d:80", 3*i+w.rng.IntN(3))
	switch {
	case v6 && bad:
		text = fmt.Sprintf("[fd66::%x]:80", 3*i)
	case v6:
		text = fmt.Sprintf("[fd00::%x]:80", 3*i+w.rng.IntN(3))
	case bad:
		text = fmt.Sprintf("%s0.%d:80", poison, 3*i)
	}
	return netip.MustParseAddrPort(text)
}

// poisoned reports whether anything that is wanted is refused.
func (w *walker) poisoned() bool {
	for s := range w.want.All() {
		if poisoned(s) {
			return true
		}
	}
	return false
}

func poisoned(s *lb.Service) bool {
	for _, b := range s.Usable() {
		if a := b.Addr.String(); strings.HasPrefix(a, poison) || strings.HasPrefix(a, "[fd66:") {
			return true
		}
	}
	return false
}

// rest checks where the walk ends: at what a new vipd on an empty kernel makes of
// the same snapshot, and there it stays.
func (w *walker) rest() {
	t := w.t
	e := w.want.Edit()
	for s := range w.want.All() {
		if poisoned(s) {
			e.Delete(s.Key)
		}
	}
	w.want = e.Snapshot()
	final := proxier.How{Fresh: true, Prune: true}
	for i, how := range []proxier.How{final, {Prune: true}, final} {
		writes := w.Writes()
		if err := w.p.Sync(t.Context(), w.want, how); err != nil {
			t.Fatalf("at the end: %v", err)
		}
		if n := w.Writes() - writes; i > 0 && n > 0 {
			t.Errorf("pass %d after the end makes %d writes", i, n)
		}
	}
	proxiertest.Expect(t, w, w.want)
	blank := newFakeHarness()
	anew := blank.proxier()
	for i, f := range anew.families { // slots are a matter of history
		f.memory.slots = maps.Clone(w.p.families[i].memory.slots)
	}
	if err := anew.Sync(t.Context(), w.want, final); err != nil {
		t.Fatal(err)
	}
	for f, k := range w.kernels {
		got, want := ownChains(t, k.wholeKernel), ownChains(t, blank.kernels[f].wholeKernel)
		for name := range want {
			if got[name] != want[name] {
				t.Errorf("%s: chain %s holds\n%s\nwant\n%s", f, name, got[name], want[name])
			}
			delete(got, name)
		}
		for name := range got {
			t.Errorf("%s: chain %s is left behind", f, name)
		}
	}
}

// ownChains returns the chains of ours with their checksums.
func ownChains(t *testing.T, k wholeKernel) map[string]string {
	t.Helper()
	table, err := k.Read(t.Context(), "nat")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for name, rules := range table.Own {
		all[name] = fmt.Sprint(len(rules), " rules")
		if len(rules) > 0 {
			all[name] += ", " + netfilter.SumOf(rules[len(rules)-1])
		}
	}
	return all
}

func TestB54_B58_B61_F13_F74_RandomWalkOnTheFakeEndsEqual(t *testing.T) {
	walks, steps := 50, 40
	if testing.Short() {
		walks = 10
	}
	for seed := range walks {
		walk(t, newFakeHarness(), uint64(seed), steps)
		if t.Failed() {
			return
		}
	}
}
