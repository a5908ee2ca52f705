package vip

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"vipd/lb"
	"vipd/proxier"
)

// randomService is one of a few hundred services that share VIPs and backends.
func randomService(r *rand.Rand) *lb.Service {
	s := randomBackends(r)
	s.Mode = []lb.Mode{lb.IPTables, lb.IPVS}[r.IntN(2)]
	if s.Mode == lb.IPVS {
		s.Forward = []lb.Forward{lb.ForwardNAT, lb.ForwardDR}[r.IntN(2)]
	}
	for range r.IntN(4) - 1 {
		s = ranged(s, fmt.Sprintf("10.%d.0.0/%d", r.IntN(3), 14+r.IntN(3)), fmt.Sprintf("fd00:%d::/%d", r.IntN(3), 1+r.IntN(40)))
	}
	return s
}

func randomBackends(r *rand.Rand) *lb.Service {
	masq := []lb.Masquerade{always, never, auto}[r.IntN(3)]
	port, proto := 80+r.IntN(3), []string{"tcp", "udp"}[r.IntN(2)]
	n := r.IntN(3)
	if r.IntN(3) == 0 {
		s := svc(fmt.Sprintf("[2001:db8::%x]:%d/%s", 1+r.IntN(6), port, proto), masq)
		for i := range n {
			s.Backends = append(s.Backends, backendAt(fmt.Sprintf("[fd00:2::%x]:80", 1+i+r.IntN(2)*8)))
		}
		return s
	}
	s := svc(fmt.Sprintf("192.0.2.%d:%d/%s", 1+r.IntN(8), port, proto), masq)
	for i := range n {
		s.Backends = append(s.Backends, backendAt(fmt.Sprintf("10.%d.0.%d:80", r.IntN(2), 1+i)))
	}
	slices.SortFunc(s.Backends, func(a, b lb.Backend) int { return a.Addr.Compare(b.Addr) })
	s.Backends = slices.CompactFunc(s.Backends, func(a, b lb.Backend) bool { return a.Addr == b.Addr })
	return s
}

// walk changes services at random, with restarts and damage by others in
// between, and ends in a host equal to one that was given the last services only.
// disturb makes failures of the kernel, at random, or ends them when it is given
// nil; it may be nil itself.
func walk(t *testing.T, w *world, r *rand.Rand, steps int, disturb func(*rand.Rand)) {
	host := uplink + "\nip addr add fd00:2::1/64 dev nic0\nip addr add 192.0.2.8/32 dev nic0" // so one VIP is refused
	w.sh(t, host)
	d := w.door(t, atInput)
	want := lb.Snapshot{}
	for range steps {
		edit := want.Edit()
		for range r.IntN(4) {
			edit.Put(randomService(r))
		}
		for s := range want.All() {
			if r.IntN(5) == 0 || want.Len() > 20 && r.IntN(2) == 0 {
				edit.Delete(s.Key)
			}
		}
		want = edit.Snapshot()
		how := proxier.How{Prune: r.IntN(5) > 0, Fresh: r.IntN(4) == 0}
		switch r.IntN(6) {
		case 0:
			d = w.door(t, func(o *Options) { o.Input = r.IntN(4) > 0 })
		case 1:
			damage(t, w, r)
		}
		if disturb != nil {
			disturb(r)
		}
		_, err := tryPass(t.Context(), d, want, how)
		if err != nil && disturb == nil {
			t.Fatal(err)
		}
		if disturb != nil {
			disturb(nil)
		}
		guarded(t, w)
	}
	d = w.door(t, atInput)
	onePass(t, d, want, fresh)
	model := newFakeWorld()
	model.sh(t, host)
	onePass(t, model.door(t, atInput), want, prune)
	same(t, w.dump(t), model.dump(t))
	w.taken()
	onePass(t, d, want, fresh)
	onePass(t, w.door(t, atInput), want, prune)
	if wrote := w.taken(); len(wrote) > 0 {
		t.Fatalf("the second pass wrote:\n%s", strings.Join(wrote, "\n"))
	}
}

// damage does what somebody else could do.
func damage(t *testing.T, w *world, r *rand.Rand) {
	t.Helper()
	dump := w.dump(t)
	there := func(line string) bool {
		return slices.ContainsFunc(dump, func(l string) bool { return strings.HasPrefix(l, line) })
	}
	for _, d := range []struct{ needs, command string }{
		{"device vipd0", "ip link del vipd0"}, {"device vipd0", "ip link set vipd0 down"}, {"device vipd0", "ip addr flush dev vipd0"},
		{"jump IPv4 filter INPUT", "iptables -t filter -D INPUT 1"}, {"chain IPv6 nat VIPD-POST", "ip6tables -t nat -F VIPD-POST"},
		{"set vipd-masq4", "ipset flush vipd-masq4"},
		{"set vipd-acl4", "ipset flush vipd-acl4"}, {"set vipd-allow6", "ipset flush vipd-allow6"}, {"set vipd-served4", "ipset flush vipd-served4"},
		{"set vipd-open4", "ipset flush vipd-open4"}, {"set vipd-direct6", "ipset flush vipd-direct6"}, {"chain IPv4 mangle VIPD-LIN", "iptables -t mangle -D INPUT 1"},
		{"chain IPv4 mangle VIPD-PRE", "iptables -t mangle -F VIPD-PRE"}, {"set vipd-hair6", "ipset flush vipd-hair6"},
	} {
		if r.IntN(3) == 0 && there(d.needs) {
			w.sh(t, d.command)
			return
		}
	}
}

// guarded checks that no VIP is up that the guard does not know.
func guarded(t *testing.T, w *world) {
	t.Helper()
	dump := w.dump(t)
	for _, line := range dump {
		words := strings.Fields(line)
		if words[0] != "address" || words[3] != "vipd0" {
			continue
		}
		a, _, _ := strings.Cut(words[1], "/")
		set := "vipd-vip4"
		if strings.Contains(a, ":") {
			set = "vipd-vip6"
		}
		if !slices.Contains(dump, "entry "+set+" "+a) {
			t.Fatalf("%s is up without its guard", a)
		}
	}
}

func TestB63_RandomWalkOnTheFakeHost(t *testing.T) {
	for seed := range uint64(15) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			walk(t, newFakeWorld(), rand.New(rand.NewPCG(seed, 0)), 40, nil)
		})
	}
}

// The same walk with failures of every kind of call injected.
func TestB58_RandomWalkWithFailures(t *testing.T) {
	for seed := range uint64(15) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newFakeWorld()
			walk(t, w, rand.New(rand.NewPCG(seed, 1)), 40, func(r *rand.Rand) {
				fail := func(string) error { return nil }
				if r != nil && r.IntN(3) == 0 {
					after := r.IntN(12)
					fail = func(op string) error {
						if after--; after == 0 {
							return fmt.Errorf("injected failure of %s", op)
						}
						return nil
					}
				}
				host := w.fake
				host.links.fail, host.tables[0].fail, host.tables[1].fail = fail, fail, fail
				host.sets.Fail = func(op, _ string) error { return fail(op) }
			})
		})
	}
}
