//lane:vm

//go:build kernel

package ipvs

import (
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/linux"
	"vipd/lb"
)

// The kernel takes the settings, in this namespace alone.
func TestSettingsOfTheKernel(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	open(t) // before that there are none
	s := NewSettings(SettingsOptions{Sysctls: linux.ProcSys(), Release: Release(), Manage: true, Log: slog.New(slog.DiscardHandler)})
	if err := s.Enforce(t.Context()); err != nil || len(s.Findings()) > 0 {
		t.Fatalf("%q, %v", s.Findings(), err)
	}
	for _, e := range s.All() {
		if v, err := linux.ProcSys().Get(strings.ReplaceAll(e.Key, ".", "/")); err != nil || e.Want != "" && v != e.Want || !e.Set && v != e.Found {
			t.Errorf("%+v: is %q, %v", e, v, err)
		}
	}
	if pending := s.Pending(); len(pending) > 0 {
		t.Errorf("left are %+v", pending)
	}
}

// Connections are counted while they are open, and what passed is summed up, unless the
// estimator is off: then sums stand still.
func TestConnectionsAreCounted(t *testing.T) {
	for name, estimation := range map[string]bool{"estimation": true, "no estimation": false} {
		t.Run(name, func(t *testing.T) {
			if kerneltest.Isolate(t) {
				countConnections(t, estimation)
			}
		})
	}
}

func countConnections(t *testing.T, estimation bool) {
	h := open(t)
	s := NewSettings(SettingsOptions{Sysctls: linux.ProcSys(), Manage: true, Estimation: estimation, Log: slog.New(slog.DiscardHandler)})
	if err := s.Enforce(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "ip", "addr", "add", "192.0.2.10/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	backend, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = backend.Close() }()
	web := Server{Key: lb.Key{Addr: netip.MustParseAddr("192.0.2.10"), Port: 80, Protocol: lb.TCP}, Scheduler: "wrr"}
	must(t, h, Command{Op: AddServer, Server: web}, Command{Op: AddDestination, Server: web,
		Destination: Destination{Addr: backend.Addr().(*net.TCPAddr).AddrPort(), Weight: 1}})
	c, err := net.DialTimeout("tcp4", "192.0.2.10:80", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) { // the kernel sums up every two seconds
		var e Entry
		if err := h.Destinations(t.Context(), web.Key, func(got Entry) error { e = got; return nil }); err != nil {
			t.Fatal(err)
		}
		if e.Active != 1 || e.Inactive != 0 {
			t.Fatalf("%d active and %d inactive connections, want 1 and 0", e.Active, e.Inactive)
		}
		if !estimation && time.Since(begin) > 5*time.Second {
			if e.Stats != (Stats{}) {
				t.Errorf("without an estimator: %+v", e.Stats)
			}
			return
		}
		if e.Stats.Connections == 1 && e.Stats.InPackets >= 2 && e.Stats.OutPackets >= 1 && e.Stats.InBytes >= 80 {
			if !estimation {
				t.Errorf("without an estimator: %+v", e.Stats)
			}
			t.Logf("summed up after %s: %+v", time.Since(begin).Round(100*time.Millisecond), e.Stats)
			return
		}
	}
}
