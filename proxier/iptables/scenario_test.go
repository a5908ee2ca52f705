package iptables

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/proxiertest"
)

var prune = proxier.How{Prune: true}

// load returns a Proxier which serves n services, and its kernel.
func load(t *testing.T, h *harness, n int) (*Proxier, lb.Snapshot) {
	t.Helper()
	e := lb.Snapshot{}.Edit()
	for i := range n {
		e.Put(svc(fmt.Sprintf("10.96.%d.%d:80", i/250, i%250), "10.0.0.1:80", "10.0.0.2:80"))
	}
	p := h.proxier()
	if err := p.Sync(t.Context(), e.Snapshot(), prune); err != nil {
		t.Fatal(err)
	}
	return p, e.Snapshot()
}

func with(s lb.Snapshot, services ...*lb.Service) lb.Snapshot {
	e := s.Edit()
	for _, svc := range services {
		e.Put(svc)
	}
	return e.Snapshot()
}

func without(s lb.Snapshot, keys ...string) lb.Snapshot {
	e := s.Edit()
	for _, k := range keys {
		e.Delete(svc(k).Key)
	}
	return e.Snapshot()
}

// named returns the chains that a script writes or deletes.
func named(scripts []string) (names []string) {
	for _, s := range scripts {
		for line := range strings.Lines(s) {
			if name, found := strings.CutPrefix(line, ":"); found {
				names = append(names, strings.Fields(name)[0])
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func TestB55_OneChangedServiceTouchesOnlyItsOwn(t *testing.T) {
	h := newFakeHarness()
	k := h.kernels[netfilter.IPv4]
	p, all := load(t, h, 300)
	key := svc("10.96.1.7:80").Key
	for _, tc := range []struct {
		name  string
		want  lb.Snapshot
		most  int // chains named
		first bool
	}{
		{"backends", with(all, svc("10.96.1.7:80", "10.0.0.3:80")), 1, true},
		{"back", all, 1, true},
		{"removed", without(all, "10.96.1.7:80"), 16, true},
		{"added", all, 16, true},
		{"no usable backend", with(all, svc("10.96.1.7:80", "10.0.0.1:80*0")), 16, true},
		{"usable again", all, 16, true},
	} {
		k.scripts, k.reads = nil, 0
		if err := p.Sync(t.Context(), tc.want, prune); err != nil {
			t.Fatal(err)
		}
		names := named(k.scripts)
		if len(k.scripts) != 1 || len(names) > tc.most || k.reads != 0 {
			t.Errorf("%s: %d commits, %d reads, chains %v", tc.name, len(k.scripts), k.reads, names)
		}
		for _, name := range names {
			if kindOf(name) == service && name != serviceChain(key) {
				t.Errorf("%s: touches chain %s of another service", tc.name, name)
			}
		}
		proxiertest.Expect(t, h, tc.want, key)
	}
}

func TestCommitsAreBounded(t *testing.T) {
	h := newFakeHarness()
	k := h.kernels[netfilter.IPv4]
	p, _ := load(t, h, 2100)
	if err := p.Sync(t.Context(), lb.Snapshot{}, prune); err != nil {
		t.Fatal(err)
	}
	for i, s := range k.scripts {
		if n := len(named([]string{s})); n > commitChains {
			t.Errorf("commit %d names %d chains", i, n)
		}
	}
	if len(k.scripts) < 10 {
		t.Errorf("only %d commits: the test proves nothing", len(k.scripts))
	}
	if n := len(k.wholeKernel.(*fakeKernel).own); n != 0 {
		t.Errorf("%d chains are left", n)
	}
}

func TestB59_RefusedServiceIsFoundAndAllOthersAreApplied(t *testing.T) {
	for _, line := range []string{"--to-destination 10.66.", "-d 10.96.200.1/32"} {
		h := newFakeHarness()
		k := h.kernels[netfilter.IPv4]
		p, all := load(t, h, 50)
		k.refuse = func(script string) bool { return strings.Contains(script, line) }
		e := all.Edit()
		for i := range 40 {
			e.Put(svc(fmt.Sprintf("10.96.3.%d:80", i), "10.0.0.1:80"))
		}
		bad := svc("10.96.200.1:80", "10.66.0.1:80")
		e.Put(bad)
		want := e.Snapshot()
		for round := range 3 {
			k.scripts, k.reads = nil, 0
			err := p.Sync(t.Context(), want, prune)
			failed, _ := proxier.FailedServices(err)
			if len(failed) != 1 || failed[bad.Key] == nil {
				t.Fatalf("%s, round %d: %v", line, round, err)
			}
			if round > 0 && (len(k.scripts) > 0 || k.reads > 0) {
				t.Errorf("%s: what failed is tried again though nothing changed", line)
			}
			proxiertest.Expect(t, h, without(want, "10.96.200.1:80"), bad.Key)
		}
		k.refuse = nil
		if err := p.Sync(t.Context(), without(want, "10.96.200.1:80"), prune); err != nil {
			t.Fatal(err)
		}
		if err := p.Sync(t.Context(), want, prune); err != nil {
			t.Errorf("%s: it is not tried again after it was taken out: %v", line, err)
		}
		proxiertest.Expect(t, h, want)
		quietly(t, h, p, want)
	}
}

func TestB59_LastAppliedVersionStandsInPlaceOfARefusedOne(t *testing.T) {
	for _, restart := range []bool{false, true} {
		h := newFakeHarness()
		h.kernels[netfilter.IPv4].refuse = func(s string) bool { return strings.Contains(s, poison) }
		p, all := load(t, h, 20)
		if restart {
			p = h.proxier()
		}
		want := with(all, svc("10.96.0.3:80", "10.66.0.1:80"), svc("10.96.0.4:80", "10.0.0.9:80"))
		err := p.Sync(t.Context(), want, proxier.How{Prune: true, Fresh: true})
		if failed, _ := proxier.FailedServices(err); len(failed) != 1 {
			t.Fatal(err)
		}
		proxiertest.Expect(t, h, with(want, all.Get(svc("10.96.0.3:80").Key)))
	}
}

func TestInvalidServiceFailsWithoutAskingTheKernel(t *testing.T) {
	h := newFakeHarness()
	p, all := load(t, h, 3)
	bad := svc("10.96.0.9:80", "10.0.0.1:80")
	bad.Scheduler = "lc"
	writes := h.Writes()
	err := p.Sync(t.Context(), with(all, bad), prune)
	if failed, only := proxier.FailedServices(err); !only || len(failed) != 1 || failed[bad.Key] == nil || h.Writes() != writes {
		t.Errorf("error %v, %d writes", err, h.Writes()-writes)
	}
}

func TestB58_AfterAnErrorEverythingIsReadAgain(t *testing.T) {
	h := newFakeHarness()
	k := h.kernels[netfilter.IPv4]
	p, all := load(t, h, 20)
	want := with(all, svc("10.96.0.3:80", "10.0.0.7:80"), svc("10.96.7.7:80", "10.0.0.7:80"))
	k.after = func(string) error { return errKilled }
	if err := p.Sync(t.Context(), want, prune); err == nil {
		t.Fatal("no error")
	}
	k.after, k.reads = nil, 0
	if err := p.Sync(t.Context(), want, prune); err != nil {
		t.Fatal(err)
	}
	if k.reads != 1 {
		t.Errorf("%d reads after an error, want 1", k.reads)
	}
	proxiertest.Expect(t, h, want)
	quietly(t, h, p, want)
}

func TestFlushedTableBlamesNoService(t *testing.T) {
	h := newFakeHarness()
	p, all := load(t, h, 100)
	h.kernels[netfilter.IPv4].wholeKernel = newFakeKernel() // nft flush ruleset
	want := with(all, svc("10.96.0.3:80", "10.0.0.7:80"), svc("10.96.7.7:80", "10.0.0.7:80"))
	if err := p.Sync(t.Context(), want, prune); err != nil {
		t.Fatal(err)
	}
	proxiertest.Expect(t, h, want)
}

func quietly(t *testing.T, h *harness, p *Proxier, want lb.Snapshot) {
	t.Helper()
	for _, how := range []proxier.How{prune, {Prune: true, Fresh: true}} {
		writes := h.Writes()
		if err := p.Sync(t.Context(), want, how); err != nil {
			t.Fatal(err)
		}
		if n := h.Writes() - writes; n > 0 {
			t.Errorf("a Sync with nothing to do makes %d writes", n)
		}
	}
}

func TestB61_EachObjectOfOursIsRepairedAlone(t *testing.T) {
	for _, blind := range []bool{false, true} {
		repairedAlone(t, blind)
	}
}

func repairedAlone(t *testing.T, blind bool) {
	h := newFakeHarness()
	k := h.kernels[netfilter.IPv4]
	fake := k.wholeKernel.(*fakeKernel)
	fake.blind = blind
	p, all := load(t, h, 100)
	quietly(t, h, p, all)
	sound := h.State(t)
	for _, chain := range slices.Sorted(maps.Keys(fake.own)) {
		for name, harm := range map[string]func(rules []string) []string{
			"flushed":  func([]string) []string { return nil },
			"cut":      func(rules []string) []string { return rules[1:] },
			"extended": func(rules []string) []string { return append([]string{"-j RETURN"}, rules...) },
			"replaced": func(rules []string) []string { return append([]string{"-j RETURN"}, rules[1:]...) },
		} {
			rules := slices.Clone(fake.own[chain])
			fake.own[chain] = harm(rules)
			fake.harmed(chain)
			k.scripts = nil
			if err := p.Sync(t.Context(), all, proxier.How{Prune: true, Fresh: true}); err != nil {
				t.Fatal(err)
			}
			if names := named(k.scripts); !slices.Equal(names, []string{chain}) {
				t.Errorf("%s %s: repair touches %v", chain, name, names)
			}
			if h.State(t) != sound {
				t.Fatalf("%s %s: not repaired", chain, name)
			}
			quietly(t, h, p, all)
		}
	}
	for _, base := range []string{"PREROUTING", "OUTPUT"} {
		rules := fake.base[base]
		for name, harmed := range map[string][]string{"removed": nil, "behind": append([]string{"-j ACCEPT"}, rules...)} {
			fake.base[base] = harmed
			fake.harmed(base)
			if err := p.Sync(t.Context(), all, proxier.How{Prune: true, Fresh: true}); err != nil {
				t.Fatal(err)
			}
			if got := fake.base[base]; got[0] != rules[0] || name == "behind" && got[1] != "-j ACCEPT" || len(got) != max(1, len(harmed)) {
				t.Errorf("jump in %s %s: repaired to %q", base, name, got)
			}
			fake.base[base] = rules
			fake.harmed(base)
		}
	}
}

func TestB60_ForeignRulesAreNeverTouched(t *testing.T) {
	h := newFakeHarness()
	k := h.kernels[netfilter.IPv4]
	const foreign = "*nat\n:DOCKER - [0:0]\n:VIPD-POST - [0:0]\n:VIPD-MASQ - [0:0]\n-A VIPD-MASQ -j RETURN\n-A DOCKER -p tcp -j ACCEPT\n" +
		"-I PREROUTING 1 -j DOCKER\n-I POSTROUTING 1 -j VIPD-POST\nCOMMIT\n"
	if err := k.wholeKernel.Restore(t.Context(), []byte(foreign)); err != nil {
		t.Fatal(err)
	}
	before := dump(t, k.wholeKernel)
	p, all := load(t, h, 30)
	if err := p.Sync(t.Context(), without(all, "10.96.0.3:80"), proxier.How{Prune: true, Fresh: true}); err != nil {
		t.Fatal(err)
	}
	for _, s := range k.scripts {
		for _, name := range []string{"DOCKER", "VIPD-POST", "VIPD-MASQ", "POSTROUTING"} {
			if strings.Contains(s, name) {
				t.Errorf("%s is in a script of ours", name)
			}
		}
	}
	if err := p.Sync(t.Context(), lb.Snapshot{}, prune); err != nil {
		t.Fatal(err)
	}
	if now := dump(t, k.wholeKernel); now != before {
		t.Errorf("foreign state was\n%s\nis\n%s", before, now)
	}
}

func TestForeignRuleThatLeadsToOurChainIsNamed(t *testing.T) {
	h := newFakeHarness()
	k := h.kernels[netfilter.IPv4]
	p, all := load(t, h, 10)
	chain := serviceChain(svc("10.96.0.3:80").Key)
	if err := k.wholeKernel.Restore(t.Context(), []byte("*nat\n-I INPUT 1 -j "+chain+"\nCOMMIT\n")); err != nil {
		t.Fatal(err)
	}
	want := without(all, "10.96.0.3:80", "10.96.0.4:80")
	err := p.Sync(t.Context(), want, prune)
	if err == nil || !strings.Contains(err.Error(), chain) || !strings.Contains(err.Error(), "remove the rule") {
		t.Errorf("error %v", err)
	}
	proxiertest.Expect(t, h, want, svc("10.96.0.3:80").Key, svc("10.96.0.4:80").Key)
	if _, stands := k.wholeKernel.(*fakeKernel).own[serviceChain(svc("10.96.0.4:80").Key)]; stands {
		t.Error("the other chain is left behind")
	}
}

func TestB7_FamiliesFailApart(t *testing.T) {
	four := svc("192.0.2.1:80", "10.0.0.1:80")
	six := svc("[2001:db8::1]:80", "[fd00::1]:80")
	want := lb.NewSnapshot(four, six)
	broken := &netfilter.RestoreError{Stderr: "no IPv6"}
	for name, spoil := range map[string]func(h *harness) *Proxier{
		"tool missing": func(h *harness) *Proxier {
			return newProxier(Options{Log: quietLog, Evict: h.evictor, Sets: h.sets}, map[netfilter.Family]kernel{netfilter.IPv4: h.kernels[netfilter.IPv4]},
				map[netfilter.Family]error{netfilter.IPv6: netfilter.ErrNotInstalled})
		},
		"cannot be read": func(h *harness) *Proxier {
			h.kernels[netfilter.IPv6].wholeKernel = deadKernel{errors.New("no IPv6")}
			return h.proxier()
		},
		"refuses everything": func(h *harness) *Proxier {
			h.kernels[netfilter.IPv6].refuse = func(string) bool { return broken != nil }
			return h.proxier()
		},
	} {
		h := newFakeHarness()
		p := spoil(h)
		for range 2 {
			err := p.Sync(t.Context(), want, prune)
			failed, only := proxier.FailedServices(err)
			if !only || len(failed) != 1 || failed[six.Key] == nil {
				t.Errorf("%s: %v", name, err)
			}
			if got := h.Served(t, four.Key); !sameShares(got, proxiertest.Shares(four)) {
				t.Errorf("%s: the other family is served by %v", name, got)
			}
		}
		if err := p.Sync(t.Context(), lb.NewSnapshot(four), prune); err != nil {
			t.Errorf("%s, without a service of it: %v", name, err)
		}
	}
}

func TestBothFamiliesBrokenIsNoFaultOfServices(t *testing.T) {
	h := newFakeHarness()
	for _, k := range h.kernels {
		k.wholeKernel = deadKernel{errKilled}
	}
	err := h.proxier().Sync(t.Context(), lb.NewSnapshot(svc("192.0.2.1:80", "10.0.0.1:80")), prune)
	if _, failed := proxier.FailedServices(err); failed || !errors.Is(err, errKilled) {
		t.Errorf("error %v", err)
	}
}
