package admin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"vipd/config"
	"vipd/desired"
	"vipd/lb"
	"vipd/proxier"
	"vipd/reconciler"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted answers as it is told to.
type scripted struct {
	status  reconciler.Status
	reload  error
	changes []proxier.Change
	planned []config.File
}

func (s *scripted) Status(context.Context) (reconciler.Status, iter.Seq[reconciler.ServiceStatus]) {
	return s.status, slices.Values(s.status.Services)
}
func (s *scripted) Reload(context.Context) error { return s.reload }
func (s *scripted) Plan(_ context.Context, files []config.File) (Plan, error) {
	s.planned = files
	return NewPlan(reconciler.Planned{Changes: s.changes}), s.reload
}

// serve runs a server for d until the test ends, and returns a client of it.
func serve(t *testing.T, path string, d Daemon) *Client {
	t.Helper()
	s, err := Listen(path, d, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there after Serve: %v", err)
		}
	})
	return NewClient(path)
}

func TestRoundTrips(t *testing.T) {
	d := &scripted{
		status:  reconciler.Status{Mode: "iptables", Ready: true, Findings: []string{"a finding"}},
		changes: []proxier.Change{{Op: proxier.Add, Object: "VIP 192.0.2.10", Detail: "address"}},
	}
	c := serve(t, filepath.Join(t.TempDir(), "run", "vipd.sock"), d)

	s, err := c.Status(t.Context())
	if err != nil || s.Mode != "iptables" || !s.Ready || len(s.Findings) != 1 {
		t.Errorf("Status = %+v, %v", s, err)
	}
	if err := c.Reload(t.Context()); err != nil {
		t.Errorf("Reload: %v", err)
	}
	files := []config.File{{Name: "vipd.toml", Data: []byte("x = 1\n")}}
	plan, err := c.Plan(t.Context(), files)
	if err != nil || len(plan.Changes) != 1 || plan.Changes[0] != d.changes[0] {
		t.Errorf("Plan = %+v, %v", plan, err)
	}
	if len(d.planned) != 1 || string(d.planned[0].Data) != "x = 1\n" {
		t.Errorf("the daemon was sent %+v", d.planned)
	}
}

// TestStatusIsWrittenInParts compares with what it would be in one piece.
func TestStatusIsWrittenInParts(t *testing.T) {
	d := &scripted{}
	c := serve(t, filepath.Join(t.TempDir(), "vipd.sock"), d)
	for n := range 3 {
		d.status = reconciler.Status{
			Sources: []reconciler.SourceStatus{{Name: `"services":[]`, Services: 7}}, Findings: []string{`"services":[]`},
			Services: make([]reconciler.ServiceStatus, n),
		}
		for i := range d.status.Services {
			s := &d.status.Services[i]
			s.Name, s.State, s.Backends = fmt.Sprint("s", i), "serving", []desired.Backend{{Weight: 1, State: "active"}}
			s.Key = lb.Key{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Port: 80, Protocol: lb.TCP}
			s.Backends[0].Addr = s.Key.AddrPort()
		}
		got, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d.status, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
			t.Errorf("with %d services (-sent +got):\n%s", n, diff)
		}
	}
}

func TestErrorsOfTheDaemonReachTheClientWhole(t *testing.T) {
	d := &scripted{reload: errors.New("vipd.toml:3:1: unknown key\nvipd.toml:9:5: bad port")}
	c := serve(t, filepath.Join(t.TempDir(), "vipd.sock"), d)
	if err := c.Reload(t.Context()); err == nil || err.Error() != d.reload.Error() {
		t.Errorf("Reload: %v, want %v", err, d.reload)
	}
	if _, err := c.Plan(t.Context(), nil); err == nil || err.Error() != d.reload.Error() {
		t.Errorf("Plan: %v, want %v", err, d.reload)
	}
}

func TestNobodyThereIsSaidSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vipd.sock")
	if _, err := NewClient(path).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a socket: %v, want ErrNotRunning", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(path).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("with the socket of a dead vipd: %v, want ErrNotRunning", err)
	}
	serve(t, path, &scripted{}) // and a new one takes its place
}

func TestSomethingElseAtThePathOfTheSocketStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vipd.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, &scripted{}, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("Listen: %v, want a refusal", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "precious" {
		t.Errorf("the file is now %q, %v", data, err)
	}
}

func TestSocketOfARunningVipdStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vipd.sock")
	c := serve(t, path, &scripted{})
	if _, err := Listen(path, &scripted{}, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "another vipd") {
		t.Errorf("Listen: %v, want a refusal", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("the first one: %v", err)
	}
}

func TestSocketIsClosedToStrangers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vipd.sock")
	serve(t, path, &scripted{})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, want 0660", info.Mode().Perm())
	}
}

func TestOnlyRootAndOurUserMayTell(t *testing.T) {
	for _, tt := range []struct {
		name string
		uid  any
		want int
	}{
		{"root", 0, http.StatusOK},
		{"our user", os.Getuid(), http.StatusOK},
		{"another user", os.Getuid() + 4711, http.StatusForbidden},
		{"a peer the kernel does not name", nil, http.StatusForbidden},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for path, want := range map[string]int{"/v1/reload": tt.want, "/v1/plan": tt.want} {
				ctx := context.WithValue(t.Context(), peerKey{}, tt.uid)
				r := httptest.NewRequestWithContext(ctx, http.MethodPost, path, strings.NewReader("{}"))
				w := httptest.NewRecorder()
				routes(&scripted{}).ServeHTTP(w, r)
				if w.Code != want {
					t.Errorf("POST %s: %d, want %d", path, w.Code, want)
				}
			}
		})
	}
}
