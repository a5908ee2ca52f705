package main

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
)

// count returns how many lines of a script begin so.
func count(script []byte, begin string) (n int) {
	for line := range bytes.Lines(script) {
		if bytes.HasPrefix(line, []byte(begin)) {
			n++
		}
	}
	return n
}

func TestLinearLayoutHasTheShapeOfKubeProxy(t *testing.T) {
	services := newCatalog(30).services
	whole := kubeWhole(services)
	for begin, want := range map[string]int{
		":KUBE-SERVICES ": 1, ":KUBE-SVC-": 30, ":KUBE-SEP-": 300,
		"-A KUBE-SERVICES ": 30, "-A KUBE-SVC-": 30 * 11, "-A KUBE-SEP-": 600, "COMMIT": 1,
	} {
		if got := count(whole, begin); got != want {
			t.Errorf("%d lines begin with %q, want %d", got, begin, want)
		}
	}
	for _, want := range []string{
		"-A KUBE-SERVICES -m comment --comment \"bench/service-00003:http cluster IP\" -m tcp -p tcp -d 10.200.0.4 --dport 80 -j KUBE-SVC-",
		"-m comment --comment \"bench/service-00003:http -> 10.64.0.30:8080\" -m statistic --mode random --probability 0.1000000000 -j KUBE-SEP-",
		"-m comment --comment bench/service-00003:http -s 10.64.0.30 -j KUBE-MARK-MASQ\n",
		"-m comment --comment bench/service-00003:http -m tcp -p tcp -j DNAT --to-destination 10.64.0.30:8080\n",
	} {
		if !bytes.Contains(whole, []byte(want)) {
			t.Errorf("nowhere: %s", want)
		}
	}
	for line := range strings.Lines(string(whole)) {
		if name, ok := strings.CutPrefix(line, ":"); ok && len(strings.Fields(name)[0]) > 28 {
			t.Errorf("the name of a chain is too long: %s", line)
		}
	}
}

// TestPiecesAreTheWhole shows that the list that is loaded in pieces leads every
// packet to the chain to which that of kube-proxy leads it, past as many rules.
func TestPiecesAreTheWhole(t *testing.T) {
	services := newCatalog(100).services
	whole, err := readRules(bytes.NewReader(kubeWhole(services)))
	if err != nil {
		t.Fatal(err)
	}
	pieces := kubePieces(services, 45)
	if len(pieces) != 3 {
		t.Errorf("%d pieces, want 3", len(pieces))
	}
	parts, err := readRules(bytes.NewReader(bytes.Join(pieces, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if whole.rules != parts.rules || len(parts.chains) != len(whole.chains) {
		t.Errorf("%d rules in %d chains, want %d in %d", parts.rules, len(parts.chains), whole.rules, len(whole.chains))
	}
	for i := range services {
		to := netip.AddrPortFrom(vipOf(i), servicePort)
		for _, set := range []ruleset{whole, parts} {
			if rules, _, err := set.way("KUBE-SERVICES", to); rules != i+1 || err != nil {
				t.Errorf("service %d is found after %d rules (%v), want %d", i, rules, err, i+1)
			}
		}
	}
}

func TestAChangeWritesTheListAndOneService(t *testing.T) {
	c := newCatalog(30)
	before := c.services
	script := kubeChange(c.services, c.replace(7))
	for begin, want := range map[string]int{
		":KUBE-SERVICES ": 1, ":KUBE-SVC-": 1, ":KUBE-SEP-": 10,
		"-A KUBE-SERVICES ": 30, "-A KUBE-SVC-": 11, "-A KUBE-SEP-": 20, "COMMIT": 1,
	} {
		if got := count(script, begin); got != want {
			t.Errorf("%d lines begin with %q, want %d", got, begin, want)
		}
	}
	if before[7].Equal(c.services[7]) {
		t.Error("nothing was replaced, or the list from before was changed")
	}
	if got := count(kubeChange(c.services, nil), ":KUBE-"); got != 1 {
		t.Errorf("%d chains are declared for a service that went, want the list alone", got)
	}
}

func TestCatalogChangesOneThing(t *testing.T) {
	c := newCatalog(20)
	first := c.services
	for i, s := range c.again() {
		if s == first[i] || !s.Equal(first[i]) {
			t.Fatalf("service %d is the same pointer, or not equal", i)
		}
	}
	added := c.add()
	if len(c.services) != 21 || c.services[20] != added || len(first) != 20 {
		t.Error("add")
	}
	if c.remove() != added || len(c.services) != 20 {
		t.Error("remove")
	}
	seen := map[string]bool{}
	for _, s := range c.services {
		if s.Normalize() != nil || len(s.Backends) != backendsPerService || !vipNet.Contains(s.Key.Addr) {
			t.Errorf("%+v", s)
		}
		for _, b := range s.Backends {
			if seen[b.Addr.String()] || !backendNet.Contains(b.Addr.Addr()) {
				t.Errorf("backend %s", b.Addr)
			}
			seen[b.Addr.String()] = true
		}
	}
	if last := nth(backendNet, spare+1<<20).String(); !backendNet.Contains(netip.MustParseAddr(last)) || maxServices*backendsPerService > spare {
		t.Errorf("fresh backends run out of %s at %s", backendNet, last)
	}
}
