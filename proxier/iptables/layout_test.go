package iptables

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier/proxiertest"
)

// svc makes a service from "VIP:PORT/PROTO" and backends "ADDR" or "ADDR*WEIGHT".
func svc(key string, backends ...string) *lb.Service {
	k, err := lb.ParseKey(key)
	if err != nil {
		panic(err)
	}
	s := &lb.Service{Key: k, Scheduler: lb.WRR, Masquerade: lb.MasqueradeAlways}
	for _, b := range backends {
		addr, weight, found := strings.Cut(b, "*")
		w := 1
		if found {
			_, _ = fmt.Sscan(weight, &w)
		}
		s.Backends = append(s.Backends, lb.Backend{Addr: netip.MustParseAddrPort(addr), Weight: uint16(w)})
	}
	slices.SortFunc(s.Backends, func(a, b lb.Backend) int { return a.Addr.Compare(b.Addr) })
	return s
}

// many makes a service with n backends of the given weights, in turn.
func many(key string, n int, weights ...uint16) *lb.Service {
	s := svc(key)
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		if s.Key.Addr.Is6() {
			a = netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)})
		}
		s.Backends = append(s.Backends, lb.Backend{Addr: netip.AddrPortFrom(a, 8080), Weight: weights[i%len(weights)]})
	}
	return s
}

// layoutOf returns all chains of the services of one family, and a base chain.
func layoutOf(t testing.TB, services ...*lb.Service) map[string][]string {
	t.Helper()
	chains := map[string][]string{"PREROUTING": {"-j " + chainService}}
	var keys []lb.Key
	put := func(c netfilter.Chain) {
		if _, twice := chains[c.Name]; twice {
			t.Fatalf("chain %s is made twice", c.Name)
		}
		chains[c.Name] = c.Lines()
	}
	f := netfilter.IPv4
	for _, s := range services {
		f = netfilter.FamilyOf(s.Key.Addr)
		made, err := serviceChains(s, assign(s, nil, nil))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range made {
			put(c)
		}
		if len(made) > 0 {
			keys = append(keys, s.Key)
		}
	}
	slices.SortFunc(keys, compareKeys)
	root := treeOf(keys)
	for _, n := range chainsOf(root) {
		put(nodeChain(n))
	}
	put(rootChain(root))
	for _, c := range skeletonOf(f, netfilter.DefaultMark).Chains {
		put(c)
	}
	return chains
}

func sameShares(got, want map[netip.AddrPort]float64) bool {
	if len(got) != len(want) {
		return false
	}
	for a, share := range want {
		if math.Abs(got[a]-share) > 1e-6*max(share, 1e-3) {
			return false
		}
	}
	return true
}

func TestF134_ProbabilitiesSumRightInTheTextForm(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7, 16, 17, 50, 128, 129, 500, 2000} {
		for _, weights := range [][]uint16{{1}, {1, 2}, {0, 1, 65535}, {65535, 1, 1, 7}, {100}} {
			for _, scheduler := range []lb.Scheduler{lb.WRR, lb.RR} {
				s := many("192.0.2.1:80", n, weights...)
				s.Scheduler = scheduler
				tr := newTracer(layoutOf(t, s))
				if got := tr.to(s.Key); !sameShares(got, proxiertest.Shares(s)) {
					t.Errorf("%d backends, weights %v, %s: shares are wrong", n, weights, scheduler)
				}
				if tr.deep > 14 {
					t.Errorf("%d backends: %d chains deep", n, tr.deep)
				}
			}
		}
	}
}

func TestRRTakesBackendsInTurn(t *testing.T) {
	for _, n := range []int{1, 2, 3, 16, 17, 19, 128, 129, 300, 2000} {
		s := many("192.0.2.1:80", n, 3, 5)
		s.Scheduler = lb.RR
		tr := newTracer(layoutOf(t, s))
		tr.turn = map[string]int{}
		for round := range 2 {
			got := map[netip.AddrPort]float64{}
			for range n {
				for a := range tr.to(s.Key) {
					got[a]++
				}
			}
			for a, count := range got {
				if count != 1 || len(got) != n {
					t.Fatalf("%d backends, round %d: %s got %v connections of %d", n, round, a, count, n)
				}
			}
		}
	}
}

// vipSets are shapes of VIPs, kind ones and cruel ones.
var vipSets = map[string]func(i int) string{
	"in a row": func(i int) string { return fmt.Sprintf("10.96.%d.%d:80", i>>8&255, i&255) },
	"scattered": func(i int) string {
		x := uint32(i) * 2654435761
		return fmt.Sprintf("%d.%d.%d.%d:80", 1+x>>24%200, x>>16&255, x>>8&255, x&255)
	},
	"ports": func(i int) string { return fmt.Sprintf("10.96.0.1:%d", 1+i*7%65535) },
	"two ports": func(i int) string {
		return fmt.Sprintf("10.96.%d.%d:%d/%s", i>>10&255, i>>2&255, 53+i&1, []string{"tcp", "udp"}[i>>1&1])
	},
	"staircase": func(i int) string {
		a := uint32(1)<<(i%32) | uint32(i/32)
		return fmt.Sprintf("%d.%d.%d.%d:%d", a>>24, a>>16&255, a>>8&255, a&255, 1+i/32)
	},
	"ipv6": func(i int) string { return fmt.Sprintf("[2001:db8:%x::%x]:%d/udp", i%7, i/7, 1+i%3) },
	"staircase6": func(i int) string {
		var a [16]byte
		a[i%128/8] = 0x80 >> (i % 8)
		a[0] |= 0x20
		return fmt.Sprintf("[%s]:%d", netip.AddrFrom16(a), 1+i/128)
	},
}

func TestF77_F78_CommentsAndNamesAreShort(t *testing.T) {
	for name, vip := range vipSets {
		var services []*lb.Service
		seen := map[lb.Key]bool{}
		for i := range 300 {
			s := many(vip(i), 40, 1)
			s.Masquerade = lb.MasqueradeAuto
			if !seen[s.Key] {
				services = append(services, s)
			}
			seen[s.Key] = true
		}
		for chain, rules := range layoutOf(t, services...) {
			if len(chain) > netfilter.MaxChainName {
				t.Errorf("%s: name %s is too long", name, chain)
			}
			for _, r := range rules {
				if err := checkRule(r); err != nil {
					t.Error(err)
				}
				words := strings.Fields(r)
				for i, w := range words {
					if w == "--comment" && len(words[i+1]) > 128 {
						t.Errorf("%s: comment %s is too long", name, words[i+1])
					}
				}
			}
		}
	}
}

func TestServiceThatCannotBeRenderedIsRefused(t *testing.T) {
	good := func() *lb.Service { return svc("192.0.2.1:80", "10.0.0.1:80", "10.0.0.2:80") }
	for name, spoil := range map[string]func(*lb.Service){
		"protocol":          func(s *lb.Service) { s.Key.Protocol = 1 },
		"part of a second":  func(s *lb.Service) { s.Affinity = 1500 * time.Millisecond },
		"long affinity":     func(s *lb.Service) { s.Affinity = (netfilter.MaxTimeout + 1) * time.Second },
		"negative affinity": func(s *lb.Service) { s.Affinity = -time.Second },
		"crowd with affinity": func(s *lb.Service) {
			s.Affinity, s.Backends = time.Second, many("192.0.2.1:80", maxAffinity+1, 1).Backends
		},
		"port 0":             func(s *lb.Service) { s.Key.Port = 0 },
		"no VIP":             func(s *lb.Service) { s.Key.Addr = netip.Addr{} },
		"zone":               func(s *lb.Service) { s.Key.Addr = netip.MustParseAddr("fe80::1%a\n-j ACCEPT") },
		"mapped":             func(s *lb.Service) { s.Key.Addr = netip.MustParseAddr("::ffff:192.0.2.1") },
		"scheduler":          func(s *lb.Service) { s.Scheduler = "lc" },
		"family":             func(s *lb.Service) { s.Backends[1].Addr = netip.MustParseAddrPort("[fd00::1]:80") },
		"backend zone":       func(s *lb.Service) { s.Backends[1].Addr = netip.MustParseAddrPort("[fe80::1%x y]:80") },
		"backend port":       func(s *lb.Service) { s.Backends[1].Addr = netip.MustParseAddrPort("10.0.0.2:0") },
		"backend twice":      func(s *lb.Service) { s.Backends[1] = s.Backends[0] },
		"backends unordered": func(s *lb.Service) { slices.Reverse(s.Backends) },
	} {
		s := good()
		spoil(s)
		if chains, err := serviceChains(s, assign(s, nil, nil)); err == nil {
			t.Errorf("%s: rendered as %v", name, chains)
		}
	}
	if _, err := serviceChains(good(), nil); err != nil {
		t.Error(err)
	}
	if err := checkRule("-p tcp\n-j ACCEPT"); err == nil {
		t.Error("a newline is let into a rule")
	}
}
