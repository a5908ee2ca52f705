package reconciler

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"vipd/desired"
	"vipd/discovery"
	"vipd/internal/latest"
	"vipd/lb"
	"vipd/lb/lbtest"
	"vipd/proxier"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ipt  = lb.IPTables
	ipvs = lb.IPVS
)

var settings = Settings{
	MinSyncPeriod: time.Second, SyncPeriod: 30 * time.Second, StartupTimeout: 10 * time.Second, Mode: ipt,
	Allowed: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.0/15")},
}

// world is a host and a Reconciler that can be stopped and started on it.
type world struct {
	*host
	r       *Reconciler
	views   *latest.Cell[*discovery.View]
	view    *discovery.View
	watches map[lb.Mode]proxier.Proxier // in place of a mode of the host
	stop    func()
	s       Settings
	diary   diary
}

// diary is a log that is read while it is written.
type diary struct {
	mu   sync.Mutex
	text strings.Builder
}

func (d *diary) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.Write(b)
}

func (d *diary) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.String()
}

// newWorld returns a world of sources that have not spoken and one mode or more.
func newWorld(t *testing.T, sources []string, modes ...lb.Mode) *world {
	if len(modes) == 0 {
		modes = []lb.Mode{ipt}
	}
	w := &world{host: newHost(t, modes...), view: &discovery.View{}, s: settings}
	for _, name := range sources {
		w.view.Sources = append(w.view.Sources, discovery.SourceView{Name: name})
	}
	w.views = latest.New(w.view)
	t.Cleanup(func() { w.kill() })
	return w
}

// says has the first source state services.
func (w *world) says(specs ...*lb.Spec) { w.t.Helper(); w.sourceSays(w.view.Sources[0].Name, specs...) }

func (w *world) sourceSays(name string, specs ...*lb.Spec) {
	w.changeView(name, func(s *discovery.SourceView) {
		s.Services, s.Spoken = slices.Clone(specs), true
		lb.SortSpecs(s.Services)
	})
}

func (w *world) changeView(name string, f func(*discovery.SourceView)) {
	next := &discovery.View{Seq: w.view.Seq + 1, Sources: slices.Clone(w.view.Sources)}
	for i := range next.Sources {
		if next.Sources[i].Name == name {
			f(&next.Sources[i])
		}
	}
	w.view = next
	w.views.Set(next)
}

// start starts a Reconciler from what the host's state/ holds.
func (w *world) start() {
	w.t.Helper()
	o := w.options()
	w.r = New(o)
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { w.r.Run(ctx) })
	w.stop = func() { cancel(); done.Wait() }
	synctest.Wait()
}

func (w *world) options() Options {
	w.t.Helper()
	var accepted []desired.Source
	restored := false
	for _, name := range slices.Sorted(maps.Keys(w.claims)) {
		specs := slices.Collect(maps.Values(w.claims[name]))
		lb.SortSpecs(specs)
		accepted = append(accepted, desired.Source{Name: name, Services: specs})
		restored = restored || len(specs) > 0
	}
	memo, err := desired.Restore(w.entries, accepted, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	proxiers := map[lb.Mode]proxier.Proxier{}
	for name, m := range w.modes {
		proxiers[name] = m
	}
	maps.Copy(proxiers, w.watches)
	return Options{
		Settings: w.s, Views: w.views, Memo: memo, Restored: restored, Door: fakeDoor{w.host},
		Proxiers: proxiers, Recorder: w.host, Log: slog.New(slog.NewTextHandler(&w.diary, nil)),
	}
}

// kill ends the Reconciler. What the host has stays.
func (w *world) kill() {
	if w.stop != nil {
		w.stop()
		w.stop = nil
	}
}

// restart replaces the Reconciler. The sources have not spoken to it; their seeds
// are served.
func (w *world) restart() {
	w.t.Helper()
	w.kill()
	next := &discovery.View{Sources: slices.Clone(w.view.Sources)}
	for i, s := range next.Sources {
		specs := slices.Collect(maps.Values(w.claims[s.Name]))
		lb.SortSpecs(specs)
		next.Sources[i] = discovery.SourceView{Name: s.Name, Services: specs}
	}
	w.view, w.views = next, latest.New(next)
	w.start()
}

// wait lets time run.
func (w *world) wait(d time.Duration) { time.Sleep(d); synctest.Wait() }

// settle lets time run past a pass.
func (w *world) pass() { w.wait(w.s.MinSyncPeriod) }

func (w *world) wants(what string, lines ...string) {
	w.t.Helper()
	synctest.Wait()
	if got := w.shows(); !slices.Equal(got, lines) {
		w.t.Fatalf("%s: the host has\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(lines, "\n  "))
	}
}

func (w *world) wantsCalls(what, calls string) {
	w.t.Helper()
	synctest.Wait()
	if got := w.calls(); got != calls {
		w.t.Fatalf("%s: called %q, want %q", what, got, calls)
	}
}

func (w *world) wantsWrites(what string, n int) {
	w.t.Helper()
	synctest.Wait()
	if got := w.written(); got != n {
		w.t.Fatalf("%s: %d kernel writes, want %d", what, got, n)
	}
}

// state returns the state of a service in Status, and its error.
func (w *world) state(text string) string {
	w.t.Helper()
	var states []string
	for _, s := range w.r.Status().Services {
		if s.Key == svc(text).Key {
			states = append(states, strings.TrimSpace(fmt.Sprintf("%s %s %s", s.Mode, s.State, s.Error)))
		}
	}
	return strings.Join(states, ", ")
}

func svc(text string) *lb.Spec { return lbtest.Spec(text) }

func key(text string) lb.Key { return svc(text).Key }

func inMode(s *lb.Spec, m lb.Mode) *lb.Spec {
	c := *s
	c.Mode = m
	return &c
}

func showService(svc *lb.Service) string {
	line := strings.TrimPrefix(strings.TrimSuffix(svc.Key.String(), "/tcp"), "192.0.2.")
	for _, b := range svc.Backends {
		name := string(rune('a' + b.Addr.Addr().As4()[3] - 1))
		if b.Draining {
			line += " " + name + "*drain"
		} else {
			line += fmt.Sprintf(" %s*%d", name, b.Weight)
		}
	}
	return line
}
