package iptables

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/proxiertest"
)

var fresh = proxier.How{Prune: true, Fresh: true}

// flush empties the chain of a service, as somebody else.
func flush(t *testing.T, h *harness, k lb.Key) {
	t.Helper()
	chain := serviceChain(k)
	if err := h.kernels[netfilter.FamilyOf(k.Addr)].others.Restore(t.Context(), []byte("*nat\n-F "+chain+"\nCOMMIT\n")); err != nil {
		t.Fatal(err)
	}
}

// onlyFailed checks that a Sync fails for these services and no others.
func onlyFailed(t *testing.T, when string, err error, keys ...lb.Key) {
	t.Helper()
	failed, only := proxier.FailedServices(err)
	if !only || len(failed) != len(keys) {
		t.Fatalf("%s: %v", when, err)
	}
	for _, k := range keys {
		if failed[k] == nil {
			t.Errorf("%s: %s is not among the failed", when, k)
		}
	}
}

// A service that somebody damaged and whose repair is refused does not become well
// by not being looked at, and is repaired as soon as that can be done.
func TestB61_DamageThatCannotBeRepairedStaysFailed(t *testing.T) {
	h := newFakeHarness()
	k := h.kernels[netfilter.IPv4]
	p, all := load(t, h, 30)
	bad := svc("10.96.0.3:80").Key
	flush(t, h, bad)
	k.refuse = func(s string) bool { return strings.Contains(s, "-A "+serviceChain(bad)+" ") }
	onlyFailed(t, "at the repair", p.Sync(t.Context(), all, fresh), bad)
	k.reads = 0
	onlyFailed(t, "at the next pass", p.Sync(t.Context(), all, prune), bad)
	other := with(all, svc("10.96.0.4:80", "10.0.0.9:80"))
	onlyFailed(t, "at a change of another one", p.Sync(t.Context(), other, prune), bad)
	if k.reads > 0 {
		t.Errorf("what cannot be repaired costs %d reads in passes that are to read nothing", k.reads)
	}
	proxiertest.Expect(t, h, without(other, "10.96.0.3:80"))
	k.refuse = nil
	if err := p.Sync(t.Context(), other, fresh); err != nil {
		t.Fatal(err)
	}
	proxiertest.Expect(t, h, other)
	quietly(t, h, p, other)
}

// The new version of a service is refused, and so is the repair of the old one: all
// others are put in place all the same.
func TestB59_RefusedRepairBlamesNobodyElse(t *testing.T) {
	h := newFakeHarness()
	p, all := load(t, h, 30)
	bad := svc("10.96.0.3:80", "10.0.0.9:80")
	flush(t, h, bad.Key)
	h.kernels[netfilter.IPv4].refuse = func(s string) bool { return strings.Contains(s, "-A "+serviceChain(bad.Key)+" ") }
	want := with(all, bad, svc("10.96.0.4:80", "10.0.0.9:80"), svc("10.96.9.9:80", "10.0.0.9:80"))
	onlyFailed(t, "both versions refused", p.Sync(t.Context(), want, fresh), bad.Key)
	proxiertest.Expect(t, h, without(want, "10.96.0.3:80"))
	h.kernels[netfilter.IPv4].refuse = nil
	if err := p.Sync(t.Context(), all, fresh); err != nil {
		t.Fatal(err)
	}
	proxiertest.Expect(t, h, all)
}

// A new version whose sets cannot be made does not keep the old one from its repair.
func TestB61_OldVersionIsRepairedWhenTheNewOneHasNoSets(t *testing.T) {
	h := newFakeHarness()
	p, all := load(t, h, 3)
	h.sets.(*netfilter.FakeSets).Fail = func(op, _ string) error {
		if op == "create" {
			return netfilter.ErrSetType
		}
		return nil
	}
	next := withAffinity(svc("10.96.0.1:80", "10.0.0.1:80"), time.Minute)
	flush(t, h, next.Key)
	onlyFailed(t, "no sets", p.Sync(t.Context(), with(all, next), fresh), next.Key)
	proxiertest.Expect(t, h, all)
}

// A set of another type under one of our names is named, with what to do.
func TestServiceWhoseSetIsAnotherIsToldSo(t *testing.T) {
	h := newFakeHarness()
	s := withAffinity(svc("192.0.2.1:80", "10.0.0.1:80", "10.0.0.2:80"), time.Minute)
	for n := range groupSize {
		set := netfilter.Set{Name: clientSet(netfilter.IPv4, fmt.Sprint(n)), Type: netfilter.HashIP, Family: netfilter.IPv4}
		if err := h.sets.(*netfilter.FakeSets).Create(t.Context(), set); err != nil {
			t.Fatal(err)
		}
	}
	err := h.proxier().Sync(t.Context(), lb.NewSnapshot(s), prune)
	onlyFailed(t, "a set of another type", err, s.Key)
	if failed, _ := proxier.FailedServices(err); !errors.Is(failed[s.Key], netfilter.ErrSetType) {
		t.Errorf("error %v", failed[s.Key])
	}
}

// Many services go while one is refused: that is not a commit for each chain.
func TestB59_WhatGoesBesideARefusedServiceIsRemovedInFewCommits(t *testing.T) {
	h := newFakeHarness()
	k := h.kernels[netfilter.IPv4]
	p, all := load(t, h, 2000)
	e := all.Edit()
	for i := range 1900 {
		e.Delete(svc(fmt.Sprintf("10.96.%d.%d:80", i/250, i%250)).Key)
	}
	bad := svc("10.97.0.1:80", "10.66.0.1:80")
	e.Put(bad)
	k.refuse = func(s string) bool { return strings.Contains(s, poison) }
	k.scripts = nil
	onlyFailed(t, "one refused", p.Sync(t.Context(), e.Snapshot(), prune), bad.Key)
	if len(k.scripts) > 60 {
		t.Errorf("%d commits", len(k.scripts))
	}
	for i, s := range k.scripts {
		if n := len(named([]string{s})); n > commitChains {
			t.Errorf("commit %d names %d chains", i, n)
		}
	}
	e.Delete(bad.Key)
	proxiertest.Expect(t, h, e.Snapshot(), all.Get(svc("10.96.0.1:80").Key).Key)
	if n := len(k.wholeKernel.(*fakeKernel).own); n > 200 {
		t.Errorf("%d chains are left for 100 services", n)
	}
}

// A family that cannot be rid of its last services has an error, though there is no
// service left to blame.
func TestFamilyThatCannotBeClearedIsAnError(t *testing.T) {
	h := newFakeHarness()
	p := h.proxier()
	four, six := svc("192.0.2.1:80", "10.0.0.1:80"), svc("[2001:db8::1]:80", "[fd00::1]:80")
	if err := p.Sync(t.Context(), lb.NewSnapshot(four, six), prune); err != nil {
		t.Fatal(err)
	}
	h.kernels[netfilter.IPv6].before = func(string) error { return errKilled }
	if err := p.Sync(t.Context(), lb.NewSnapshot(four), prune); !errors.Is(err, errKilled) {
		t.Errorf("error %v", err)
	}
	h.kernels[netfilter.IPv6].before = nil
	if err := p.Sync(t.Context(), lb.NewSnapshot(four), prune); err != nil {
		t.Fatal(err)
	}
	proxiertest.Expect(t, h, lb.NewSnapshot(four), six.Key)
}

// After a restart every service stands in a version that is yet to be looked at;
// once it was, one that goes costs no reading of all.
func TestAfterARestartAServiceGoesWithoutAReading(t *testing.T) {
	h := newFakeHarness()
	_, all := load(t, h, 30)
	p := h.proxier()
	if err := p.Sync(t.Context(), all, prune); err != nil {
		t.Fatal(err)
	}
	k := h.kernels[netfilter.IPv4]
	k.reads = 0
	if err := p.Sync(t.Context(), without(all, "10.96.0.3:80"), prune); err != nil {
		t.Fatal(err)
	}
	if k.reads > 0 {
		t.Errorf("the table is read %d times", k.reads)
	}
	proxiertest.Expect(t, h, without(all, "10.96.0.3:80"), svc("10.96.0.3:80").Key)
}

// A version that was found at the start, and is replaced only at the second attempt,
// leaves none of its chains.
func TestChainsOfAnUnknownVersionGoWithIt(t *testing.T) {
	h := newFakeHarness()
	old := withAffinity(many("192.0.2.1:80", 40, 1), time.Minute)
	if err := h.proxier().Sync(t.Context(), lb.NewSnapshot(old), prune); err != nil {
		t.Fatal(err)
	}
	k := h.kernels[netfilter.IPv4]
	k.refuse = func(s string) bool { return strings.Contains(s, poison) }
	p := h.proxier()
	bad, next := svc("192.0.2.1:80", "10.66.0.1:80"), svc("192.0.2.1:80", "10.0.0.9:80")
	for range 3 {
		onlyFailed(t, "after a restart", p.Sync(t.Context(), lb.NewSnapshot(bad), prune), bad.Key)
		proxiertest.Expect(t, h, lb.NewSnapshot(old))
		if len(h.clientSets(t)) == 0 {
			t.Error("the sets of the version that stands are gone")
		}
	}
	if err := p.Sync(t.Context(), lb.NewSnapshot(next), prune); err != nil {
		t.Fatal(err)
	}
	proxiertest.Expect(t, h, lb.NewSnapshot(next))
	if own := k.wholeKernel.(*fakeKernel).own; len(own) != 3 || len(h.clientSets(t)) > 0 {
		t.Errorf("left: %d chains, want 3; sets %v", len(own), h.clientSets(t))
	}
}

// Versions that are refused, each with other backends, use up neither slots nor sets.
func TestRefusedVersionsKeepNoSlots(t *testing.T) {
	h := newFakeHarness()
	p := h.proxier()
	stands := withAffinity(svc("192.0.2.1:80", "10.0.0.1:80", "10.0.0.2:80"), time.Minute)
	if err := p.Sync(t.Context(), lb.NewSnapshot(stands), prune); err != nil {
		t.Fatal(err)
	}
	k := h.kernels[netfilter.IPv4]
	k.refuse = func(s string) bool { return strings.Contains(s, poison) }
	for i := range 40 {
		bad := withAffinity(svc("192.0.2.1:80", fmt.Sprintf("%s0.%d:80", poison, i), fmt.Sprintf("%s1.%d:80", poison, i)), time.Minute)
		alone := withAffinity(svc(fmt.Sprintf("192.0.2.%d:80", 2+i), fmt.Sprintf("%s0.%d:80", poison, i)), time.Minute)
		onlyFailed(t, "refused", p.Sync(t.Context(), lb.NewSnapshot(bad, alone), prune), bad.Key, alone.Key)
	}
	for _, set := range h.clientSets(t) {
		if strings.Contains(set, "-g") {
			t.Errorf("%s was made: slots were used up", set)
		}
	}
	proxiertest.Expect(t, h, lb.NewSnapshot(stands))
	if err := p.Sync(t.Context(), lb.Snapshot{}, prune); err != nil {
		t.Fatal(err)
	}
	m := p.families[0].memory
	if len(m.slots)+len(m.compiled)+len(m.failed) > 0 || len(h.clientSets(t)) > 0 {
		t.Errorf("left: %d slots, %d compiled services, %d failures, sets %v", len(m.slots), len(m.compiled), len(m.failed), h.clientSets(t))
	}
}
