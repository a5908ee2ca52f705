//go:build kernel

package iptables

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier/proxiertest"
)

// realHarness is this mode on the running kernel, in the namespace of the test,
// with the sets that package vip would have made.
func realHarness(t *testing.T) *harness {
	t.Helper()
	return harnessWith(t, netfilter.ToolOptions{Backend: netfilter.NFT})
}

func harnessWith(t *testing.T, o netfilter.ToolOptions) *harness {
	t.Helper()
	for _, f := range netfilter.Families {
		inet := map[netfilter.Family]string{netfilter.IPv4: "inet", netfilter.IPv6: "inet6"}[f]
		for set, kind := range map[string]string{netfilter.SetVIP: "hash:ip", netfilter.SetMasq: "hash:ip,port", netfilter.SetAuto: "hash:ip,port,net"} {
			tool(t, "ipset", "-exist", "create", netfilter.SetName(set, f), kind, "family", inet)
		}
	}
	find := func() func(netfilter.Family) wholeKernel {
		tools, err := netfilter.FindTools(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return func(f netfilter.Family) wholeKernel {
			k, err := tools.Tool(f)
			if err != nil {
				t.Fatal(err)
			}
			return k
		}
	}
	h, others := newHarness(find()), find()
	for f, k := range h.kernels {
		k.others = others(f)
	}
	h.sets = netfilter.KernelSets{}
	return h
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// contract runs the tests of the contract with a backend, and before each of them
// clears what the one before it left, by the programs of that backend.
func contract(t *testing.T, o netfilter.ToolOptions, programs ...string) {
	t.Helper()
	proxiertest.Run(t, func(t *testing.T) proxiertest.Harness {
		for _, program := range programs {
			tool(t, program, "-t", "nat", "-F")
			tool(t, program, "-t", "nat", "-X")
		}
		return harnessWith(t, o)
	})
}

//lane:vm
func TestContractOnTheKernel(t *testing.T) {
	if kerneltest.Isolate(t) {
		contract(t, netfilter.ToolOptions{Backend: netfilter.NFT}, "iptables-nft", "ip6tables-nft")
	}
}

// TestB54_B58_B60_B61_B64_F147_RandomWalkOnTheKernelEndsEqual is the walk of the
// fake on the real kernel, among the rules of others.
func TestB54_B58_B60_B61_B64_F147_RandomWalkOnTheKernelEndsEqual(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	for _, iptables := range []string{"iptables-nft", "ip6tables-nft"} {
		for _, rule := range []string{"-N DOCKER", "-A DOCKER -p tcp --dport 8080 -j RETURN", "-A PREROUTING -j DOCKER", "-A OUTPUT -j DOCKER", "-A POSTROUTING -p tcp -j RETURN"} {
			tool(t, iptables, append([]string{"-t", "nat"}, strings.Fields(rule)...)...)
		}
	}
	foreign := func() string {
		var lines []string
		for _, save := range []string{"iptables-nft-save", "ip6tables-nft-save"} {
			for line := range strings.Lines(tool(t, save, "-t", "nat")) {
				if !strings.Contains(line, netfilter.ChainPrefix) && !strings.HasPrefix(line, "#") && !strings.Contains(line, "-p udp -j ACCEPT") {
					lines = append(lines, line)
				}
			}
		}
		return strings.Join(lines, "")
	}
	before := foreign()
	for seed := range uint64(3) {
		walk(t, realHarness(t), 1000+seed, 20)
	}
	if now := foreign(); now != before {
		t.Errorf("foreign rules were\n%s\nare\n%s", before, now)
	}
}

//lane:vm
func TestGoldensAreWhatIPTablesTakes(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	h := realHarness(t)
	for name := range goldens() {
		script, err := os.ReadFile(golden(name))
		if err != nil {
			t.Fatal(err)
		}
		f := netfilter.IPv4
		inet := "inet"
		if strings.HasSuffix(name, "6") {
			f, inet = netfilter.IPv6, "inet6"
		}
		for _, set := range regexp.MustCompile(`vipd-aff\S+`).FindAllString(string(script), -1) {
			tool(t, "ipset", "-exist", "create", set, "hash:ip,port,ip", "family", inet, "timeout", "1")
		}
		if err := h.kernels[f].wholeKernel.(*netfilter.Tool).Test(t.Context(), script); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRulesAreWrittenAsTheyAreReadBack keeps plans free of differences in spelling.
//
//lane:vm
func TestRulesAreWrittenAsTheyAreReadBack(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	h := realHarness(t)
	for name, want := range goldens() {
		if err := h.proxier().Sync(t.Context(), want, prune); err != nil {
			t.Fatal(err)
		}
		for f, k := range h.kernels {
			blank := newFakeHarness()
			if err := blank.proxier().Sync(t.Context(), want, prune); err != nil {
				t.Fatal(err)
			}
			got, wrote := ownRules(t, k.wholeKernel), ownRules(t, blank.kernels[f].wholeKernel)
			if !sameLines(got, wrote) {
				t.Errorf("%s, %s: reads\n%s\nwrote\n%s", name, f, keysOf(got), keysOf(wrote))
			}
		}
	}
}

func ownRules(t *testing.T, k wholeKernel) map[string]int {
	t.Helper()
	table, err := k.Read(t.Context(), "nat")
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]int{}
	for name, rules := range table.Own {
		for _, r := range rules {
			lines[name+" "+netfilter.WithoutSum(r)]++
		}
	}
	return lines
}

// TestDeepestLayoutLoads loads the deepest layout there may be: a tree of 9 levels,
// services of two more levels, and affinity. The kernel refuses what is nested 16
// deep.
func TestDeepestLayoutLoads(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	h := realHarness(t)
	e := lb.Snapshot{}.Edit()
	keys := treeOf(keySets[0].make(24000, nil))
	for _, k := range keys.all(nil) {
		e.Put(serviceOf(k, 1))
	}
	deepest := keys
	for depth := deepest.depth; deepest.size > 1; depth-- { // the way that is as deep as its budget
		items := deepest.items(nil)
		i := slices.IndexFunc(items, func(n *tree) bool { return n.depth == depth-1 })
		deepest = items[i]
	}
	plain, sticky := many(deepest.key.String(), 2000, 1, 2), many(deepest.key.String(), 2000, 1, 2)
	sticky.Affinity = time.Hour
	tr := newTracer(layoutOf(t, sticky))
	tr.to(sticky.Key)
	t.Logf("the tree is %d deep, a service with affinity %d", keys.depth, tr.deep-2)
	if int(keys.depth) != deepestTree {
		t.Errorf("the tree is %d deep, not %d", keys.depth, deepestTree)
	}
	p := h.proxier()
	for _, s := range []*lb.Service{plain, sticky} {
		e.Put(s)
		if err := p.Sync(t.Context(), e.Snapshot(), prune); err != nil {
			t.Fatal(err)
		}
		if got := h.Served(t, s.Key); !sameShares(got, proxiertest.Shares(s)) {
			t.Errorf("%d backends get connections, want %d", len(got), len(s.Usable()))
		}
	}
}
