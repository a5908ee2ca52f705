package iptables

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier/proxiertest"
)

// lineWith returns the first line of a script that holds something, as iptables-restore
// names it.
func lineWith(something string) func(script string) string {
	return func(script string) string {
		for line := range strings.Lines(script) {
			if strings.Contains(line, something) {
				return strings.TrimSuffix(line, "\n")
			}
		}
		return ""
	}
}

// guilty returns services of which some, evenly among them, are refused.
func guilty(t *testing.T, n, bad int) (all lb.Snapshot, refused []lb.Key) {
	t.Helper()
	e := lb.Snapshot{}.Edit()
	for i := range n {
		s := svc(fmt.Sprintf("10.96.%d.%d:80", i/250, i%250), fmt.Sprintf("10.0.0.%d:80", 1+i%250))
		if i*bad/n != (i+1)*bad/n {
			s = svc(fmt.Sprintf("10.96.%d.%d:80", i/250, i%250), poison+"0.1:80")
			refused = append(refused, s.Key)
		}
		e.Put(s)
	}
	if len(refused) != bad {
		t.Fatalf("%d are refused, want %d", len(refused), bad)
	}
	return e.Snapshot(), refused
}

// The line that the tool names leads to the guilty: two tries for each. A tool that
// names none, or lines of the innocent, costs more tries, and blames nobody else.
func TestB59_F73_GuiltyServicesAreFoundByTheLineThatIsNamed(t *testing.T) {
	const n = 1000
	names := map[string]func(script string) string{
		"the line":                   lineWith(poison),
		"the chain":                  func(s string) string { return ":" + strings.Fields(lineWith(poison)(s))[1] + " - [0:0]" },
		"none":                       nil,
		"the last line":              lineWith("COMMIT"),
		"a line of an innocent":      lineWith("-A " + layout),
		"a line of the tree":         lineWith(":" + prefixNode),
		"a line of no script at all": func(string) string { return "-A" },
	}
	for name, named := range names {
		honest := name == "the line" || name == "the chain"
		for _, bad := range []int{1, 10, 100} {
			if !honest && bad != 10 {
				continue
			}
			h := newFakeHarness()
			k := h.kernels[netfilter.IPv4]
			k.refuse, k.names = lineRefused, named
			p := h.proxier()
			want, keys := guilty(t, n, bad)
			onlyFailed(t, name, p.Sync(t.Context(), want, prune), keys...)
			t.Logf("the tool names %s, %d guilty of %d: %d tries, %d commits", name, bad, n, k.refused+len(k.scripts), len(k.scripts))
			if honest && k.refused+len(k.scripts) > 2*bad+2+n/100 {
				t.Errorf("%d guilty: %d tries", bad, k.refused+len(k.scripts))
			}
			good := want.Edit()
			for _, key := range keys {
				good.Delete(key)
			}
			proxiertest.Expect(t, h, good.Snapshot(), keys...)
		}
	}
}

// lineRefused refuses a script with a rule to a backend that the test names poison.
func lineRefused(script string) bool { return strings.Contains(script, poison) }

// whim is a tool that names the line that is refused, or any line, or none.
func whim(rng *rand.Rand, bad func(line string) bool) func(script string) string {
	return func(script string) string {
		lines := strings.Split(strings.TrimSuffix(script, "\n"), "\n")
		switch rng.IntN(4) {
		case 0:
			return ""
		case 1:
			return lines[rng.IntN(len(lines))]
		}
		for _, line := range lines {
			if bad(line) {
				return line
			}
		}
		return ""
	}
}
