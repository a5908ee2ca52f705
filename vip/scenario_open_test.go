package vip

import (
	"slices"
	"strings"
	"testing"

	"vipd/lb"
	"vipd/proxier"
)

// atInput is a host with a mode that takes packets at INPUT.
func atInput(o *Options) { o.Input = true }

// byIPVS gives a service to the mode ipvs.
func byIPVS(s *lb.Service, forward lb.Forward) *lb.Service {
	c := *s
	c.Mode, c.Forward = lb.IPVS, forward
	return &c
}

// drained is the service with all its backends draining.
func drained(s *lb.Service) *lb.Service {
	c := *s
	c.Backends = slices.Clone(s.Backends)
	for i := range c.Backends {
		c.Backends[i].Draining = true
	}
	return &c
}

// step is what Shut and Open write of some sets on the way to a snapshot.
type step struct {
	want       lb.Snapshot
	shut, open []string
}

// walkSteps makes the steps and looks at the writes that have part in them.
func walkSteps(t *testing.T, w *world, d *Door, part string, steps []step) {
	t.Helper()
	for i, s := range steps {
		w.taken()
		fatal(t, d.Shut(t.Context(), s.want, prune))
		shut := onlyOf(w.taken(), part)
		fatal(t, d.Open(t.Context(), s.want, prune))
		open := onlyOf(w.taken(), part)
		if !slices.Equal(shut, s.shut) || !slices.Equal(open, s.open) {
			t.Errorf("step %d: shut %q, open %q; want %q and %q", i, shut, open, s.shut, s.open)
		}
		w.quiet(t, d, s.want)
	}
}

// openServices: a service that takes its packets at INPUT is open from after its
// virtual server stands until before that loses its last usable backend.
func openServices(t *testing.T, w *world) {
	d := w.door(t, atInput)
	busy := byIPVS(svc("192.0.2.10:80/tcp", always, "10.0.0.11:80"), lb.ForwardNAT)
	idle := byIPVS(svc("192.0.2.10:80/tcp", always), lb.ForwardNAT)
	other := svc("192.0.2.10:53/udp", always, "10.0.0.11:53")
	add, remove := []string{"+ vipd-open4 [192.0.2.10,tcp:80]"}, []string{"- vipd-open4 [192.0.2.10,tcp:80]"}
	walkSteps(t, w, d, "n4 [192.0.2.10,tcp", []step{
		{services(idle, other), nil, nil},
		{services(busy, other), nil, add},
		{services(drained(busy), other), remove, nil},
		{services(busy, other), nil, add},
		{services(idle, other), remove, nil},
		{services(busy, other), nil, add},
		{services(other), remove, nil},
	})
	clean(t, d, services(busy, other), prune)
	w.holds(t, []string{"served", "open", "direct", "masq"}, "vipd-open4 192.0.2.10,tcp:80", "vipd-served4 192.0.2.10,udp:53",
		"vipd-masq4 192.0.2.10,tcp:80", "vipd-masq4 192.0.2.10,udp:53")
	w.has(t, "jump", "IPv4 mangle PREROUTING 0 VIPD-PRE", "IPv4 mangle INPUT 0 VIPD-LIN", "IPv4 mangle OUTPUT 0 VIPD-LIN", "IPv4 mangle OUTPUT 1 VIPD-LOUT", "IPv4 mangle OUTPUT 2 VIPD-LOUT",
		"IPv4 filter INPUT 0 VIPD-IN", "IPv4 filter FORWARD 0 VIPD-FWD", "IPv4 nat POSTROUTING 0 VIPD-POST")
	clean(t, d, lb.Snapshot{}, proxier.How{}) // nothing may be removed: the virtual servers stay
	w.holds(t, []string{"open"}, "vipd-open4 192.0.2.10,tcp:80")
	w.sh(t, "ipset flush vipd-open4")
	clean(t, d, services(busy, other), fresh)
	w.holds(t, []string{"open"}, "vipd-open4 192.0.2.10,tcp:80")
	clean(t, d, lb.Snapshot{}, prune)
	w.has(t, "set")
	w.has(t, "chain")
}

// movingServices: a service that moves between modes is let by both from Shut to
// Open, so that there is no moment in which the guard refuses it.
func movingServices(t *testing.T, w *world) {
	d := w.door(t, atInput)
	translated := svc("192.0.2.10:80/tcp", always, "10.0.0.11:80")
	taken := byIPVS(translated, lb.ForwardNAT)
	const open, served = "vipd-open4 [192.0.2.10,tcp:80]", "vipd-served4 [192.0.2.10,tcp:80]"
	walkSteps(t, w, d, "[192.0.2.10,tcp", []step{
		{services(translated), []string{"+ vipd-masq4 [192.0.2.10,tcp:80]"}, []string{"+ " + served}},
		{services(taken), nil, []string{"+ " + open, "- " + served}},
		{services(translated), nil, []string{"+ " + served, "- " + open}},
		{services(drained(taken)), []string{"- " + served}, nil},
		{services(), nil, []string{"- vipd-masq4 [192.0.2.10,tcp:80]"}},
	})
}

// directServices: what is answered past this host is known to the guard for as long
// as it has a backend, draining or not, and never masqueraded.
func directServices(t *testing.T, w *world) {
	w.sh(t, uplink)
	d := w.door(t, atInput)
	for _, forward := range []lb.Forward{lb.ForwardDR, lb.ForwardTunnel} {
		for _, masq := range []lb.Masquerade{always, never, auto} {
			s := byIPVS(svc("192.0.2.10:80/tcp", masq, "10.0.0.11:80"), forward)
			const open, direct = "vipd-open4 192.0.2.10,tcp:80", "vipd-direct4 192.0.2.10,tcp:80"
			for _, c := range []struct {
				s    *lb.Service
				held []string
			}{{s, []string{open, direct}}, {drained(s), []string{direct}}, {byIPVS(svc("192.0.2.10:80/tcp", masq), forward), nil}} {
				clean(t, d, services(c.s), prune)
				w.holds(t, []string{"masq", "auto", "hair", "be", "served", "open", "direct"}, c.held...)
				w.quiet(t, d, services(c.s))
			}
		}
	}
}

// arrivalComesAndGoes: a host that gets or loses the mode that takes packets at INPUT
// has afterwards what it would have had all the time.
func arrivalComesAndGoes(t *testing.T, w *world) {
	want := services(svc("192.0.2.10:80/tcp", always, "10.0.0.11:80"), svc("[2001:db8::10]:53/udp", never, "[fd00::11]:53"),
		byIPVS(svc("192.0.2.11:80/tcp", always, "10.0.0.11:80"), lb.ForwardNAT), byIPVS(svc("192.0.2.12:80/tcp", always, "10.0.0.11:80"), lb.ForwardDR))
	clean(t, w.door(t), want, prune)
	without := w.dump(t)
	for _, line := range without {
		if strings.Contains(line, "open") || strings.Contains(line, "direct") || strings.Contains(line, chainArrival) || strings.Contains(line, chainSilence) {
			t.Errorf("a host without such a mode has %s", line)
		}
	}
	d := w.door(t, atInput)
	clean(t, d, want, prune)
	with := w.dump(t)
	w.quiet(t, d, want)
	d = w.door(t)
	clean(t, d, want, prune)
	same(t, w.dump(t), without)
	w.quiet(t, d, want)
	clean(t, w.door(t, atInput), want, prune)
	same(t, w.dump(t), with)
	clean(t, w.door(t), lb.Snapshot{}, prune) // nothing is wanted by the one that has no use for it
	for _, kind := range []string{"set", "chain", "jump"} {
		w.has(t, kind)
	}
	clean(t, w.door(t, atInput), want, prune)
	fatal(t, Cleanup(t.Context(), Options{kernel: w.recording()}))
	for _, kind := range []string{"set", "chain", "jump"} {
		w.has(t, kind)
	}
}

// Virtual servers stand before a VIP:port is open, and what decides on masquerade
// and ranges before that.
func TestB30_OrderOfWritesAtInput(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t, atInput)
	want := services(byIPVS(svc("192.0.2.10:80/tcp", always, "10.0.0.11:80"), lb.ForwardNAT),
		ranged(byIPVS(svc("192.0.2.10:81/tcp", always, "10.0.0.11:81"), lb.ForwardDR), "198.51.100.0/24"))
	steps := func(want lb.Snapshot) []string {
		fatal(t, d.Shut(t.Context(), want, prune))
		w.note("the virtual servers")
		fatal(t, d.Open(t.Context(), want, prune))
		return slices.DeleteFunc(w.taken(), func(line string) bool {
			return strings.HasPrefix(line, "create") || strings.HasPrefix(line, "destroy") || line == "enable" || line == "remove"
		})
	}
	const web, raw = "192.0.2.10,tcp:80", "192.0.2.10,tcp:81"
	for _, c := range []struct {
		name      string
		got, want []string
	}{
		{"up", steps(want), []string{
			"+ vipd-masq4 [" + web + "]", "+ vipd-be4 [10.0.0.11,tcp:80]", "+ vipd-allow4 [" + raw + ",198.51.100.0/24]", "+ vipd-acl4 [" + raw + "]",
			"commit IPv4 mangle", "commit IPv4 filter", "commit IPv4 nat", "anchor IPv4",
			"the virtual servers", "+ vipd-open4 [" + web + " " + raw + "]", "+ vipd-direct4 [" + raw + "]", "+ vipd-vip4 [192.0.2.10]", "+ address [192.0.2.10]",
		}},
		{"down", steps(lb.Snapshot{}), []string{
			"- vipd-open4 [" + web + " " + raw + "]", "- vipd-direct4 [" + raw + "]", "- address [192.0.2.10]", "- vipd-vip4 [192.0.2.10]", "the virtual servers",
			"- vipd-acl4 [" + raw + "]", "- vipd-allow4 [" + raw + ",198.51.100.0/24]", "- vipd-be4 [10.0.0.11,tcp:80]", "- vipd-masq4 [" + web + "]",
			"commit IPv4 mangle", "commit IPv4 filter", "commit IPv4 nat", "remove anchor IPv4",
		}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s:\n%s\nwant:\n%s", c.name, strings.Join(c.got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

// Somebody who empties a set that lets packets in is found out, and a set that is not
// there because no mode needs it is not missed.
func TestSetsOfInputAreWatched(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		harm   string
		told   []string
	}{
		"emptied":    {atInput, "ipset flush vipd-open4", []string{"set vipd-open4 (0 entries in place of 1)"}},
		"not needed": {func(*Options) {}, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFakeWorld()
			d := w.door(t, c.change)
			clean(t, d, services(byIPVS(svc("192.0.2.10:80/tcp", always, "10.0.0.11:80"), lb.ForwardNAT)), prune)
			w.sh(t, c.harm)
			told, err := d.lookAtSets(t.Context())
			if err != nil || !slices.Equal(told, c.told) {
				t.Errorf("told %q, %v; want %q", told, err, c.told)
			}
		})
	}
}
