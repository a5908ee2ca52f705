//go:build kernel

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
	"vipd/reconciler"
)

// converge is how long a repair may take; the goal is half a second.
const converge = 10 * time.Second

// damage is something that somebody else does to the rules under vipd.
type damage struct {
	name    string
	do      string // for sh
	culprit string // what the log says of who did it
	deadly  bool   // the anchor goes too: connections that send meanwhile may be reset
	refused bool   // the guard goes too: new connections may be refused meanwhile
}

var damages = []damage{
	{name: "F65_the_nat_table_is_flushed", do: "iptables-nft -t nat -F; ip6tables-nft -t nat -F", culprit: "tables-nft"},
	{name: "F65_the_nat_table_is_deleted", do: "nft delete table ip nat; nft delete table ip6 nat", culprit: "nft"},
	{name: "F65_all_tables_are_flushed", do: "for t in iptables-nft ip6tables-nft; do $t -t nat -F; $t -F; $t -t mangle -F; done", culprit: "tables-nft", refused: true},
	{name: "F66_one_chain_is_flushed", do: "iptables-nft -t nat -F VIPD-SVC; ip6tables-nft -t nat -F VIPD-SVC", culprit: "tables-nft"},
	{name: "F66_the_chain_of_a_service_is_flushed", do: "iptables-nft -t nat -F $(iptables-nft-save -t nat | grep -- --to-destination | head -1 | cut -d' ' -f2)", culprit: "iptables-nft"},
	{name: "B61_the_chain_of_a_service_is_renamed", do: "iptables-nft -t nat -E $(iptables-nft-save -t nat | grep -- --to-destination | head -1 | cut -d' ' -f2) MINE", culprit: "iptables-nft"},
	{name: "F66_the_guard_is_flushed", do: "iptables-nft -F VIPD-IN; ip6tables-nft -F VIPD-IN", culprit: "tables-nft"},
	{name: "F68_the_rule_set_is_flushed", do: "nft flush ruleset", culprit: "nft", deadly: true, refused: true},
	{name: "F69_firewalld_reloads", do: "for t in iptables-nft ip6tables-nft; do for n in nat filter mangle raw; do $t -t $n -F; $t -t $n -X; done; $t-restore </run/$t.old; done", culprit: "tables-nft", refused: true},
	{name: "B61_a_jump_is_removed", do: "iptables-nft -t nat -D PREROUTING 1; ip6tables-nft -t nat -D PREROUTING 1", culprit: "tables-nft"},
	{name: "B61_a_jump_is_displaced", do: "iptables-nft -t nat -I PREROUTING 1 -p tcp --dport 9 -j ACCEPT; ip6tables-nft -I INPUT 1 -p tcp --dport 9 -j DROP", culprit: "tables-nft"},
	{name: "B61_the_anchor_is_deleted", do: "nft delete table ip vipd-anchor; nft delete table ip6 vipd-anchor", culprit: "nft"},
	{name: "B61_a_set_is_flushed", do: "ipset flush vipd-vip4; ipset flush vipd-vip6", refused: true},
	{name: "B61_a_rule_is_replaced", do: "iptables-nft -R VIPD-IN 2 -j RETURN", culprit: "iptables-nft"},
}

// TestDriftIsRepaired has somebody else damage the rules under a load. No resync
// comes to the rescue: vipd has to be told by the kernel, put everything back, and
// say who it was. Established connections live through all of it, but for those
// that send while the rule set is flushed as a whole.
func TestDriftIsRepaired(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	for _, tool := range []string{"iptables-nft", "ip6tables-nft"} {
		w.LB.Run(t, tool, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "7", "-j", "ACCEPT")
		w.LB.Run(t, tool, "-A", "INPUT", "-p", "tcp", "--dport", "7", "-j", "DROP")
		w.LB.Run(t, "sh", "-c", tool+"-save >/run/"+tool+".old")
	}
	w.write(calm(config(
		service{name: "web", port: 80, backends: w.at(8080, 1, 2)},
		service{name: "never", port: 81, more: []string{`masquerade = "never"`}, backends: w.at(8080, 1)},
		service{name: "dns", port: 53, protocol: "udp", backends: w.at(8080, 1, 2)})))
	w.start()
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) { w.suffers(t, d) })
	}
}

// TestDriftIsRepairedWithTheLegacyBackend shows what differs there: the kernel tells
// nothing, so vipd looks once a second, nobody is named, and there is no anchor.
// Connections live if some rule that uses conntrack stays.
func TestDriftIsRepairedWithTheLegacyBackend(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	w.write(strings.Replace(calm(config(
		service{name: "web", port: 80, backends: w.at(8080, 1, 2)},
		service{name: "never", port: 81, more: []string{`masquerade = "never"`}, backends: w.at(8080, 1)},
		service{name: "dns", port: 53, protocol: "udp", backends: w.at(8080, 1, 2)})), "[proxy]", "[proxy]\niptables_backend = \"legacy\"", 1))
	w.start()
	for _, d := range []damage{
		{name: "F65_the_nat_table_is_flushed", do: "iptables-legacy -t nat -F; ip6tables-legacy -t nat -F"},
		{name: "F65_all_tables_are_flushed", do: "for t in iptables-legacy ip6tables-legacy; do $t -t nat -F; $t -F; $t -t mangle -F; done", deadly: true, refused: true},
		{name: "F66_one_chain_is_flushed", do: "iptables-legacy -t nat -F VIPD-SVC; ip6tables-legacy -t nat -F VIPD-SVC"},
		{name: "B61_a_jump_is_removed", do: "iptables-legacy -t nat -D PREROUTING 1; ip6tables-legacy -t nat -D PREROUTING 1"},
		{name: "B61_a_jump_is_displaced", do: "iptables-legacy -t nat -I PREROUTING 1 -p tcp --dport 9 -j ACCEPT"},
	} {
		t.Run(d.name, func(t *testing.T) { w.suffers(t, d) })
	}
}

// suffers does a damage and judges what became of it.
func (w *world) suffers(t *testing.T, d damage) {
	whole, told := w.kernelState(), w.logged()
	busy, idle, fresh := w.load(w.Client), w.load(w.Client), w.load(w.Client)
	for i, target := range targets(80) {
		for _, held := range []loss.Hold{{Target: target, Count: 3}, {Target: targets(81)[i], Count: 3}} {
			idle.Hold(held)
			held.Every = 10 * time.Millisecond
			busy.Hold(held)
		}
		busy.Send(loss.Flows{Target: targets(53)[i], Count: 3, Every: 10 * time.Millisecond})
		fresh.Connect(loss.Connections{Target: target, Rate: 50})
	}
	w.eventually("the flows run", func() bool { return busy.Report().Datagrams.Classes[loss.OK] > 100 })
	w.LB.Run(t, "sh", "-c", d.do)
	began := time.Now()
	w.meanwhile()
	w.asBefore(t, whole)
	t.Logf("everything was back after at most %s", time.Since(began).Round(time.Millisecond))
	for i, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b1", "b2")
		took := w.eventually("a flow that began meanwhile is answered", func() bool { return strings.HasPrefix(w.flow(targets(53)[i]), "b") })
		t.Logf("a flow that began meanwhile was answered after %s more", took.Round(time.Millisecond))
	}
	if d.culprit != "" && !strings.Contains(w.logged()[len(told):], d.culprit+" (pid ") {
		t.Errorf("the log does not say that it was %q:\n%s", d.culprit, w.logged()[len(told):])
	}
	lossless(t, "established connections that were idle meanwhile", idle.Stop())
	if report := busy.Stop(); d.deadly {
		t.Logf("established connections that were busy meanwhile:\n%s", report)
	} else {
		lossless(t, "established connections that were busy meanwhile", report)
	}
	report := fresh.Stop()
	t.Logf("new connections:\n%s", report)
	if n := report.Connections.Classes[loss.Refused]; n > 0 && !d.refused {
		t.Errorf("%d new connections were refused; they were to wait for the repair", n)
	}
}

// meanwhile begins the flows that a test watches: their first packets come while
// something is missing, and go on coming, so that no entry of theirs expires.
func (w *world) meanwhile() {
	w.t.Helper()
	_, _ = w.LB.Try(w.t.Context(), "conntrack", "-D", "-p", "udp", "--sport", fmt.Sprint(sourcePort))
	_, _ = w.LB.Try(w.t.Context(), "conntrack", "-D", "-f", "ipv6", "-p", "udp", "--sport", fmt.Sprint(sourcePort))
	for range 2 {
		for _, target := range targets(53) {
			w.flow(target)
		}
	}
}

// asBefore waits until all of ours stands as it did, with the jumps before the
// rules of others.
func (w *world) asBefore(t *testing.T, whole string) {
	t.Helper()
	for end := time.Now().Add(converge); ; {
		if diff := differ(whole, w.kernelState()); diff == "" && w.jumpsLead() {
			return
		} else if time.Now().After(end) {
			t.Fatalf("not repaired within %s; the jumps lead: %t, and\n%s", converge, w.jumpsLead(), diff)
		}
	}
}

// jumpsLead tells whether the ways into our chains come before the rules of others.
func (w *world) jumpsLead() bool {
	w.t.Helper()
	for _, tool := range saves {
		foreign, table := map[string]bool{}, ""
		for line := range strings.Lines(w.LB.Run(w.t, tool)) {
			fields := strings.Fields(line)
			switch {
			case strings.HasPrefix(line, "*"):
				table = line
			case !strings.HasPrefix(line, "-A ") || strings.HasPrefix(line, "-A VIPD-"):
			case !strings.Contains(line, "VIPD-"):
				foreign[table+fields[1]] = true
			case foreign[table+fields[1]]:
				return false
			}
		}
	}
	return true
}

// logged returns what vipd has logged so far.
func (w *world) logged() string {
	w.t.Helper()
	text, err := os.ReadFile(w.log)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

// TestF69_AnOldSaveOfOurOwnRulesIsNotBelieved has somebody save the rules of vipd
// and load them after vipd has changed them: backends that have gone and services
// that are no more come back, with names and checksums that vipd made.
func TestF69_AnOldSaveOfOurOwnRulesIsNotBelieved(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	web := service{name: "web", port: 80, backends: w.at(8080, 1)}
	gone := service{name: "gone", port: 81, backends: w.at(8080, 1)}
	w.write(calm(config(web, gone)))
	w.start()
	save := "for t in iptables-nft ip6tables-nft; do $t-save >/run/$t.old; done"
	restore := "for t in iptables-nft ip6tables-nft; do $t-restore %s </run/$t.old; done"
	w.LB.Run(t, "sh", "-c", save)
	web.backends = w.at(8080, 2)
	w.reload(calm(config(web, service{name: "come", port: 82, backends: w.at(8080, 2)})))
	w.await("rest", func(s reconciler.Status) bool { return idle(s) && len(s.Services) == 4 })
	whole := w.kernelState()
	for _, flags := range []string{"", "--noflush"} {
		w.LB.Run(t, "sh", "-c", fmt.Sprintf(restore, flags))
		began := time.Now()
		w.asBefore(t, whole)
		t.Logf("restored with %q: everything was back after at most %s", flags, time.Since(began).Round(time.Millisecond))
		for i, target := range targets(80) {
			w.answeredBy(w.Client, "tcp", target, "b2")
			w.refused(w.Client, "tcp", targets(81)[i])
			w.answeredBy(w.Client, "tcp", targets(82)[i], "b2")
		}
	}
}
