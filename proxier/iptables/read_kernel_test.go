//go:build kernel

package iptables

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// cpu returns the time of the processor that was used so far.
func cpu(t *testing.T, who int) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Round(10 * time.Microsecond)
}

// TestReadSpeed prints what it costs to find out what the kernel holds, and holds
// that nothing is read, run or written where nothing happened.
func TestReadSpeed(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	n := 1000
	if os.Getenv("VIPD_SOAK") == "1" {
		n = 10000
	}
	h := realHarness(t)
	k := h.kernels[netfilter.IPv4]
	p := h.proxier()
	e := lb.Snapshot{}.Edit()
	for i := range n {
		e.Put(many(vipSets["scattered"](i), 10, 1))
	}
	timed := func(what string, f func() error) {
		t.Helper()
		begin, own, tools := time.Now(), cpu(t, unix.RUSAGE_SELF), cpu(t, unix.RUSAGE_CHILDREN)
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		t.Logf("%d services: %-26s %10v, of the processor %10v ours, %10v of tools", n, what, time.Since(begin).Round(10*time.Microsecond),
			cpu(t, unix.RUSAGE_SELF)-own, cpu(t, unix.RUSAGE_CHILDREN)-tools)
	}
	all, fresh := e.Snapshot(), proxier.How{Fresh: true, Prune: true}
	timed("load", func() error { return p.Sync(t.Context(), all, prune) })
	timed("list over netlink", func() error { _, err := k.wholeKernel.(*netfilter.Tool).List(t.Context(), table); return err })
	timed("read the text", func() error { _, err := k.Read(t.Context(), table); return err })
	k.reads, k.scripts = 0, nil
	timed("resync, nothing happened", func() error { return p.Sync(t.Context(), all, fresh) })
	e.Put(many(vipSets["scattered"](7), 11, 1))
	timed("plan of one change", func() error {
		changes, err := p.Plan(t.Context(), e.Snapshot(), prune)
		if len(changes) == 0 {
			t.Error("nothing is planned")
		}
		return err
	})
	timed("one change", func() error { return p.Sync(t.Context(), e.Snapshot(), prune) })
	if k.reads > 0 || len(k.scripts) != 1 {
		t.Errorf("%d reads and %d writes", k.reads, len(k.scripts))
	}
	if err := k.others.Restore(t.Context(), []byte("*nat\n-I PREROUTING 1 -p udp -j ACCEPT\nCOMMIT\n")); err != nil {
		t.Fatal(err)
	}
	timed("all read, a jump repaired", func() error { return p.Sync(t.Context(), e.Snapshot(), fresh) }) // nobody watches
	k.reads, k.scripts = 0, k.scripts[:1]
	timed("adopted by a restart", func() error { return h.proxier().Sync(t.Context(), e.Snapshot(), prune) })
	if k.reads != 1 || len(k.scripts) != 1 {
		t.Errorf("after a restart %d reads and %d writes", k.reads, len(k.scripts))
	}
}
