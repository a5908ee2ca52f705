//go:build kernel

package iptables

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

const crowd = 10_000 // clients

// TestB32_B36_B37_ThousandsOfClientsKeepTheirBackend has more clients than any
// hash of the kernel's default size holds, all at once.
func TestB32_B36_B37_ThousandsOfClientsKeepTheirBackend(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	lab := kerneltest.NewLab(t, 1)
	for _, vip := range []string{"192.0.2.10", "2001:db8::10"} {
		w := newClientWorld(t, lab, vip, 4)
		s := w.service(3, time.Hour)
		p := w.proxier()
		w.sync(p, s)
		first := w.round(crowd)
		if by := tally(first); len(by) != 3 {
			t.Fatalf("%s: the clients are at %v", vip, by)
		}
		w.same(first, w.round(crowd), "at the next connection")

		w.sync(p, s, w.neighbour(1))
		w.sync(p, s, w.neighbour(2))
		w.same(first, w.round(crowd), "after passes for other services")

		p = w.proxier()
		w.sync(p, s, w.neighbour(2))
		w.same(first, w.round(crowd), "after a restart")

		more := w.service(4, 2*time.Hour)
		w.sync(p, more)
		w.same(first, w.round(crowd), "after another backend has come and the timeout has changed")
		t.Logf("%s: %d clients at %v, %s", vip, crowd, tally(first), w.memory())
		w.close()
	}
}

// TestB36_SixtyThousandClients is the figure that the sets are made for, with
// the smallest service for which it matters.
func TestB36_SixtyThousandClients(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	lab := kerneltest.NewLab(t, 1)
	const clients = 60_000
	w := newClientWorld(t, lab, "192.0.2.10", 4)
	w.sync(w.proxier(), w.service(2, time.Hour))
	start := time.Now()
	first := w.round(clients)
	w.same(first, w.round(clients), "at the next connection")
	t.Logf("%d clients at %v, twice in %s, %s", clients, tally(first), time.Since(start).Round(time.Millisecond), w.memory())
}

//lane:vm
func TestB35_ClientsOfABackendThatGetsNothingNewMoveAtOnce(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	lab := kerneltest.NewLab(t, 1)
	for name, spoil := range map[string]func(s *lb.Service){
		"removed":  func(s *lb.Service) { s.Backends = s.Backends[1:] },
		"draining": func(s *lb.Service) { s.Backends[0].Draining = true },
		"weight 0": func(s *lb.Service) { s.Backends[0].Weight = 0 },
	} {
		w := newClientWorld(t, lab, "192.0.2.10", 4)
		p := w.proxier()
		w.sync(p, w.service(3, time.Hour))
		first := w.round(300)
		less := w.service(3, time.Hour)
		spoil(less)
		w.sync(p, less)
		second := w.round(300)
		for c, was := range first {
			if now := second[c]; now == 0 || was != 0 && now != was {
				t.Fatalf("%s: client %d goes from backend %d to %d", name, c, was, now)
			}
		}
		if by := tally(second); len(by) != 2 {
			t.Errorf("%s: the clients are at %v", name, by)
		}
		w.same(second, w.round(300), name)
		w.sync(w.proxier(), w.service(3, time.Hour)) // it comes back, and vipd was restarted
		w.same(second, w.round(300), name+" and back")
		w.close()
	}
}

//lane:vm
func TestB33_B34_AffinityExpiresAndIsSwitched(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	lab := kerneltest.NewLab(t, 1)
	w := newClientWorld(t, lab, "192.0.2.10", 4)
	p := w.proxier()
	const clients, seconds = 300, 3
	w.sync(p, w.service(3, seconds*time.Second))
	first := w.round(clients)
	start := time.Now()
	w.same(first, w.round(clients), "at once")
	for time.Since(start) < 2*seconds*time.Second { // a new connection keeps it alive
		w.same(first, w.round(clients), "before the timeout has passed since the last connection")
		w.until(time.Now().Add(time.Second))
	}
	w.until(time.Now().Add((seconds + 1) * time.Second))
	later := w.round(clients)
	if moved := moved(first, later); moved < clients/3 {
		t.Errorf("after the timeout %d of %d clients are elsewhere, want some two thirds", moved, clients)
	}

	w.sync(p, w.service(3, 0))
	if moved := moved(w.round(clients), w.round(clients)); moved < clients/3 {
		t.Errorf("without affinity %d of %d clients are elsewhere at the next connection", moved, clients)
	}
	w.sync(p, w.service(3, time.Hour))
	again := w.round(clients)
	w.same(again, w.round(clients), "switched on again")
	w.sync(p)
	if left := tool(t, "ipset", "list", "-n"); strings.Contains(left, netfilter.SetClients) {
		t.Errorf("without a service with affinity these sets stand: %s", left)
	}
}

// TestB32_ClientsOfManyBackendsKeepThem is a service whose slots are in groups.
func TestB32_ClientsOfManyBackendsKeepThem(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	lab := kerneltest.NewLab(t, 1)
	w := newClientWorld(t, lab, "192.0.2.10", 60)
	p := w.proxier()
	s := w.service(60, time.Hour)
	w.sync(p, s)
	first := w.round(2000)
	if by := tally(first); len(by) != 60 {
		t.Errorf("only %d backends of 60 have clients", len(by))
	}
	w.same(first, w.round(2000), "at the next connection")
	less := w.service(60, time.Hour)
	less.Backends = less.Backends[20:]
	w.sync(p, less)
	second := w.round(2000)
	for c, was := range first {
		if was >= 20 && second[c] != was || second[c] < 20 {
			t.Fatalf("client %d goes from backend %d to %d", c, was, second[c])
		}
	}
	w.sync(p, s)
	w.same(second, w.round(2000), "when the removed ones are back")
}

// TestRRServesNewClientsInTurn shows the turn with packets, with and without
// affinity.
func TestRRServesNewClientsInTurn(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	lab := kerneltest.NewLab(t, 1)
	for _, affinity := range []time.Duration{0, time.Hour} {
		w := newClientWorld(t, lab, "192.0.2.10", 4)
		s := w.service(4, affinity)
		s.Scheduler = lb.RR
		s.Backends[1].Weight, s.Backends[2].Weight = 0, 7
		w.sync(w.proxier(), s)
		got := w.round(60)
		for c := range got[3:] {
			if turn := got[c : c+3]; turn[0] == turn[1] || turn[1] == turn[2] || turn[0] == turn[2] || turn[0] == 1 {
				t.Fatalf("affinity %s: clients %d to %d go to %v", affinity, c, c+2, turn)
			}
		}
		w.close()
	}
}

// TestAffinityOfAThousandServices shows what it costs: the sets are those of one
// service of ten backends, spread over a group.
func TestAffinityOfAThousandServices(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	h := realHarness(t)
	e := lb.Snapshot{}.Edit()
	for i := range 1000 {
		e.Put(withAffinity(many(fmt.Sprintf("10.96.%d.%d:80", i/250, i%250), 10, 1), time.Hour))
	}
	p, k := h.proxier(), h.kernels[netfilter.IPv4]
	timed := func(what string, want lb.Snapshot, how proxier.How) {
		t.Helper()
		k.scripts = nil
		start := time.Now()
		if err := p.Sync(t.Context(), want, how); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s, %d commits", what, time.Since(start).Round(time.Millisecond), len(k.scripts))
	}
	timed("load", e.Snapshot(), prune)
	change := withAffinity(many("10.96.1.7:80", 9, 1), time.Hour)
	timed("one backend goes", with(e.Snapshot(), change), prune)
	if names := named(k.scripts); len(names) > 2 {
		t.Errorf("one backend that goes touches the chains %v", names)
	}
	timed("it comes back", e.Snapshot(), prune)
	p = h.proxier()
	timed("restart", e.Snapshot(), prune)
	if len(k.scripts) > 0 {
		t.Errorf("a restart writes %d times", len(k.scripts))
	}
	if sets := h.clientSets(t); len(sets) != groupSize {
		t.Errorf("the sets are %v, want those of one group", sets)
	}
}

// tally counts the clients of each backend.
func tally(backends []int) map[int]int {
	by := map[int]int{}
	for _, b := range backends {
		by[b]++
	}
	return by
}

func moved(before, after []int) (n int) {
	for c := range before {
		if before[c] != after[c] {
			n++
		}
	}
	return n
}

func (w *clientWorld) same(before, after []int, when string) {
	w.t.Helper()
	if n := moved(before, after); n > 0 {
		w.t.Errorf("%s: %s: %d of %d clients are at another backend", w.vip, when, n, len(before))
	}
}

// memory tells what the sets hold and cost, as the kernel says.
func (w *clientWorld) memory() string {
	var text []string
	for line := range strings.Lines(tool(w.t, "ipset", "list", "-t")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch {
		case name == "Name" && isClientSet(value, netfilter.FamilyOf(w.vip.Addr)):
			text = append(text, value)
		case len(text) > 0 && (name == "Size in memory" || name == "Number of entries"):
			text = append(text, fmt.Sprintf("%s %s", strings.ToLower(name), value))
		}
	}
	return strings.Join(text, ", ")
}

// neighbour is another service with affinity, on the same VIP.
func (w *clientWorld) neighbour(n int) *lb.Service {
	s := w.service(n, time.Minute)
	s.Key.Port++
	return s
}
