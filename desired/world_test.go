package desired

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vipd/lb"
	"vipd/lb/lbtest"
)

const (
	ipt  = lb.IPTables
	ipvs = lb.IPVS
)

// world drives Compute through the facts that a test tells, and checks after
// every step what always holds.
type world struct {
	t      *testing.T
	memo   *Memo
	facts  Facts
	record map[lb.Key][]byte // as state/ would hold it
	claims map[string]map[lb.Key]*lb.Spec
}

func newWorld(t *testing.T, sources ...string) *world {
	w := &world{
		t: t, memo: NewMemo(), record: map[lb.Key][]byte{}, claims: map[string]map[lb.Key]*lb.Spec{},
		facts: Facts{
			Now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Mode: ipt, Modes: bothModes(),
			Allowed: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("2001:db8::/32")},
		},
	}
	for _, name := range sources {
		w.facts.Sources = append(w.facts.Sources, Source{Name: name})
		w.claims[name] = map[lb.Key]*lb.Spec{}
	}
	return w
}

// bothModes is what modes can do on a host that lacks nothing.
func bothModes() map[lb.Mode]Ability {
	return map[lb.Mode]Ability{ipt: {}, ipvs: {Schedulers: lb.Schedulers(), Forwards: []lb.Forward{lb.ForwardDR, lb.ForwardTunnel}}}
}

// states sets what a source states.
func (w *world) states(source string, specs ...*lb.Spec) *world {
	w.t.Helper()
	specs = slices.Clone(specs)
	lb.SortSpecs(specs)
	return w.change(source, func(s *Source) { s.Services = specs })
}

func (w *world) change(source string, f func(*Source)) *world {
	w.t.Helper()
	w.facts.Sources = slices.Clone(w.facts.Sources)
	for i := range w.facts.Sources {
		if w.facts.Sources[i].Name == source {
			f(&w.facts.Sources[i])
			return w
		}
	}
	w.t.Fatalf("no source %s", source)
	return w
}

// after computes once a while later, and keeps the records.
func (w *world) after(d time.Duration) Result {
	w.t.Helper()
	w.facts.Now = w.facts.Now.Add(d)
	r := Compute(w.memo, w.facts)
	w.check(r)
	for _, c := range r.Claims {
		w.claims[c.Source][c.Key] = c.Spec
	}
	for _, k := range r.Touched {
		raw, err := w.memo.Record(k, w.facts.Now)
		if err != nil {
			w.t.Fatal(err)
		}
		if w.record[k] = raw; raw == nil {
			delete(w.record, k)
		}
	}
	return r
}

func (w *world) now() Result { w.t.Helper(); return w.after(0) }

// rest lets time run until it changes nothing more.
func (w *world) rest() Result {
	w.t.Helper()
	r := w.now()
	for range 1000 {
		if r.Due.IsZero() {
			return r
		}
		r = w.after(max(time.Second, r.Due.Sub(w.facts.Now)))
	}
	w.t.Fatal("time alone changes the decision without end")
	return r
}

// check fails unless the result is sound and the second Compute of the same facts
// decides nothing new.
func (w *world) check(r Result) {
	w.t.Helper()
	again := w.memo.Clone()
	if r2 := Compute(again, w.facts); len(r2.Claims) > 0 || len(r2.Touched) > 0 && !r.Due.Equal(w.facts.Now) {
		w.t.Fatalf("the second Compute of the same facts touches %v", r2.Touched)
	}
	if !r.Due.IsZero() && r.Due.Before(w.facts.Now) {
		w.t.Fatalf("due at %s, before now", r.Due)
	}
	faces := map[lb.Key]bool{}
	for mode, snapshot := range r.Place {
		for s := range snapshot.All() {
			faces[s.Key] = true
			if s.Mode != mode {
				w.t.Fatalf("%s in mode %s says that mode %q serves it", s.Key, mode, s.Mode)
			}
			if r.Door.Get(s.Key) == nil {
				w.t.Fatalf("%s is served by %s behind a shut door", s.Key, mode)
			}
			if !slices.IsSortedFunc(s.Backends, func(a, b lb.Backend) int { return a.Addr.Compare(b.Addr) }) {
				w.t.Fatalf("backends of %s are not sorted: %v", s.Key, s.Backends)
			}
		}
	}
	for face := range r.Door.All() {
		if s := r.Place[face.Mode].Get(face.Key); s == nil || !s.Equal(face) {
			w.t.Fatalf("the face of %s is not what mode %q serves", face.Key, face.Mode)
		}
	}
	if len(faces) != r.Door.Len() {
		w.t.Fatalf("%d services, %d in the door", len(faces), r.Door.Len())
	}
}

// restart replaces the memo by one restored from the records, a while later. The
// specs are other pointers, as they are when read from disk.
func (w *world) restart(d time.Duration) {
	w.t.Helper()
	w.facts.Now = w.facts.Now.Add(d)
	var accepted []Source
	w.facts.Sources = slices.Clone(w.facts.Sources)
	for i, s := range w.facts.Sources {
		seed := Source{Name: s.Name}
		for _, k := range slices.SortedFunc(maps.Keys(w.claims[s.Name]), lb.Key.Compare) {
			if spec := w.claims[s.Name][k]; spec != nil {
				fresh := *spec
				seed.Services = append(seed.Services, &fresh)
				w.claims[s.Name][k] = &fresh
			}
		}
		accepted = append(accepted, seed)
		if slices.EqualFunc(seed.Services, s.Services, func(a, b *lb.Spec) bool { return a.Equal(b) }) {
			w.facts.Sources[i].Services = seed.Services // as the hub interns them
		}
	}
	memo, err := Restore(w.record, accepted, w.facts.Now)
	if err != nil {
		w.t.Fatal(err)
	}
	w.memo = memo
}

// wants compares what a mode serves, a line a service.
func (w *world) wants(what string, got lb.Snapshot, want ...string) {
	w.t.Helper()
	if g := show(got); !slices.Equal(g, want) {
		w.t.Fatalf("%s: serves\n  %s\nwant\n  %s", what, strings.Join(g, "\n  "), strings.Join(want, "\n  "))
	}
}

// show prints a snapshot: "1:80 a*1 b*drain" is port 80 of 192.0.2.1 with backend
// 10.0.0.1 of weight 1 and 10.0.0.2 draining.
func show(s lb.Snapshot) []string {
	lines := []string{}
	for svc := range s.All() {
		lines = append(lines, showService(svc))
	}
	return lines
}

func showService(svc *lb.Service) string {
	line := strings.TrimPrefix(strings.TrimSuffix(svc.Key.String(), "/tcp"), "192.0.2.")
	for _, b := range svc.Backends {
		name := b.Addr.String()
		if ip := b.Addr.Addr(); ip.Is4() && ip.As4()[0] == 10 {
			name = string(rune('a' + ip.As4()[3] - 1))
		}
		if b.Draining {
			line += " " + name + "*drain"
		} else {
			line += fmt.Sprintf(" %s*%d", name, b.Weight)
		}
	}
	return line
}

func svc(text string) *lb.Spec { return lbtest.Spec(text) }

// with changes a copy of a spec.
func with(s *lb.Spec, f func(*lb.Spec)) *lb.Spec {
	c := *s
	f(&c)
	return &c
}

func inMode(s *lb.Spec, m lb.Mode) *lb.Spec { return with(s, func(s *lb.Spec) { s.Mode = m }) }

// problems lists what is not served, as "source: reason".
func (w *world) problems() []string {
	all := []string{}
	for _, p := range w.memo.Problems() {
		all = append(all, p.Source+": "+p.Reason)
	}
	return all
}

func (w *world) wantsProblem(what string, parts ...string) {
	w.t.Helper()
	all := w.problems()
	if len(all) != 1 {
		w.t.Fatalf("%s: problems %q, want one", what, all)
	}
	for _, p := range parts {
		if !strings.Contains(all[0], p) {
			w.t.Errorf("%s: problem %q does not say %q", what, all[0], p)
		}
	}
}
