package vip

import (
	"slices"
	"strings"
	"testing"

	"vipd/lb"
	"vipd/proxier"
)

// clientRanges walks a service through all changes of its ranges. Whoever may come
// in is let in before others are kept out, and the other way round at the end.
func clientRanges(t *testing.T, w *world) {
	d := w.door(t)
	with := func(ranges ...string) lb.Snapshot {
		return services(ranged(svc("192.0.2.10:80/tcp", always, "10.0.0.11:80"), ranges...), svc("192.0.2.10:81/tcp", always, "10.0.0.11:80"))
	}
	const acl, allow = "vipd-acl4 [192.0.2.10,tcp:80]", "vipd-allow4 "
	clean(t, d, with(), prune)
	w.holds(t, []string{"acl", "allow"})
	for _, step := range []struct {
		ranges []string
		writes []string
	}{
		{[]string{"198.51.100.0/24"}, []string{"+ " + allow + "[192.0.2.10,tcp:80,198.51.100.0/24]", "+ " + acl}},
		{[]string{"198.51.100.0/25", "203.0.113.7/32"}, []string{
			"+ " + allow + "[192.0.2.10,tcp:80,198.51.100.0/25 192.0.2.10,tcp:80,203.0.113.7]", "- " + allow + "[192.0.2.10,tcp:80,198.51.100.0/24]"}},
		{nil, []string{"- " + acl, "- " + allow + "[192.0.2.10,tcp:80,198.51.100.0/25 192.0.2.10,tcp:80,203.0.113.7]"}},
		{[]string{"0.0.0.0/0"}, []string{"+ " + allow + "[192.0.2.10,tcp:80,0.0.0.0/1 192.0.2.10,tcp:80,128.0.0.0/1]", "+ " + acl}},
		{[]string{"2001:db8::/32"}, []string{"- " + allow + "[192.0.2.10,tcp:80,0.0.0.0/1 192.0.2.10,tcp:80,128.0.0.0/1]"}}, // nobody
	} {
		w.taken()
		clean(t, d, with(step.ranges...), proxier.How{}) // also while nothing may be removed
		if got := w.taken(); !slices.Equal(got, step.writes) {
			t.Errorf("to %v:\n%s\nwant:\n%s", step.ranges, strings.Join(got, "\n"), strings.Join(step.writes, "\n"))
		}
		w.quiet(t, d, with(step.ranges...))
	}
	clean(t, d, services(svc("192.0.2.10:81/tcp", always, "10.0.0.11:80")), prune)
	w.holds(t, []string{"acl", "allow"})
}

// servedServices: what the rules translate is known to the guard, from after they
// stand until before they go.
func servedServices(t *testing.T, w *world) {
	d := w.door(t)
	idle, busy := svc("192.0.2.10:80/tcp", always), svc("192.0.2.10:80/tcp", always, "10.0.0.11:80")
	other := svc("192.0.2.10:53/udp", always, "10.0.0.11:53")
	const entry = "vipd-served4 [192.0.2.10,tcp:80]"
	draining := svc("192.0.2.10:80/tcp", always, "10.0.0.11:80")
	draining.Backends[0].Draining = true
	for _, step := range []struct {
		want       lb.Snapshot
		shut, open []string
	}{
		{services(idle, other), nil, nil},
		{services(busy, other), nil, []string{"+ " + entry}},
		{services(draining, other), []string{"- " + entry}, nil},
		{services(busy, other), nil, []string{"+ " + entry}},
		{services(idle, other), []string{"- " + entry}, nil},
		{services(busy, other), nil, []string{"+ " + entry}},
		{services(other), []string{"- " + entry}, nil},
	} {
		w.taken()
		fatal(t, d.Shut(t.Context(), step.want, prune))
		shut := onlyOf(w.taken(), "vipd-served4 [192.0.2.10,tcp")
		fatal(t, d.Open(t.Context(), step.want, prune))
		open := onlyOf(w.taken(), "vipd-served4 [192.0.2.10,tcp")
		if !slices.Equal(shut, step.shut) || !slices.Equal(open, step.open) {
			t.Errorf("to %v: shut %v, open %v; want %v and %v", slices.Collect(step.want.All()), shut, open, step.shut, step.open)
		}
		w.quiet(t, d, step.want)
	}
	clean(t, d, services(busy, other), prune)
	clean(t, d, lb.Snapshot{}, proxier.How{}) // nothing may be removed: the rules stay
	w.holds(t, []string{"served"}, "vipd-served4 192.0.2.10,tcp:80", "vipd-served4 192.0.2.10,udp:53")
}

func onlyOf(journal []string, part string) []string {
	return slices.DeleteFunc(journal, func(line string) bool { return !strings.Contains(line, part) })
}

func masqueradeSets(t *testing.T, w *world) {
	w.sh(t, uplink+"\nip addr add 10.0.0.2/16 dev nic0\nip addr add 0.0.0.9/0 dev nic0")
	d := w.door(t)
	list := []*lb.Service{
		svc("192.0.2.1:80/tcp", always, "10.0.0.11:8080"),
		svc("192.0.2.2:80/tcp", never, "10.0.0.11:8080", "10.7.0.1:80"),
		svc("192.0.2.3:80/tcp", never, "10.0.0.11:8080"),
		svc("192.0.2.4:80/udp", auto, "10.0.0.11:8080"),
		svc("192.0.2.5:80/tcp", auto, "10.0.9.9:8080"),
	}
	clean(t, d, services(list...), prune)
	halves := func(key string) []string { return []string{key + ",0.0.0.0/1", key + ",128.0.0.0/1"} }
	want := slices.Concat([]string{
		"vipd-vip4 192.0.2.1", "vipd-vip4 192.0.2.2", "vipd-vip4 192.0.2.3", "vipd-vip4 192.0.2.4", "vipd-vip4 192.0.2.5",
		"vipd-masq4 192.0.2.1,tcp:80",
		"vipd-hair4 10.0.0.11,tcp:8080,10.0.0.11", "vipd-hair4 10.7.0.1,tcp:80,10.7.0.1", "vipd-hair4 10.0.0.11,udp:8080,10.0.0.11",
		"vipd-hair4 10.0.9.9,tcp:8080,10.0.9.9",
		"vipd-auto4 192.0.2.4,udp:80,10.0.0.0/24", "vipd-auto4 192.0.2.4,udp:80,10.0.0.0/16", "vipd-auto4 192.0.2.5,tcp:80,10.0.0.0/16",
	}, halves("vipd-auto4 192.0.2.4,udp:80"), halves("vipd-auto4 192.0.2.5,tcp:80"))
	w.holds(t, []string{"vip", "masq", "hair", "auto"}, want...)

	w.sh(t, "ip addr del 10.0.0.2/16 dev nic0\nip addr del 0.0.0.9/0 dev nic0") // subnets come and go
	clean(t, d, services(list[2:]...), fresh)
	w.holds(t, []string{"vip", "masq", "hair", "auto"}, "vipd-vip4 192.0.2.3", "vipd-vip4 192.0.2.4", "vipd-vip4 192.0.2.5",
		"vipd-hair4 10.0.0.11,tcp:8080,10.0.0.11", "vipd-hair4 10.0.0.11,udp:8080,10.0.0.11", "vipd-hair4 10.0.9.9,tcp:8080,10.0.9.9",
		"vipd-auto4 192.0.2.4,udp:80,10.0.0.0/24")
	w.quiet(t, d, services(list[2:]...))
}
