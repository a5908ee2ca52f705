package ipvs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	vs "vipd/internal/ipvs"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/proxiertest"
)

var errBroken = errors.New("broken by the test")

// walker leads a Proxier through random snapshots, faults, harm and restarts, and
// compares the kernel with what it has to hold, after every Sync.
type walker struct {
	*harness
	t    *testing.T
	rng  *rand.Rand
	p    *Proxier
	want lb.Snapshot

	strangers map[lb.Key]string // what stands of others
	lost      bool              // the Proxier may not know what stands
	fault     func() error      // for the next commands; nil: none
	late      bool              // it comes after they took effect
}

func walk(t *testing.T, h *harness, seed uint64, steps int) {
	w := &walker{harness: h, t: t, rng: rand.New(rand.NewPCG(seed, seed)), strangers: map[lb.Key]string{}}
	h.witness = func(context.Context) (map[lb.Key]bool, error) {
		ours := maps.Collect(keysOf(w.standing()))
		maps.DeleteFunc(ours, func(k lb.Key, _ bool) bool { return w.strangers[k] != "" })
		return ours, nil
	}
	h.kernel.before = func(c vs.Command) error {
		if w.strangers[c.Server.Key] != "" && c.Op != vs.AddServer {
			t.Errorf("a stranger's virtual server is written to: %s", c)
		}
		return w.hit(false)
	}
	h.kernel.after = func(vs.Command) error { return w.hit(true) }
	w.p = w.proxier()
	for i := range steps {
		if w.step(i); t.Failed() {
			t.Fatalf("seed %d, step %d; wanted was\n%s\nis\n%s", seed, i, proxiertest.Describe(w.want), w.State(t))
		}
	}
	w.fault = nil
	w.sync(fresh)
	quiet := h.kernel.commands
	if w.sync(fresh); h.kernel.commands != quiet && len(w.strangers) == 0 && !w.guilty() {
		t.Errorf("seed %d: the second pass at the end did %s", seed, h.did(false))
	}
	w.want = lb.Snapshot{}
	w.sync(prune)
	if left := w.ours(); len(left) > 0 || len(h.journal.keys) > 0 {
		t.Errorf("seed %d: left behind %v, journal %v", seed, left, h.journal.keys)
	}
}

func keysOf(m map[lb.Key]string) func(func(lb.Key, bool) bool) {
	return func(yield func(lb.Key, bool) bool) {
		for k := range m {
			if !yield(k, true) {
				return
			}
		}
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
		w.invade()
	}
	if w.rng.IntN(6) == 0 {
		w.harm()
		how.Fresh = how.Fresh || w.rng.IntN(2) == 0
	}
	w.arm()
	w.sync(how)
}

// restart begins anew, and at times without the journal.
func (w *walker) restart() {
	w.p = w.proxier()
	if w.rng.IntN(3) == 0 {
		clear(w.journal.keys)
	}
}

// hit makes the fault, if its time has come.
func (w *walker) hit(late bool) error {
	if w.fault == nil || late != w.late {
		return nil
	}
	return w.fault()
}

// arm chooses a fault for the next Sync.
func (w *walker) arm() {
	at := w.rng.IntN(10)
	w.fault, w.late = nil, w.rng.IntN(2) == 0
	if w.rng.IntN(5) == 0 {
		w.fault = func() error {
			if at--; at == -1 {
				return errBroken
			}
			return nil
		}
	}
}

// invade puts a stranger's virtual server where nothing is, or takes one away.
func (w *walker) invade() {
	s := svc(w.key() + " scheduler=lc")
	if w.strangers[s.Key] != "" {
		w.foreign(w.t, vs.Command{Op: vs.DeleteServer, Server: serverOf(s)})
		delete(w.strangers, s.Key)
		return
	}
	if w.journal.keys[s.Key] || w.standing()[s.Key] != "" {
		return // it would be taken for ours, as it is ours by the journal
	}
	w.foreign(w.t, vs.Command{Op: vs.AddServer, Server: serverOf(s)})
	w.strangers[s.Key] = w.standing()[s.Key]
}

// harm does what an administrator might do to what is ours.
func (w *walker) harm() {
	w.lost = true
	for k := range w.ours() {
		switch server := (vs.Server{Key: k, Scheduler: "nq"}); w.rng.IntN(8) {
		case 0:
			w.foreign(w.t, vs.Command{Op: vs.DeleteServer, Server: server})
		case 1:
			w.foreign(w.t, vs.Command{Op: vs.EditServer, Server: server})
		case 2:
			err := w.others.Destinations(w.t.Context(), k, func(e vs.Entry) error {
				if e.Weight += 3; w.rng.IntN(2) == 0 {
					w.foreign(w.t, vs.Command{Op: vs.DeleteDestination, Server: server, Destination: e.Destination})
				} else {
					w.foreign(w.t, vs.Command{Op: vs.EditDestination, Server: server, Destination: e.Destination})
				}
				return nil
			})
			if err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

func (w *walker) key() string {
	return fmt.Sprintf("192.0.2.%d:%d/%s", w.rng.IntN(12), 1+w.rng.IntN(2), []string{"tcp", "udp", "sctp"}[w.rng.IntN(3)])
}

// edit changes what is wanted.
func (w *walker) edit() {
	text := w.key()
	v6 := w.rng.IntN(4) == 0
	if v6 {
		text = fmt.Sprintf("[2001:db8::%x]:80", w.rng.IntN(8))
	}
	e := w.want.Edit()
	if w.rng.IntN(3) == 0 {
		e.Delete(svc(text).Key)
		w.want = e.Snapshot()
		return
	}
	for i := range w.rng.IntN(6) {
		addr := fmt.Sprintf(" 10.0.0.%d:%d", 3*i+w.rng.IntN(3), 80)
		if v6 {
			addr = fmt.Sprintf(" [fd00::%x]:%d", 3*i+w.rng.IntN(3)+1, 80)
		}
		text += addr + []string{"", "*0", "*5", "*draining"}[w.rng.IntN(4)]
	}
	if w.rng.IntN(15) == 0 {
		text += " 224.0.0.1:80" // which is refused
	}
	text += []string{"", " scheduler=rr", " scheduler=mh port", " scheduler=sh fallback"}[w.rng.IntN(4)]
	text += []string{"", "", " affinity=1m", " affinity=1h"}[w.rng.IntN(4)]
	e.Put(svc(text))
	w.want = e.Snapshot()
}

func bad(s *lb.Service) bool {
	return slices.ContainsFunc(s.Backends, func(b lb.Backend) bool { return b.Addr.Addr().IsMulticast() })
}

func (w *walker) guilty() bool {
	for s := range w.want.All() {
		if bad(s) {
			return true
		}
	}
	return false
}

// standing is what the kernel holds, a text for each virtual server.
func (w *walker) standing() map[lb.Key]string {
	all := map[lb.Key]string{}
	err := w.others.Servers(w.t.Context(), func(s vs.Server) error {
		lines := []string{s.String()}
		err := w.others.Destinations(w.t.Context(), s.Key, func(e vs.Entry) error {
			lines = append(lines, e.Destination.String())
			return nil
		})
		slices.Sort(lines[1:])
		all[s.Key] = strings.Join(lines, "; ")
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

func (w *walker) ours() map[lb.Key]string {
	all := w.standing()
	maps.DeleteFunc(all, func(k lb.Key, _ string) bool { return w.strangers[k] != "" })
	return all
}

// textOf is a standing in the words of walker.standing; empty for none.
func textOf(s *standing) string {
	if s == nil {
		return ""
	}
	lines := []string{s.server.String()}
	for _, d := range s.to {
		lines = append(lines, d.String())
	}
	slices.Sort(lines[1:])
	return strings.Join(lines, "; ")
}

// sync makes a Sync, after a Plan, and judges both.
func (w *walker) sync(how proxier.How) {
	w.t.Helper()
	before := w.standing()
	plan, planErr := w.p.Plan(w.t.Context(), w.want, how)
	if now := w.standing(); !maps.Equal(now, before) {
		w.t.Errorf("Plan changed the kernel")
	}
	w.did(false)
	armed := w.fault != nil
	err := w.p.Sync(w.t.Context(), w.want, how)
	did := w.did(false)
	w.fault = nil
	failed, only := proxier.FailedServices(err)
	if err != nil && !only && !armed {
		w.t.Errorf("Sync %+v: %v", how, err)
	}
	after := w.standing()
	for k, text := range w.strangers {
		if after[k] != text {
			w.t.Errorf("of the stranger %s stands %q, and was %q", k, after[k], text)
		}
	}
	if w.lost && !how.Fresh || armed {
		w.lost = true // a pass that reads everything will tell
		return
	}
	w.lost = false
	w.judge(how, before, after, failed)
	if !w.guilty() && planErr == nil && spell(plan) != did {
		w.t.Errorf("planned\n%s\nand did\n%s", spell(plan), did)
	}
}

// judge compares what stands with what has to.
func (w *walker) judge(how proxier.How, before, after map[lb.Key]string, failed map[lb.Key]error) {
	for s := range w.want.All() {
		wrong := bad(s) || w.strangers[s.Key] != "" && render(s) != nil
		if (failed[s.Key] != nil) != (wrong && render(s) != nil) {
			w.t.Errorf("%s: error %v", s.Key, failed[s.Key])
		}
		switch want := textOf(render(s)); {
		case w.strangers[s.Key] != "":
		case failed[s.Key] != nil:
			want = before[s.Key]
			fallthrough
		case how.Prune:
			if after[s.Key] != want {
				w.t.Errorf("of %s stands %q, want %q (was %q)", s.Key, after[s.Key], want, before[s.Key])
			}
		default:
			for _, part := range strings.Split(want, "; ") {
				if !strings.Contains(after[s.Key], part) {
					w.t.Errorf("of %s stands %q, want %q in it", s.Key, after[s.Key], part)
				}
			}
		}
	}
	for k, was := range before {
		if w.want.Get(k) == nil && w.strangers[k] == "" && (after[k] != "") == how.Prune {
			w.t.Errorf("of %s, which is no service, stands %q, and was %q (%+v)", k, after[k], was, how)
		}
	}
	ours := w.ours()
	for k := range ours {
		if !w.journal.keys[k] {
			w.t.Errorf("%s is not in the journal", k)
		}
	}
	for k := range w.journal.keys {
		if ours[k] == "" && how.Fresh && how.Prune {
			w.t.Errorf("the journal has %s, of which nothing stands", k)
		}
	}
}

func TestB54_B58_B61_F93_RandomWalkOnTheFakeEndsEqual(t *testing.T) {
	walks, steps := 60, 60
	if testing.Short() {
		walks = 20
	}
	for seed := range walks {
		if walk(t, newHarness(vs.NewFake()), uint64(seed), steps); t.Failed() {
			return
		}
	}
}
