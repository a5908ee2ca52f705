package iptables

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/proxiertest"
)

// layoutOne is what vipd wrote while the layout had generation 1, kept as it was:
// 40 services 10.96.0.0 to .39, port 80, each with the backend 10.0.0.1:8080.
func layoutOne(t *testing.T) (script []byte, services lb.Snapshot) {
	t.Helper()
	script, err := os.ReadFile(filepath.Join("testdata", "layout-1.rules"))
	if err != nil {
		t.Fatal(err)
	}
	e := lb.Snapshot{}.Edit()
	for i := range 40 {
		e.Put(svc(fmt.Sprintf("10.96.0.%d:80", i), "10.0.0.1:8080"))
	}
	return script, e.Snapshot()
}

// restoreEach gives a kernel the commits of a script one by one.
func restoreEach(t *testing.T, k wholeKernel, script []byte) {
	t.Helper()
	for commit := range strings.SplitAfterSeq(string(script), "COMMIT\n") {
		if commit == "" {
			continue
		}
		if err := k.Restore(t.Context(), []byte(commit)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestF143_ANewLayoutIsBuiltBesideTheOldAndSwitched(t *testing.T) {
	script, all := layoutOne(t)
	for _, limit := range []int{1, 3, commitChains} {
		h := newFakeHarness()
		k := h.kernels[netfilter.IPv4]
		restoreEach(t, k.wholeKernel, script)
		proxiertest.Expect(t, h, all)

		p := h.proxier()
		for _, f := range p.families {
			f.limit = limit
		}
		// The gate is shut: some services are known, one of them is new, one has
		// another backend, one has none any more.
		some := lb.NewSnapshot(svc("10.96.0.3:80", "10.0.0.1:8080"), svc("10.96.0.4:80", "10.0.0.2:80"), svc("10.96.0.5:80"), svc("10.97.0.1:80", "10.0.0.3:80"))
		var changing []lb.Key
		for s := range some.All() {
			changing = append(changing, s.Key)
		}
		k.watch = func() {
			for s := range all.All() {
				if got := h.Served(t, s.Key); !slices.Contains(changing, s.Key) && !sameShares(got, proxiertest.Shares(s)) {
					t.Errorf("limit %d: after a commit %s is served by %v", limit, s.Key, got)
				}
			}
		}
		if err := p.Sync(t.Context(), some, proxier.How{}); err != nil {
			t.Fatal(err)
		}
		gate := all.Edit()
		for s := range some.All() {
			gate.Put(s)
		}
		proxiertest.Expect(t, h, gate.Snapshot())
		quietlyGated(t, h, some)

		// The gate opens.
		changing = nil
		all = gate.Snapshot()
		if err := p.Sync(t.Context(), all, prune); err != nil {
			t.Fatal(err)
		}
		proxiertest.Expect(t, h, all)
		for name := range k.wholeKernel.(*fakeKernel).own {
			if kindOf(name) == older {
				t.Errorf("limit %d: chain %s is left", limit, name)
			}
		}
		quietly(t, h, p, all)
		_, all = layoutOne(t)
	}
}

// quietlyGated checks that a restart before the gate opens writes nothing.
func quietlyGated(t *testing.T, h *harness, want lb.Snapshot) {
	t.Helper()
	writes := h.Writes()
	if err := h.proxier().Sync(t.Context(), want, proxier.How{}); err != nil {
		t.Fatal(err)
	}
	if n := h.Writes() - writes; n > 0 {
		t.Errorf("a restart before the gate opens makes %d writes", n)
	}
}

func TestF143_KindsAreToldByGeneration(t *testing.T) {
	hash := strings.Repeat("A7", hashLength/2)
	for name, want := range map[string]kind{
		"VIPD-SVC": skeleton, "VIPD-2-DISP": node, "VIPD-2-T-" + hash: node, "VIPD-2-" + hash: service, "VIPD-2-W-" + hash: service,
		"VIPD-DISP": older, "VIPD-T-" + hash: older, "VIPD-" + hash: older, "VIPD-W-" + hash: older,
		"VIPD-3-DISP": foreign, "VIPD-3-" + hash: foreign, "VIPD-3-T-" + hash: foreign, "VIPD-IN": foreign, "VIPD-POST": foreign,
		"DOCKER": foreign, "VIPD-2-X-" + hash: foreign,
	} {
		if got := kindOf(name); got != want {
			t.Errorf("%s is taken for kind %d, want %d", name, got, want)
		}
	}
}
