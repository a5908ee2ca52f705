package reconciler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vipd/desired"
	"vipd/lb"
	"vipd/proxier"
)

// host is the kernel of these tests: what each mode serves, which VIP:ports are
// open, and what state/ holds. It outlives the Reconciler, and it is strict: it
// fails the test when an order is broken that packets would notice.
type host struct {
	t *testing.T

	mu      sync.Mutex
	busy    bool
	shut    bool // Shut was the last word of the door
	log     []string
	writes  int
	modes   map[lb.Mode]*fakeMode
	open    map[lb.Key]bool
	entries map[lb.Key][]byte
	claims  map[string]map[lb.Key]*lb.Spec

	lets   map[lb.Key]map[lb.Mode]bool // to which modes the door leads
	steady map[lb.Key]bool             // services of which new connections are never to be refused
	looked int                         // how often that was looked at

	doorFail   map[string]error           // by call: "shut", "open"
	doorReject map[string]map[lb.Key]bool // by call
	stateFail  error
	beforeSync func() // runs at the begin of each Sync, unlocked
}

func newHost(t *testing.T, modes ...lb.Mode) *host {
	h := &host{
		t: t, modes: map[lb.Mode]*fakeMode{}, open: map[lb.Key]bool{}, entries: map[lb.Key][]byte{},
		claims: map[string]map[lb.Key]*lb.Spec{}, doorFail: map[string]error{}, doorReject: map[string]map[lb.Key]bool{},
		lets: map[lb.Key]map[lb.Mode]bool{},
	}
	for _, m := range modes {
		h.modes[m] = &fakeMode{host: h, name: m, kernel: map[lb.Key]*lb.Service{}}
	}
	return h
}

// enter notes a call and refuses one that overlaps another.
func (h *host) enter(ctx context.Context, call string) func() {
	h.mu.Lock()
	if h.busy {
		h.t.Errorf("%s overlaps another call", call)
	}
	if ctx == nil {
		h.t.Errorf("%s has no context", call)
	}
	h.busy = true
	h.log = append(h.log, call)
	return func() { h.busy = false; h.mu.Unlock() }
}

// inject changes what the host does, between two calls.
func (h *host) inject(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// passes returns how often a mode was synced.
func (h *host) passes(m lb.Mode) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.modes[m].syncs)
}

// calls returns what was called since it was asked last.
func (h *host) calls() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := strings.Join(h.log, ", ")
	h.log = nil
	return s
}

// written returns the writes since it was asked last.
func (h *host) written() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.writes
	h.writes = 0
	return n
}

func howText(how proxier.How) string {
	text := ""
	if how.Fresh {
		text += " fresh"
	}
	if !how.Prune {
		text += " keep"
	}
	return text
}

// fakeMode is a proxier that keeps what it was given.
type fakeMode struct {
	host   *host
	name   lb.Mode
	kernel map[lb.Key]*lb.Service
	reject map[lb.Key]bool // whatever version is not in place
	fail   error           // the outcome is unknown: half of it is done
	beside error           // told together with what was rejected
	poison bool            // panic
	took   time.Duration
	syncs  []time.Time // when each Sync began
	ended  time.Time
}

var errRejected = errors.New("the kernel says no")

// changes lists what Sync would write, and what it rejects.
func (f *fakeMode) changes(want lb.Snapshot, how proxier.How) ([]proxier.Change, map[lb.Key]error) {
	var list []proxier.Change
	rejected := map[lb.Key]error{}
	for s := range want.All() {
		switch old := f.kernel[s.Key]; {
		case old != nil && old.Equal(s):
		case f.reject[s.Key]:
			rejected[s.Key] = errRejected
		default:
			list = append(list, proxier.Change{Op: proxier.Add, Object: s.Key.String(), Detail: showService(s)})
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(f.kernel), lb.Key.Compare) {
		if want.Get(k) == nil && how.Prune {
			list = append(list, proxier.Change{Op: proxier.Remove, Object: k.String()})
		}
	}
	return list, rejected
}

func (f *fakeMode) Sync(ctx context.Context, want lb.Snapshot, how proxier.How) error {
	h := f.host
	if h.beforeSync != nil {
		h.beforeSync()
	}
	defer h.enter(ctx, string(f.name)+howText(how))()
	f.syncs = append(f.syncs, time.Now())
	h.mu.Unlock() // busy all the same
	time.Sleep(f.took)
	h.mu.Lock()
	f.ended = time.Now()
	if !h.shut {
		h.t.Errorf("%s syncs before the door shut", f.name)
	}
	if f.poison {
		panic("poisoned")
	}
	list, rejected := f.changes(want, how)
	if f.fail != nil {
		list = list[:len(list)/2]
	}
	defer h.look()
	for _, c := range list {
		k, err := lb.ParseKey(c.Object)
		if err != nil {
			h.t.Fatal(err)
		}
		h.writes++
		h.recorded(k, c)
		if c.Op == proxier.Add {
			f.kernel[k] = want.Get(k)
			continue
		}
		usable := len(f.kernel[k].Usable()) > 0
		delete(f.kernel, k)
		if len(h.modes) == 1 && h.open[k] && usable { // else another mode may be about to have it
			h.t.Errorf("%s lost its rules behind an open door", k)
		}
	}
	if f.fail != nil {
		return f.fail
	}
	if len(rejected) > 0 {
		return errors.Join(f.beside, &proxier.Failed{Services: rejected})
	}
	return f.beside
}

func (f *fakeMode) Plan(ctx context.Context, want lb.Snapshot, how proxier.How) ([]proxier.Change, error) {
	defer f.host.enter(ctx, "plan "+string(f.name))()
	list, rejected := f.changes(want, how)
	if len(rejected) > 0 {
		return list, &proxier.Failed{Services: rejected}
	}
	return list, nil
}

func (f *fakeMode) Close() error { return nil }

// look fails the test if no mode takes new connections of a steady service: mode
// iptables takes those that come while its rules stand; mode ipvs takes them when the
// door leads to it, since the guard sees them first.
func (h *host) look() {
	for k := range h.steady {
		h.looked++
		takes := func(m lb.Mode) bool { s := h.modes[m].kernel[k]; return s != nil && len(s.Usable()) > 0 }
		if !takes(ipt) && !(takes(ipvs) && h.lets[k][ipvs]) {
			h.t.Errorf("after %s nobody takes new connections of %s", strings.Join(h.log, ", "), k)
		}
		if h.lets[k][ipvs] && !takes(ipvs) {
			h.t.Errorf("after %s new connections of %s get to the host", strings.Join(h.log, ", "), k)
		}
	}
}

// lead has the door lead to the modes of want: Open, and Shut before it, which keeps
// the way of a service that moves until Open.
func (h *host) lead(call string, want lb.Snapshot) {
	for k := range h.lets {
		if s := want.Get(k); s == nil || len(s.Usable()) == 0 {
			delete(h.lets, k)
		}
	}
	for s := range want.All() {
		if call == "open" && len(s.Usable()) > 0 {
			h.lets[s.Key] = map[lb.Mode]bool{s.Mode: true}
		}
	}
}

// served reports whether some mode serves k.
func (h *host) served(k lb.Key) bool {
	for _, m := range h.modes {
		if m.kernel[k] != nil {
			return true
		}
	}
	return false
}

// recorded fails the test when something new is written that state/ does not know.
func (h *host) recorded(k lb.Key, c proxier.Change) {
	if c.Op == proxier.Add && h.entries[k] == nil && h.stateFail == nil {
		h.t.Errorf("%s was put in place before it was recorded", k)
	}
}

// fakeDoor is the door of a host.
type fakeDoor struct{ *host }

func (d fakeDoor) step(ctx context.Context, call string, want lb.Snapshot, how proxier.How) error {
	defer d.enter(ctx, call+howText(how))()
	d.shut = call == "shut"
	if err := d.doorFail[call]; err != nil {
		return err
	}
	list, rejected := d.changes(call, want, how)
	defer d.look()
	d.lead(call, want)
	for _, c := range list {
		k, err := lb.ParseKey(strings.TrimPrefix(c.Object, "VIP "))
		if err != nil {
			d.t.Fatal(err)
		}
		d.writes++
		if c.Op == proxier.Remove {
			delete(d.open, k)
			continue
		}
		if !d.served(k) {
			d.t.Errorf("the VIP of %s is opened before its rules are in place", k)
		}
		d.open[k] = true
	}
	for k := range d.open {
		if call == "open" && how.Prune && !d.served(k) {
			d.t.Errorf("%s is open and has no rules", k)
		}
	}
	if len(rejected) > 0 {
		return &proxier.Failed{Services: rejected}
	}
	return nil
}

func (h *host) changes(call string, want lb.Snapshot, how proxier.How) ([]proxier.Change, map[lb.Key]error) {
	var list []proxier.Change
	rejected := map[lb.Key]error{}
	for s := range want.All() {
		switch {
		case h.doorReject[call][s.Key] && !h.open[s.Key]:
			rejected[s.Key] = errRejected
		case call == "open" && !h.open[s.Key]:
			list = append(list, proxier.Change{Op: proxier.Add, Object: "VIP " + s.Key.String()})
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(h.open), lb.Key.Compare) {
		if want.Get(k) == nil && how.Prune {
			list = append(list, proxier.Change{Op: proxier.Remove, Object: "VIP " + k.String()})
		}
	}
	return list, rejected
}

func (d fakeDoor) Shut(ctx context.Context, want lb.Snapshot, how proxier.How) error {
	return d.step(ctx, "shut", want, how)
}

func (d fakeDoor) Open(ctx context.Context, want lb.Snapshot, how proxier.How) error {
	return d.step(ctx, "open", want, how)
}

func (d fakeDoor) Plan(ctx context.Context, want lb.Snapshot, how proxier.How) ([]proxier.Change, error) {
	defer d.enter(ctx, "plan door")()
	list, rejected := d.changes("shut", want, how)
	left := want.Edit()
	for k := range rejected {
		left.Delete(k)
	}
	more, _ := d.changes("open", left.Snapshot(), proxier.How{})
	list = append(list, more...)
	if len(rejected) > 0 {
		return list, &proxier.Failed{Services: rejected}
	}
	return list, nil
}

// Record is the state of a host.
func (h *host) Record(claims []desired.Claim, entries map[lb.Key][]byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range claims {
		if h.claims[c.Source] == nil {
			h.claims[c.Source] = map[lb.Key]*lb.Spec{}
		}
		if h.claims[c.Source][c.Key] = c.Spec; c.Spec == nil {
			delete(h.claims[c.Source], c.Key)
		}
	}
	for k, raw := range entries {
		if h.entries[k] = raw; raw == nil {
			delete(h.entries, k)
		}
	}
	return h.stateFail
}

// shows lists what a host serves: "iptables 1:80 a*1 open".
func (h *host) shows() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	lines := []string{}
	for _, m := range slices.Sorted(maps.Keys(h.modes)) {
		for _, k := range slices.SortedFunc(maps.Keys(h.modes[m].kernel), lb.Key.Compare) {
			line := fmt.Sprintf("%s %s", m, showService(h.modes[m].kernel[k]))
			if h.open[k] {
				line += " open"
			}
			lines = append(lines, line)
		}
	}
	return lines
}
