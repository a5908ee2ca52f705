package iptables

import (
	"testing"

	"vipd/internal/netfilter"
	"vipd/proxier"
)

// A resync reads the table only if somebody else touched what is ours, or nobody
// knows: not after our own writes, and not for what others do beside us.
func TestUnchangedKernelIsNotReadAgain(t *testing.T) {
	h := newFakeHarness()
	k := h.kernels[netfilter.IPv4]
	p, all := load(t, h, 10)
	reads := func(want int, why string) {
		t.Helper()
		k.reads = 0
		if err := p.Sync(t.Context(), all, proxier.How{Prune: true, Fresh: true}); err != nil {
			t.Fatal(err)
		}
		if k.reads != want {
			t.Errorf("%s: %d reads, want %d", why, k.reads, want)
		}
	}
	somebody := func(script string) {
		t.Helper()
		if err := k.wholeKernel.Restore(t.Context(), []byte(script)); err != nil {
			t.Fatal(err)
		}
	}
	reads(0, "after our own writes")
	somebody("*nat\n:OTHER - [0:0]\nCOMMIT\n")
	reads(0, "somebody wrote beside us")
	writes := h.Writes()
	somebody("*nat\n-I PREROUTING 1 -j OTHER\nCOMMIT\n")
	reads(0, "somebody put a rule before our jump")
	if n := h.Writes() - writes; n != 1 {
		t.Errorf("a displaced jump takes %d writes", n)
	}
	if first := k.wholeKernel.(*fakeKernel).base["PREROUTING"][0]; netfilter.Target(first) != chainService {
		t.Errorf("the first rule is %q", first)
	}
	somebody("*nat\n-F " + chainDispatch + "\nCOMMIT\n")
	reads(1, "somebody flushed a chain of ours")
	reads(0, "nobody wrote since")
	k.wholeKernel.(*fakeKernel).blind = true
	reads(1, "nobody knows who wrote")
	reads(1, "nobody ever knows")
}
