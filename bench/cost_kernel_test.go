//go:build kernel

package main

import (
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/lb"
)

// TestOwnPartOfAChangeDoesNotGrow sums what a change of one service costs the whole
// daemon but for its file and socket: hub, decision, log of state, door, proxier, the
// netlink messages and the start of the tool, not the tool itself. What it allocates
// must be alike at 1,000 and at 50,000 services. Processor times are printed.
func TestOwnPartOfAChangeDoesNotGrow(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	c := &catalog{services: sharedVIPs(50_000), next: spare}
	all := c.services
	c.services = all[:1000:1000]
	e, err := newEngine(t.Context(), nft, c.services, quickest)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := e.await(t.Context(), "0"); err != nil {
		t.Fatal(err)
	}
	few := ownCost(t, e, c)
	c.services = append(c.services, all[1000:]...)
	start := time.Now()
	if _, err := e.put(t.Context(), c.services); err != nil {
		t.Fatal(err)
	}
	t.Logf("49,000 services more: %v", time.Since(start).Round(time.Millisecond))
	if many := ownCost(t, e, c); many > few+few/2 {
		t.Errorf("a change allocates %d bytes at 50,000 services and %d at 1,000", many, few)
	}
	startCost(t)
	repairCost(t, e)
}

// repairCost prints what a repair takes for which all of the table is read.
func repairCost(t *testing.T, e *engine) {
	t.Helper()
	if _, err := e.settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "iptables-nft", "-t", "nat", "-A", "VIPD-2-DISP", "-j", "RETURN").CombinedOutput()
	if err != nil {
		t.Fatalf("iptables: %v\n%s", err, out)
	}
	select {
	case p := <-e.passes: // the watch asks for it
		t.Logf("a repair of the tree: rules %v, of which own processor time %v; door %v", p.sync.Round(time.Millisecond), p.cpu, p.shut+p.open)
		if p.err != nil {
			t.Error(p.err)
		}
	case <-t.Context().Done():
	}
}

// startCost prints what it takes this process to start a program and wait for it.
func startCost(t *testing.T) {
	t.Helper()
	const rounds = 20
	before := ownCPU()
	for range rounds {
		if err := exec.CommandContext(t.Context(), "true").Run(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("to start a program takes %v of the own processor time", ((ownCPU() - before) / rounds).Round(time.Microsecond))
}

// ownCost makes changes, each after quiet, and returns the bytes that one allocates.
func ownCost(t *testing.T, e *engine, c *catalog) (bytes uint64) {
	t.Helper()
	const rounds = 20
	var user, system, sync, door, total time.Duration
	tools := toolCPU()
	for i := range rounds + 1 {
		if _, err := e.settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.replace(i * 7919 % len(c.services)) // what the source allocates is its own affair
		var memory, memoryAfter runtime.MemStats
		var used, usedAfter syscall.Rusage
		runtime.ReadMemStats(&memory)
		rusage(t, &used)
		start := time.Now()
		p, err := e.put(t.Context(), c.services)
		if err != nil {
			t.Fatal(err)
		}
		rusage(t, &usedAfter)
		runtime.ReadMemStats(&memoryAfter)
		if i == 0 { // warms up
			tools = toolCPU()
			continue
		}
		total, sync, door = total+p.ended.Sub(start), sync+p.sync, door+p.shut+p.open
		user += time.Duration(usedAfter.Utime.Nano() - used.Utime.Nano())
		system += time.Duration(usedAfter.Stime.Nano() - used.Stime.Nano())
		bytes += memoryAfter.TotalAlloc - memory.TotalAlloc
	}
	mean := func(d time.Duration) time.Duration { return (d / rounds).Round(time.Microsecond) }
	t.Logf("%6d services: own processor time %v in the program and %v in the kernel for it, %d bytes allocated; a change takes %v, of which rules %v, door %v; the tool's processor time %v",
		len(c.services), mean(user), mean(system), bytes/rounds, mean(total), mean(sync), mean(door), mean(toolCPU()-tools))
	return bytes / rounds
}

func rusage(t *testing.T, u *syscall.Rusage) {
	t.Helper()
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, u); err != nil {
		t.Fatal(err)
	}
}

// sharedVIPs returns services of which 50 share a VIP: so many addresses of their own
// would take the kernel longer than everything else.
func sharedVIPs(n int) []*lb.Spec {
	specs := make([]*lb.Spec, n)
	for i := range specs {
		specs[i] = newSpec(i)
		specs[i].Key.Addr, specs[i].Key.Port = vipOf(i/50), uint16(1000+i%50) //nolint:gosec // a small number
	}
	return specs
}
