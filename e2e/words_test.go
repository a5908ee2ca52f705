//go:build kernel

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
	"vipd/reconciler"
)

// dropped asks once and wants no answer at all, not even a refusal.
func (w *world) dropped(from *kerneltest.Host, network string, target netip.AddrPort) {
	w.t.Helper()
	a, err := loss.Request{In: from.Do, Network: network, Target: target, Deadline: 300 * time.Millisecond}.Ask(w.t.Context())
	if loss.ClassOf(err) != loss.Timeout {
		w.t.Fatalf("%s asks %s/%s: want no answer; %+v, %v", from.Name, target, network, a, err)
	}
}

// stuck asks several times and wants one backend each time.
func (w *world) stuck(from *kerneltest.Host, target netip.AddrPort) string {
	w.t.Helper()
	first := w.ask(from, "tcp", target).Backend
	for range 20 {
		if b := w.ask(from, "tcp", target).Backend; b != first {
			w.t.Fatalf("%s asks %s: answered by %s and then by %s", from.Name, target, first, b)
		}
	}
	return first
}

// affinityIsSwitched switches affinity on, to another time, and off again, by reloads. What is
// connected stays connected, and status and plan tell of it.
func affinityIsSwitched(w *world) {
	w.serveAll(8080)
	all := w.at(8080, 1, 2, 3)
	with := func(lines ...string) service { return service{name: "web", port: 80, more: lines, backends: all} }
	w.run(with())
	held := w.load(w.Client)
	for _, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b1", "b2", "b3")
		held.Hold(loss.Hold{Target: target, Count: 6, Every: slower(20 * time.Millisecond)})
	}
	var before []string
	for _, step := range []struct {
		word   string
		want   time.Duration
		column string
	}{{`affinity_timeout = "1h"`, time.Hour, " 1h "}, {`affinity_timeout = "90m"`, 90 * time.Minute, " 1h30m "}} {
		w.write(config(with(step.word)))
		if plan := w.must(2, "plan"); !strings.Contains(plan, "vipd-") && !strings.Contains(plan, fmt.Sprintf(" -p %.0f\n", step.want.Seconds())) {
			w.t.Errorf("the plan does not tell of %s:\n%s", step.word, plan)
		}
		w.must(0, "reload")
		w.must(0, "plan")
		s := w.await("tell", func(s reconciler.Status) bool { return true })
		if s.Services[0].Affinity != step.want {
			w.t.Errorf("status tells an affinity of %s, want %s", s.Services[0].Affinity, step.want)
		}
		if out := w.must(0, "status"); !strings.Contains(out, step.column) {
			w.t.Errorf("status does not show %q:\n%s", step.column, out)
		}
		var now []string
		for _, target := range targets(80) {
			now = append(now, w.stuck(w.Client, target))
		}
		if before != nil && !slices.Equal(now, before) {
			w.t.Errorf("with %s the client went from %v to %v", step.word, before, now)
		}
		before = now
	}
	w.change(with())
	for _, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b1", "b2", "b3")
	}
	lossless(w.t, "connections held meanwhile", held.Stop())
}

// rangesChange puts client ranges in force, changes and removes them by reloads:
// they count for both families, status and plan tell of them, and what is connected
// stays connected.
func rangesChange(w *world) {
	w.serveAll(8080)
	with := func(lines ...string) service {
		return service{name: "web", port: 80, more: lines, backends: w.at(8080, 1, 2)}
	}
	w.run(with())
	held := w.load(w.Client)
	for _, target := range targets(80) {
		held.Hold(loss.Hold{Target: target, Count: 6, Every: slower(20 * time.Millisecond)})
	}
	const theClient, others = `allow = ["10.1.0.0/24", "fd00:1::/64"]`, `allow = ["198.51.100.0/24", "203.0.113.0/24", "2001:db8:1::/48"]`

	w.write(config(with(others)))
	if plan := w.must(2, "plan"); !strings.Contains(plan, "198.51.100.0/24") {
		w.t.Errorf("the plan does not tell of the range:\n%s", plan)
	}
	w.must(0, "reload")
	w.must(0, "plan")
	for _, target := range targets(80) {
		w.dropped(w.Client, "tcp", target)
	}
	if out := w.must(0, "status", "192.0.2.10:80"); !strings.Contains(out, "2 ranges") || !strings.Contains(out, "  203.0.113.0/24\n") {
		w.t.Errorf("status does not tell the ranges:\n%s", out)
	}
	if out := w.must(0, "explain", "192.0.2.10:80"); !strings.Contains(out, "clients: 198.51.100.0/24, 203.0.113.0/24; others get no answer") {
		w.t.Errorf("explain says\n%s", out)
	}
	if out := w.must(1, "explain", "192.0.2.10:81"); !strings.Contains(out, "no service uses this port") {
		w.t.Errorf("explain of a port without a service says\n%s", out)
	}
	if out := w.must(1, "explain", "192.0.2.77:80"); !strings.Contains(out, "no VIP of vipd") {
		w.t.Errorf("explain of another address says\n%s", out)
	}
	s := w.await("tell", func(s reconciler.Status) bool { return true })
	if got := s.Services[1].Clients; len(got) != 1 || got[0] != netip.MustParsePrefix("2001:db8:1::/48") {
		w.t.Errorf("status tells %v of %s", got, s.Services[1].Key)
	}

	w.change(with(theClient))
	for _, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b1", "b2")
	}
	w.change(with(others))
	for _, target := range targets(80) {
		w.dropped(w.Client, "tcp", target)
	}
	w.kill() // a start from the state of the last run keeps the door as it was
	w.start()
	for _, target := range targets(80) {
		w.dropped(w.Client, "tcp", target)
	}
	w.change(with())
	for _, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b1", "b2")
	}
	lossless(w.t, "connections held meanwhile", held.Stop())
}

// TestF85_WithoutIPv6 has a host on which the services of IPv6 cannot be served. Those
// of IPv4 are, and it is told why the others are not.
func TestF85_WithoutIPv6TheServicesOfIPv4AreServed(t *testing.T) {
	for name, c := range map[string]struct {
		takeAway func(w *world)
		reason   string
	}{
		"disable_ipv6": {func(w *world) {
			w.LB.SetSysctl(w.t, "net.ipv6.conf.all.disable_ipv6", "1")
			w.LB.SetSysctl(w.t, "net.ipv6.conf.default.disable_ipv6", "1")
		}, "disable_ipv6"},
		"no_ip6tables": {hideIP6tables, "ip6tables"},
	} {
		t.Run(name, func(t *testing.T) {
			if !kerneltest.Isolate(t) {
				return
			}
			w := newWorld(t, 2)
			w.serveAll(8080)
			c.takeAway(w)
			web := service{name: "web", port: 80, backends: w.at(8080, 1)}
			w.write(config(web))
			w.begin()
			w.await("serve IPv4 and quarantine IPv6", func(s reconciler.Status) bool {
				return len(s.Services) == 2 && s.Services[0].State == "serving" &&
					s.Services[1].State == "quarantined" && strings.Contains(s.Services[1].Error, c.reason)
			})
			v4 := targets(80)[0]
			w.answeredBy(w.Client, "tcp", v4, "b1")
			web.backends = w.at(8080, 2)
			w.change(web)
			w.answeredBy(w.Client, "tcp", v4, "b2")
			if out := w.must(0, "status"); !strings.Contains(out, "quarantined: web [2001:db8::10]:80/tcp: ") {
				t.Errorf("status does not tell of the quarantine:\n%s", out)
			}
		})
	}
}

// hideIP6tables takes the tools of IPv6 out of the folders of tools, as this test sees
// them.
func hideIP6tables(w *world) {
	w.t.Helper()
	hidden := 0
	for i, dir := range []string{"/usr/sbin", "/usr/bin"} {
		real, fake := fmt.Sprintf("/run/real%d", i), fmt.Sprintf("/run/fake%d", i)
		names, err := os.ReadDir(dir)
		if err := errors.Join(err, os.Mkdir(real, 0o755), os.Mkdir(fake, 0o755)); err != nil {
			w.t.Fatal(err)
		}
		w.LB.Run(w.t, "mount", "--bind", dir, real)
		for _, n := range names {
			if strings.HasPrefix(n.Name(), "ip6tables") {
				hidden++
			} else if err := os.Symlink(filepath.Join(real, n.Name()), filepath.Join(fake, n.Name())); err != nil {
				w.t.Fatal(err)
			}
		}
		defer w.LB.Run(w.t, "mount", "--bind", fake, dir)
	}
	if hidden == 0 {
		w.t.Fatal("there is no ip6tables on this host")
	}
}
