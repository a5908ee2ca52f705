package iptables

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goldens are the snapshots whose rules are kept in testdata, for people to read
// and for iptables-restore to check (kernel lane).
func goldens() map[string]lb.Snapshot {
	row := lb.Snapshot{}.Edit()
	for i := range 40 {
		row.Put(svc(fmt.Sprintf("10.96.0.%d:80", i), "10.0.0.1:8080"))
	}
	ports := lb.Snapshot{}.Edit()
	for i := range 20 {
		ports.Put(svc(fmt.Sprintf("192.0.2.10:%d", 1000+i*10), "10.0.0.1:8080"))
		ports.Put(svc(fmt.Sprintf("192.0.2.10:%d/udp", 1000+i*10), "10.0.0.1:8080"))
	}
	turn := many("192.0.2.10:80", 19, 1)
	turn.Scheduler = lb.RR
	known := svc("192.0.2.10:80", "10.0.0.1:8080", "10.0.0.2:8080*2", "10.0.0.3:8080*0")
	known.Affinity = 3 * time.Hour
	known6 := many("[2001:db8::10]:80", 18, 1)
	known6.Affinity = time.Minute
	return map[string]lb.Snapshot{
		"affinity":  lb.NewSnapshot(known),
		"affinity6": lb.NewSnapshot(known6),
		"two-ports": lb.NewSnapshot(svc("192.0.2.10:80", "10.0.0.1:8080", "10.0.0.2:8080*2"), svc("192.0.2.10:53/udp", "10.0.0.3:53")),
		"sctp":      lb.NewSnapshot(svc("192.0.2.10:80/sctp", "10.0.0.1:8080", "10.0.0.2:8080"), svc("192.0.2.10:80", "10.0.0.1:80")),
		"ipv6":      lb.NewSnapshot(svc("[2001:db8::10]:80", "[fd00::1]:8080", "[fd00::2]:8080*2"), svc("[2001:db8::11]:53/udp", "[fd00::3]:53")),
		"in-turn":   lb.NewSnapshot(turn),
		"weights":   lb.NewSnapshot(many("192.0.2.10:80", 20, 1, 100, 0)),
		"tree":      row.Snapshot(),
		"tree-port": ports.Snapshot(),
	}
}

func golden(name string) string { return filepath.Join("testdata", name+".rules") }

func TestGoldenRules(t *testing.T) {
	for name, want := range goldens() {
		h := newFakeHarness()
		if err := h.proxier().Sync(t.Context(), want, prune); err != nil {
			t.Fatal(err)
		}
		var scripts []string
		for _, f := range netfilter.Families {
			scripts = append(scripts, h.kernels[f].scripts...)
		}
		compareGolden(t, golden(name), strings.Join(scripts, ""))
	}
}

func TestGoldenPlan(t *testing.T) {
	h := newFakeHarness()
	p := h.proxier()
	all := goldens()["tree"]
	if err := p.Sync(t.Context(), all, prune); err != nil {
		t.Fatal(err)
	}
	want := with(without(all, "10.96.0.3:80"),
		svc("10.96.0.4:80", "10.0.0.1:8080", "10.0.0.2:8080*3"), svc("192.0.2.1:53/udp", "10.0.0.3:53"), svc("10.96.0.7:80", "10.0.0.9:80"))
	changes, err := p.Plan(t.Context(), want, prune)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "%c %s | %s\n", c.Op, c.Object, c.Detail)
	}
	compareGolden(t, filepath.Join("testdata", "plan.txt"), b.String())
}

func compareGolden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; write it with -update", err)
	}
	if got != string(want) {
		t.Errorf("%s differs; look at the rules and write it anew with -update:\n%s", file, got)
	}
}

// TestF152_PlanIsWhatSyncDoes checks that each line which Plan adds stands after
// Sync, and each which it removes does not.
func TestF152_PlanIsWhatSyncDoes(t *testing.T) {
	h := newFakeHarness()
	p, all := load(t, h, 60)
	for _, want := range []lb.Snapshot{
		without(all, "10.96.0.3:80", "10.96.0.40:80"),
		with(all, svc("10.96.9.9:80", "10.0.0.1:1"), many("10.96.0.7:80", 40, 1, 2)),
		all, {}, all,
	} {
		before := h.State(t)
		changes, err := p.Plan(t.Context(), want, prune)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Sync(t.Context(), want, prune); err != nil {
			t.Fatal(err)
		}
		got := applyPlan(t, before, changes)
		if want := stateLines(h.State(t)); !sameLines(got, want) {
			t.Errorf("plan leads to\n%s\nSync to\n%s", keysOf(got), keysOf(want))
		}
	}
}

// stateLines counts the lines "CHAIN" and "CHAIN rule" of a dump.
func stateLines(state string) map[string]int {
	lines := map[string]int{}
	chain := ""
	for line := range strings.Lines(state) {
		line = strings.TrimSuffix(line, "\n")
		if name, found := strings.CutPrefix(line, ":"); found {
			chain = name
			lines[":"+name]++
			continue
		}
		lines[strings.TrimSpace("-A "+chain+" "+netfilter.WithoutSum(strings.TrimSpace(line)))]++
	}
	return lines
}

func applyPlan(t *testing.T, state string, changes []proxier.Change) map[string]int {
	t.Helper()
	lines := stateLines(state)
	for _, c := range changes {
		detail := c.Detail
		if rest, found := strings.CutPrefix(detail, "-A "); found {
			detail = strings.TrimSpace("-A " + netfilter.WithoutSum(rest))
		}
		if c.Op == proxier.Add {
			lines[detail]++
			continue
		}
		if lines[detail]--; lines[detail] < 0 {
			t.Errorf("the plan removes %q, which is not there", detail)
		}
	}
	return lines
}

func sameLines(a, b map[string]int) bool {
	for _, m := range []map[string]int{a, b} {
		for l := range m {
			if a[l] != b[l] {
				return false
			}
		}
	}
	return true
}

func keysOf(m map[string]int) (text string) {
	for l, n := range m {
		if n > 0 {
			text += fmt.Sprintln(n, l)
		}
	}
	return text
}
