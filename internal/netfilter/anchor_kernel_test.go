//go:build kernel

package netfilter

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
)

func TestAnchorIsMadeReadMendedAndRemoved(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	var anchors KernelAnchors
	for _, f := range Families {
		family := map[Family]string{IPv4: "ip", IPv6: "ip6"}[f]
		table := family + " " + AnchorTable
		state := func(want AnchorState) {
			t.Helper()
			if got, err := anchors.State(t.Context(), f); err != nil || got != want {
				t.Errorf("%s: the anchor is %s, %v; want %s", f, got, err, want)
			}
		}
		state(AnchorAbsent)
		check(t, anchors.Remove(t.Context(), f))
		for _, harm := range []string{
			"delete table " + table,
			"flush table " + table,
			"delete chain " + table + " nat",
			"flush chain " + table + " conntrack",
			"add rule " + table + " nat accept",
			"add rule " + table + " conntrack drop",
			"add chain " + table + " other",
			"add table " + table + " { flags dormant; }",
			"delete chain " + table + " nat; add chain " + table + " nat { type nat hook output priority 300; }",
			"delete chain " + table + " nat; add chain " + table + " nat { type filter hook input priority 300; }",
			"add chain " + table + " nat { policy drop; }",
		} {
			check(t, anchors.Put(t.Context(), f))
			state(AnchorStands)
			setTool(t, "nft", harm)
			want := AnchorDamaged
			if strings.HasPrefix(harm, "delete table") {
				want = AnchorAbsent
			}
			if got, err := anchors.State(t.Context(), f); err != nil || got != want {
				t.Errorf("%s: after %q the anchor is %s, %v; want %s", f, harm, got, err, want)
			}
		}
		check(t, anchors.Put(t.Context(), f))
		check(t, anchors.Put(t.Context(), f))
		state(AnchorStands)
		shown := setTool(t, "nft", "list", "table", family, AnchorTable)
		for _, want := range []string{"type nat hook input priority", "ct state established comment \"" + anchorComment + "\""} {
			if !strings.Contains(shown, want) {
				t.Errorf("%s: nft does not show %q:\n%s", f, want, shown)
			}
		}
		check(t, anchors.Remove(t.Context(), f))
		check(t, anchors.Remove(t.Context(), f))
		state(AnchorAbsent)
	}
}

// Each write is one generation, and iptables goes on as before beside the anchor.
func TestAnchorIsOneGenerationAndNoTrouble(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	var anchors KernelAnchors
	for _, f := range Families {
		tool := kernelTool(t, f)
		generation := func() uint32 {
			t.Helper()
			g, err := tool.Generation(t.Context())
			check(t, err)
			return g
		}
		steps := []func() error{
			func() error { return anchors.Put(t.Context(), f) },
			func() error { return anchors.Put(t.Context(), f) },
			func() error { return anchors.Remove(t.Context(), f) },
			func() error { return anchors.Put(t.Context(), f) },
		}
		for i, step := range steps {
			before := generation()
			check(t, step())
			if n := generation() - before; n != 1 {
				t.Errorf("%s: step %d: the generation grew by %d", f, i, n)
			}
		}
		check(t, tool.Restore(t.Context(), []byte("*nat\n:VIPD-X - [0:0]\n-A PREROUTING -j VIPD-X\nCOMMIT\n*mangle\nCOMMIT\n*filter\nCOMMIT\n")))
		for _, save := range []string{"iptables", "ip6tables"} {
			if out := setTool(t, save+"-nft-save"); strings.Contains(out, "incompatible") || strings.Contains(out, AnchorTable) {
				t.Errorf("%s-nft-save says\n%s", save, out)
			}
			for _, table := range []string{"nat", "filter", "mangle"} {
				setTool(t, save+"-nft", "-t", table, "-L", "-n")
			}
		}
		if _, err := tool.Read(t.Context(), "nat"); err != nil {
			t.Error(err)
		}
	}
}

// nothing of iptables is left after these, each for both families.
var floods = map[string][]string{
	"the tables are flushed": {"iptables-nft -t nat -F", "iptables-nft -F", "ip6tables-nft -t nat -F", "ip6tables-nft -F"},
	"nat is deleted":         {"nft delete table ip nat", "nft delete table ip6 nat"},
	"all are deleted": {"nft delete table ip nat", "nft delete table ip filter",
		"nft delete table ip6 nat", "nft delete table ip6 filter"},
}

// TestF65_EstablishedConnectionsLiveBesideTheAnchor shows with packets what the
// anchor is for: connections that go on while the rules are gone, and nobody mends
// anything. Without it they are reset: the flood is real.
//
//lane:vm
func TestF65_EstablishedConnectionsLiveBesideTheAnchor(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	lab := kerneltest.NewLab(t, 1)
	at := map[Family]netip.AddrPort{IPv4: netip.AddrPortFrom(lab.Backends[0].Addr4, 8080), IPv6: netip.AddrPortFrom(lab.Backends[0].Addr6, 8080)}
	server, err := loss.Serve(t.Context(), loss.ServerOptions{Name: "b1", In: lab.Backends[0].Do, TCP: []netip.AddrPort{at[IPv4], at[IPv6]}})
	check(t, err)
	t.Cleanup(server.Close)
	lab.LB.Run(t, "ip", "link", "add", "vipd0", "type", "bridge")
	lab.LB.Run(t, "ip", "link", "set", "vipd0", "up")
	lab.LB.Run(t, "ip", "addr", "add", vip4.String()+"/32", "dev", "vipd0", "scope", "host")
	lab.LB.Run(t, "ip", "addr", "add", vip6.String()+"/128", "dev", "vipd0", "nodad", "preferred_lft", "0")
	for name, flood := range floods {
		for _, anchored := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, anchor %t", name, anchored), func(t *testing.T) {
				lab.LB.Run(t, "nft", "flush", "ruleset")
				for _, f := range Families {
					translate(t, lab, f, at[f])
					if anchored {
						check(t, KernelAnchors{}.Put(t.Context(), f))
					}
				}
				lives(t, lab, flood, anchored)
			})
		}
	}
}

// translate makes port 80 of the VIP a service that masquerades, and port 81 one
// that does not.
func translate(t *testing.T, lab *kerneltest.Lab, f Family, backend netip.AddrPort) {
	t.Helper()
	vip := map[Family]netip.Addr{IPv4: vip4, IPv6: vip6}[f]
	rules := "*nat\n"
	for _, base := range []string{"PREROUTING", "OUTPUT"} {
		rules += fmt.Sprintf("-A %s -d %s -p tcp -m tcp --dport 80 -j CONNMARK --set-xmark %s\n", base, vip, markMask)
		rules += fmt.Sprintf("-A %s -d %s -p tcp -m tcp --dport 80:81 -j DNAT --to-destination %s\n", base, vip, backend)
	}
	rules += fmt.Sprintf("-A POSTROUTING -s %s -j MASQUERADE\n", vip) // the host as its own client
	rules += fmt.Sprintf("-A POSTROUTING -m connmark --mark %s -j MASQUERADE\nCOMMIT\n", markMask)
	rules += fmt.Sprintf("*filter\n-A INPUT -d %s -m conntrack --ctstate NEW -j REJECT\nCOMMIT\n", vip)
	check(t, kernelTool(t, f).Restore(t.Context(), []byte(rules)))
}

// lives holds connections from a client and from the host itself through a flood.
func lives(t *testing.T, lab *kerneltest.Lab, flood []string, want bool) {
	t.Helper()
	loads := map[string]*loss.Load{
		"client": loss.Start(t.Context(), loss.Options{In: lab.Client.Do}),
		"host":   loss.Start(t.Context(), loss.Options{In: lab.LB.Do}),
	}
	held := map[string]*loss.Held{}
	for from, l := range loads {
		for _, vip := range []netip.Addr{vip4, vip6} {
			for _, port := range []uint16{80, 81} {
				target := netip.AddrPortFrom(vip, port)
				held[from+" to "+target.String()] = l.Hold(loss.Hold{Target: target, Count: 3, Every: 20 * time.Millisecond})
			}
		}
	}
	for _, command := range flood {
		lab.LB.Run(t, "sh", "-c", command)
	}
	settle := time.Now().Add(10 * time.Second)
	for name, h := range held {
		before := exchanges(h)
		for exchanges(h) < before+30 && h.By()["b1"] > 0 && time.Now().Before(settle) {
			time.Sleep(10 * time.Millisecond)
		}
		if n := h.By()["b1"]; want && (n != 3 || exchanges(h) < before+30) || !want && n != 0 {
			t.Errorf("%s: %d of 3 connections live, with %d exchanges after the flood", name, n, exchanges(h)-before)
		}
	}
	for _, l := range loads {
		l.Stop()
	}
}

func exchanges(h *loss.Held) (n int) {
	for _, c := range h.Conns() {
		n += c.Exchanges
	}
	return n
}

// TestB54_WritesOfTheAnchorAreOurs: they are no drift, not even if somebody else
// writes at the same time.
func TestB54_WritesOfTheAnchorAreOurs(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	tools := nftTools(t)
	watching(t, tools, func(l *listener) {
		stop := make(chan struct{})
		var noise sync.WaitGroup
		noise.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					sh(t, "nft add table ip noise; nft delete table ip noise")
				}
			}
		})
		for range 20 {
			check(t, tools.Anchors().Put(t.Context(), IPv6))
			check(t, tools.Anchors().Remove(t.Context(), IPv6))
			check(t, tools.Anchors().Remove(t.Context(), IPv6))
		}
		close(stop)
		noise.Wait()
		judged(t, tools)
		if told := l.taken(); told != nil {
			t.Errorf("told %+v", told)
		}
		check(t, tools.Anchors().Put(t.Context(), IPv6))
		sh(t, "nft delete table ip6 "+AnchorTable)
		judged(t, tools)
		if told := l.taken(); len(told) != 1 {
			t.Errorf("told %+v, want the one change of somebody else", told)
		}
	})
}
