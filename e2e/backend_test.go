//go:build kernel

package e2e

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/reconciler"
)

// systemHas makes the iptables of the host that with a backend, as an administrator
// does with update-alternatives.
func (w *world) systemHas(backend string) {
	w.t.Helper()
	const at = "/run/alternatives"
	_ = exec.Command("umount", "/etc/alternatives").Run() // of the last time
	if err := os.RemoveAll(at); err != nil {
		w.t.Fatal(err)
	}
	w.LB.Run(w.t, "cp", "-a", "/etc/alternatives", at)
	for _, program := range []string{"iptables", "ip6tables"} {
		for _, part := range []string{"", "-restore", "-save"} {
			w.LB.Run(w.t, "ln", "-sf", "/usr/sbin/"+program+"-"+backend+part, at+"/"+program+part)
		}
	}
	w.LB.Run(w.t, "mount", "--bind", at, "/etc/alternatives")
}

// ours counts the lines of ours in what a tool saves.
func (w *world) ours(backend string) (n int) {
	w.t.Helper()
	for _, program := range []string{"iptables-", "ip6tables-"} {
		n += strings.Count(w.LB.Run(w.t, program+backend+"-save"), "VIPD-")
	}
	return n
}

func TestB68_F72_RulesOfOursInBothBackendsAreRefused(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	w.LB.Run(t, "iptables-legacy", "-A", "INPUT", "-p", "udp", "--dport", "9", "-j", "DROP")
	before := w.LB.Run(t, "iptables-legacy-save", "-t", "filter")
	web := service{name: "web", port: 80, backends: w.at(8080, 1)}
	w.run(web)
	s, err := w.status()
	if err != nil || s.IPTables.Backend != "nft" || !strings.Contains(strings.Join(s.Findings, "\n"), "the legacy one (IPv4 filter)") {
		t.Errorf("status %+v, findings %q, %v", s.IPTables, s.Findings, err)
	}

	w.LB.Run(t, "ip6tables-legacy", "-t", "nat", "-N", "VIPD-SVC")
	want := []string{"the nft backend", "the legacy backend", "IPv6 nat", `"vipd cleanup"`}
	says := func(where, text string) {
		t.Helper()
		for _, part := range want {
			if !strings.Contains(text, part) {
				t.Errorf("%s does not say %q:\n%s", where, part, text)
			}
		}
	}
	w.write(config(service{name: "web", port: 80, backends: w.at(8080, 2)}))
	says("reload", w.must(1, "reload"))
	says("plan", w.must(1, "plan"))
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b1")
	if s, err = w.status(); err != nil {
		t.Fatal(err)
	}
	says("status", strings.Join(s.Findings, "\n"))
	w.stop()
	says("run", w.must(1, "run"))
	says("plan", w.must(1, "plan"))
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b1")

	w.must(0, "cleanup")
	if n := w.ours("nft") + w.ours("legacy"); n > 0 {
		t.Errorf("%d lines are left after cleanup", n)
	}
	if after := w.LB.Run(t, "iptables-legacy-save", "-t", "filter"); undated(after) != undated(before) {
		t.Errorf("foreign rules are\n%s\nwere\n%s", after, before)
	}
	w.start()
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b2")
}

// undated leaves out the comments and counters of a saved table.
func undated(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			line, _, _ = strings.Cut(line, " [")
			b.WriteString(strings.TrimSpace(line) + "\n")
		}
	}
	return b.String()
}

// TestB1_B2_B64_B66 is the whole life of vipd on a host whose iptables is the legacy
// one.
//
//lane:vm
func TestB1_B2_B54_B64_B66_TheLegacyBackendServes(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	w.systemHas("legacy")
	w.run(service{name: "web", port: 80, backends: w.at(8080, 1, 2)}, service{name: "dns", port: 53, protocol: "udp", backends: w.at(8080, 1)})
	if s, err := w.status(); err != nil || s.IPTables.Backend != "legacy" {
		t.Fatalf("status %+v, %v", s.IPTables, err)
	}
	for i, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b1", "b2")
		w.answeredBy(w.LB, "tcp", target, "b1", "b2")
		w.answeredBy(w.Client, "udp", targets(53)[i], "b1")
		w.refused(w.Client, "tcp", targets(81)[i])
	}
	if n := w.ours("nft"); n > 0 {
		t.Errorf("%d lines stand in nftables", n)
	}
	w.change(service{name: "web", port: 80, backends: w.at(8080, 2)})
	w.answeredBy(w.Client, "tcp", targets(80)[1], "b2")
	w.await("remove the other service", func(s reconciler.Status) bool { return len(s.Services) == 2 && !s.Pass.Pending })

	saved := func() string {
		return undated(w.LB.Run(t, "iptables-legacy-save")) + undated(w.LB.Run(t, "ip6tables-legacy-save"))
	}
	stood := saved()
	w.stop()
	w.start()
	if now := saved(); now != stood {
		t.Errorf("after a restart the rules are\n%s\nwere\n%s", now, stood)
	}
	w.LB.Run(t, "iptables-legacy", "-t", "nat", "-F")
	t.Logf("flushed rules are back after %s", w.eventually("the rules are back", func() bool { return saved() == stood }).Round(time.Millisecond))
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b2")

	w.stop()
	w.systemHas("nft") // an upgrade of the host
	if out := w.must(1, "run"); !strings.Contains(out, `"vipd cleanup"`) {
		t.Errorf("run says\n%s", out)
	}
	w.must(0, "cleanup")
	if n := w.ours("nft") + w.ours("legacy"); n > 0 {
		t.Errorf("%d lines are left after cleanup", n)
	}
	w.start()
	if s, err := w.status(); err != nil || s.IPTables.Backend != "nft" {
		t.Errorf("status %+v, %v", s.IPTables, err)
	}
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b2")
}

func TestB62_F64_ALockedTableDelaysThePassAndStatusSaysWhoHoldsTheLock(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	w.systemHas("legacy")
	w.run(service{name: "web", port: 80, backends: w.at(8080, 1)})
	held := time.Duration(soak(5, 60)) * time.Second
	lock := w.LB.Command(t.Context(), "flock", "-x", "/run/xtables.lock", "sleep", held.String())
	if err := lock.Start(); err != nil {
		t.Fatal(err)
	}
	w.eventually("the lock is held", func() bool {
		return exec.CommandContext(t.Context(), "flock", "-n", "/run/xtables.lock", "true").Run() != nil
	})
	begin := time.Now()
	w.write(config(service{name: "web", port: 80, backends: w.at(8080, 2)}))
	w.hup()
	s := w.await("wait for the lock", func(s reconciler.Status) bool { return s.IPTables.Waiting != "" })
	t.Logf("seen after %s: waits for %s", time.Since(begin).Round(time.Millisecond), s.IPTables.Waiting)
	if s.Ready || !strings.Contains(s.IPTables.Waiting, "flock (pid ") || !strings.Contains(strings.Join(s.Findings, "\n"), s.IPTables.Waiting) {
		t.Errorf("ready %v, waits for %q, findings %q", s.Ready, s.IPTables.Waiting, s.Findings)
	}
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b1")
	if err := lock.Wait(); err != nil {
		t.Error(err)
	}
	s = w.await("be ready again", func(s reconciler.Status) bool {
		return s.Ready && !s.Pass.Pending && len(s.Services) == 2 && strings.Contains(s.Services[0].Backends[0].Addr.String(), w.Backends[1].Addr4.String())
	})
	t.Logf("the lock was held for %s, the pass came %s after the change; %d waits", held, time.Since(begin).Round(time.Millisecond), s.IPTables.LockWaits)
	if s.IPTables.LockWaits == 0 {
		t.Error("no wait was counted")
	}
	for _, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b2")
	}
}

// TestF79 has a kernel without the match that spreads connections.
func TestF79_AKernelThatLacksAMatchIsRefusedAtTheStart(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 1)
	for path, text := range map[string]string{
		"/run/real/tool": "",
		"/run/shim": `#!/bin/bash
name=$(basename "$0")
case "$name" in
*-restore)
	in=$(cat)
	if [[ $in == *"-m statistic"* ]]; then
		printf 'line 3: RULE_APPEND failed (No such file or directory)\n' >&2
		exit 4
	fi
	printf '%s\n' "$in" | (exec -a "$name" /run/real/tool "$@") ;;
*) exec -a "$name" /run/real/tool "$@" ;;
esac
`} {
		if err := errors.Join(os.MkdirAll("/run/real", 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	w.LB.Run(t, "cp", "/usr/sbin/xtables-nft-multi", "/run/real/tool")
	w.LB.Run(t, "mount", "--bind", "/run/shim", "/usr/sbin/xtables-nft-multi")
	w.write(config(service{name: "web", port: 80, backends: w.at(8080, 1)}))
	for _, command := range []string{"run", "plan"} {
		out := w.must(1, command)
		for _, part := range []string{"match statistic", "xt_statistic"} {
			if !strings.Contains(out, part) {
				t.Errorf("%s does not say %q:\n%s", command, part, out)
			}
		}
	}
	if state := w.kernelState(); state != "" {
		t.Errorf("a refused start has put in place\n%s", state)
	}
	w.LB.Run(t, "umount", "/usr/sbin/xtables-nft-multi")
	w.serveAll(8080)
	w.start()
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b1")
}
