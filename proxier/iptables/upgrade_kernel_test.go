//go:build kernel

package iptables

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// TestF143_NoConnectionIsLostWhileTheLayoutChanges starts this vipd on the rules of
// the layout before it, under load, with a commit for every few chains: first while
// nothing may be removed, and half of the services are known; then with all.
func TestF143_NoConnectionIsLostWhileTheLayoutChanges(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	lab := kerneltest.NewLab(t, 1)
	backend := netip.AddrPortFrom(lab.Backends[0].Addr4, 8080)
	server, err := loss.Serve(t.Context(), loss.ServerOptions{Name: "b1", In: lab.Backends[0].Do, TCP: []netip.AddrPort{backend}})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	h := realHarness(t)
	k := h.kernels[netfilter.IPv4].wholeKernel
	script, old := layoutOne(t)
	restoreEach(t, k, bytes.ReplaceAll(script, []byte("10.0.0.1:8080"), []byte(backend.String())))
	all, half := lb.Snapshot{}.Edit(), lb.Snapshot{}.Edit()
	load := loss.Start(t.Context(), loss.Options{In: lab.Client.Do})
	for s := range old.All() {
		tool(t, "ipset", "add", netfilter.SetName(netfilter.SetVIP, netfilter.IPv4), s.Key.Addr.String())
		now := svc(s.Key.String(), backend.String())
		all.Put(now)
		if s.Key.Addr.As4()[3]%2 == 0 {
			half.Put(now)
		}
		load.Connect(loss.Connections{Target: s.Key.AddrPort(), Rate: 10})
		load.Hold(loss.Hold{Target: s.Key.AddrPort(), Count: 1})
	}
	p := h.proxier()
	for _, f := range p.families {
		f.limit = 3
	}
	if err := p.Sync(t.Context(), half.Snapshot(), proxier.How{}); err != nil {
		t.Error(err)
	}
	written := h.Writes()
	if err := p.Sync(t.Context(), all.Snapshot(), prune); err != nil {
		t.Error(err)
	}
	r := load.Stop()
	t.Logf("%d commits, then %d:\n%s", written, h.Writes()-written, r)
	if r.Lost() > 0 || r.Held.Total != 40 || r.Connections.Total < 40 {
		t.Errorf("lost %d of %d", r.Lost(), r.Total())
	}
	table, err := k.Read(t.Context(), "nat")
	if err != nil {
		t.Fatal(err)
	}
	for name := range table.Own {
		if kindOf(name) == older || kindOf(name) == foreign {
			t.Errorf("chain %s is left", name)
		}
	}
	if left := tool(t, "iptables-nft-save", "-t", "nat"); strings.Contains(left, olderDispatch) {
		t.Errorf("something of the earlier layout is left:\n%s", left)
	}
}
