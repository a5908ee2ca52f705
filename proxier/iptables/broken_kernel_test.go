//go:build kernel

package iptables

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// shims are the tools of a backend behind scripts that a test can spoil.
type shims struct {
	t       *testing.T
	dir     string
	backend netfilter.Backend
}

func newShims(t *testing.T, b netfilter.Backend) *shims {
	t.Helper()
	s := &shims{t, t.TempDir(), b}
	for _, program := range []string{"iptables-", "ip6tables-"} {
		for _, part := range []string{"", "-restore", "-save"} {
			s.write(program+string(b)+part, "")
		}
	}
	return s
}

// write puts another file in the place of a tool. It does something else first, or
// in place of its work: real is the tool.
func (s *shims) write(name, fault string) {
	s.t.Helper()
	path, real := filepath.Join(s.dir, name), "/usr/sbin/"+name
	script := fmt.Sprintf("#!/bin/sh\nreal=%s\n%s\nexec $real \"$@\"\n", real, fault)
	if err := errors.Join(os.WriteFile(path+".new", []byte(script), 0o755), os.Rename(path+".new", path)); err != nil {
		s.t.Fatal(err)
	}
}

// spoil puts a fault into every restore.
func (s *shims) spoil(fault string) {
	s.t.Helper()
	for _, program := range []string{"iptables-", "ip6tables-"} {
		s.write(program+string(s.backend)+"-restore", fault)
	}
}

func (s *shims) mend() { s.spoil("") }

// TestF73 has a tool go wrong in every way. What stands keeps standing, nobody is
// blamed for it, and the next pass with a sound tool puts everything in place.
func TestF73_AToolThatGoesWrongLeavesTheLastGoodRules(t *testing.T) {
	for _, b := range []netfilter.Backend{netfilter.NFT, netfilter.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			if kerneltest.Isolate(t) {
				breakTool(t, b)
			}
		})
	}
}

func breakTool(t *testing.T, b netfilter.Backend) {
	s := newShims(t, b)
	h := harnessWith(t, netfilter.ToolOptions{Backend: b, Dirs: []string{s.dir}, Deadline: 300 * time.Millisecond, Log: quietLog})
	p := h.proxier()
	two := func(port int) lb.Snapshot {
		return lb.NewSnapshot(svc("192.0.2.1:80", fmt.Sprintf("10.0.0.1:%d", port)), svc("[2001:db8::1]:80", fmt.Sprintf("[fd00::1]:%d", port)))
	}
	if err := p.Sync(t.Context(), two(8000), prune); err != nil {
		t.Fatal(err)
	}
	for i, fault := range []string{
		"sleep 1000",                                           // hangs
		"cat > /dev/null; sleep 1000 & wait",                   // and its child, too
		"cat > /dev/null; kill -SEGV $$",                       // dies
		"cat > /dev/null; exit 4",                              // finds no memory
		"cat > /dev/null; echo 'I am no iptables' >&2; exit 1", // is another program
		"cat > /dev/null; exit 0",                              // lies
		"$real --version; cat > /dev/null; exit 0",             // lies, and talks
	} {
		stood := h.State(t)
		want := two(8001 + i)
		s.spoil(fault)
		err := p.Sync(t.Context(), want, prune)
		if failed, _ := proxier.FailedServices(err); err == nil || len(failed) > 0 {
			t.Errorf("%s: error %v", fault, err)
		}
		if now := h.State(t); now != stood {
			t.Errorf("%s: the rules are\n%s\nwere\n%s", fault, now, stood)
		}
		s.mend()
		if err := p.Sync(t.Context(), want, prune); err != nil {
			t.Fatalf("after %s: %v", fault, err)
		}
		h.serves(t, want)
	}
	s.spoil("echo 'deprecated, and the moon is full' >&2")
	if err := p.Sync(t.Context(), two(9000), prune); err != nil {
		t.Errorf("a tool that only complains: %v", err)
	}
	h.serves(t, two(9000))
}

// serves holds that exactly the services of want are served, as a new Proxier sees
// it.
func (h *harness) serves(t *testing.T, want lb.Snapshot) {
	t.Helper()
	for svc := range want.All() {
		got := h.Served(t, svc.Key)
		for _, b := range svc.Backends {
			if got[b.Addr] == 0 {
				t.Errorf("%s: %s gets nothing, %v do", svc.Key, b.Addr, got)
			}
		}
		if len(got) != len(svc.Backends) {
			t.Errorf("%s: served by %v, want %v", svc.Key, got, svc.Backends)
		}
	}
	n := h.Writes()
	if err := h.proxier().Sync(t.Context(), want, proxier.How{Prune: true, Fresh: true}); err != nil || h.Writes() != n {
		t.Errorf("a new start writes %d commits, %v", h.Writes()-n, err)
	}
}

// TestF74 kills the tool at random moments of its work. Whatever it had done, the
// services that were not to change are served at each moment, and the next pass puts
// everything in place.
func TestF74_AToolKilledInTheMidstOfItsWorkBreaksNothing(t *testing.T) {
	for _, b := range []netfilter.Backend{netfilter.NFT, netfilter.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			if kerneltest.Isolate(t) {
				killTool(t, b)
			}
		})
	}
}

func killTool(t *testing.T, b netfilter.Backend) {
	s := newShims(t, b)
	h := harnessWith(t, netfilter.ToolOptions{Backend: b, Dirs: []string{s.dir}, Log: quietLog})
	p := h.proxier()
	rng := rand.New(rand.NewPCG(74, 74))
	const untouched = 40
	edit := lb.Snapshot{}.Edit()
	for i := range untouched {
		edit.Put(svc(fmt.Sprintf("192.0.2.%d:80", i+1), "10.0.0.1:80", "10.0.0.2:80"))
	}
	fixed := edit.Snapshot()
	if err := p.Sync(t.Context(), fixed, prune); err != nil {
		t.Fatal(err)
	}
	kills, rounds := 0, 20
	if os.Getenv("VIPD_SOAK") == "1" {
		rounds = 250
	}
	for round := range rounds {
		edit := fixed.Edit() // others come, go and change around them, in many commits
		for range 30 + rng.IntN(30) {
			edit.Put(svc(fmt.Sprintf("198.51.100.%d:%d", rng.IntN(250), 80+rng.IntN(3)), fmt.Sprintf("10.0.0.3:%d", 1+rng.IntN(60000))))
		}
		want := edit.Snapshot()
		for _, f := range p.families {
			f.limit = []int{5, 20, f.kernel.CommitChains()}[rng.IntN(3)]
			if b == netfilter.Legacy {
				f.limit = max(f.limit, 20) // each commit writes the whole table
			}
		}
		s.spoil(fmt.Sprintf("exec 3<&0; $real \"$@\" <&3 & p=$!; sleep 0.00%02d; kill -9 $p 2>/dev/null; wait $p; exit $?", rng.IntN(70)))
		err := p.Sync(t.Context(), want, prune)
		if err != nil {
			kills++
			if !strings.Contains(err.Error(), "exit status 137") {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		for svc := range fixed.All() {
			if got := h.Served(t, svc.Key); len(got) != 2 {
				t.Fatalf("round %d, after a kill: %s is served by %v", round, svc.Key, got)
			}
		}
		s.mend()
		if err := p.Sync(t.Context(), want, prune); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		h.serves(t, want)
	}
	t.Logf("%d of %d passes were killed in their midst", kills, rounds)
	if kills == 0 {
		t.Error("nothing was killed")
	}
}

// TestB59 has a tool refuse the rules of some of many services: what it cannot read
// itself, and what only the kernel refuses, REJECT in table nat.
func TestB59_F73_TheToolNamesTheGuilty(t *testing.T) {
	for _, b := range []netfilter.Backend{netfilter.NFT, netfilter.Legacy} {
		for name, edit := range map[string]string{
			"by the tool":   `s/10\.66\./nonsense/`,
			"by the kernel": `s/^-A \([^ ]*\) .*10\.66\..*/-A \1 -j REJECT/`,
		} {
			t.Run(string(b)+", refused "+name, func(t *testing.T) {
				if kerneltest.Isolate(t) {
					refuseSome(t, b, edit, name == "by the tool" || b == netfilter.NFT)
				}
			})
		}
	}
}

func refuseSome(t *testing.T, b netfilter.Backend, edit string, named bool) {
	s := newShims(t, b)
	h := harnessWith(t, netfilter.ToolOptions{Backend: b, Dirs: []string{s.dir}, Log: quietLog})
	p := h.proxier()
	n, bad := 100, 5
	if !named {
		n, bad = 16, 1
	}
	want, keys := guilty(t, n, bad)
	good := want.Edit()
	for _, key := range keys {
		good.Delete(key)
	}
	s.spoil(fmt.Sprintf("runs=%s/runs; echo >> $runs; sed '%s' | $real \"$@\"; exit $?", s.dir, edit))
	onlyFailed(t, "some are refused", p.Sync(t.Context(), want, prune), keys...)
	runs, err := os.ReadFile(filepath.Join(s.dir, "runs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d guilty of %d: the tool ran %d times", bad, n, len(runs))
	if named && len(runs) > 2*bad+6 {
		t.Errorf("the tool ran %d times", len(runs))
	}
	s.mend()
	for svc := range good.Snapshot().All() {
		if got := h.Served(t, svc.Key); len(got) != 1 {
			t.Errorf("%s is served by %v", svc.Key, got)
		}
	}
}
