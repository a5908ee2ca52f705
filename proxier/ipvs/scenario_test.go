package ipvs

import (
	"context"
	"errors"
	"testing"

	vs "vipd/internal/ipvs"
	"vipd/lb"
	"vipd/proxier"
)

// What exists is changed in place, in one command for each object that differs.
func TestB34_B38_B40_B41_B55_ChangesAreMadeInPlace(t *testing.T) {
	h := newHarness(vs.NewFake())
	p := h.proxier()
	for _, step := range []struct {
		name    string
		service string
		want    string
	}{
		{"comes", "192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*2",
			"-A -t 192.0.2.1:80 -s wrr; -a -t 192.0.2.1:80 -r 10.0.0.1:80 -m -w 1; -a -t 192.0.2.1:80 -r 10.0.0.2:80 -m -w 2"},
		{"scheduler", "192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*2 scheduler=mh", "-E -t 192.0.2.1:80 -s mh"},
		{"flags", "192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*2 scheduler=mh port fallback", "-E -t 192.0.2.1:80 -s mh -b mh-fallback,mh-port"},
		{"affinity", "192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*2 affinity=90s", "-E -t 192.0.2.1:80 -s wrr -p 90"},
		{"no affinity", "192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*2", "-E -t 192.0.2.1:80 -s wrr"},
		{"weight", "192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*5", "-e -t 192.0.2.1:80 -r 10.0.0.2:80 -m -w 5"},
		{"drains", "192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*draining", "-e -t 192.0.2.1:80 -r 10.0.0.2:80 -m -w 0"},
		{"comes back", "192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*5", "-e -t 192.0.2.1:80 -r 10.0.0.2:80 -m -w 5"},
		{"weight 0", "192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*0", "-e -t 192.0.2.1:80 -r 10.0.0.2:80 -m -w 0"},
		{"goes", "192.0.2.1:80 10.0.0.1:80", "-d -t 192.0.2.1:80 -r 10.0.0.2:80"},
		{"replaced: the new one first", "192.0.2.1:80 10.0.0.9:80", "-a -t 192.0.2.1:80 -r 10.0.0.9:80 -m -w 1; -d -t 192.0.2.1:80 -r 10.0.0.1:80"},
		{"all at once", "192.0.2.1:80 10.0.0.8:80 10.0.0.9:80*2 scheduler=sh port",
			"-E -t 192.0.2.1:80 -s sh -b sh-port; -a -t 192.0.2.1:80 -r 10.0.0.8:80 -m -w 1; -e -t 192.0.2.1:80 -r 10.0.0.9:80 -m -w 2"},
		{"direct routing", "192.0.2.1:80 10.0.0.8:80 10.0.0.9:80*2 scheduler=sh port dr",
			"-e -t 192.0.2.1:80 -r 10.0.0.8:80 -g -w 1; -e -t 192.0.2.1:80 -r 10.0.0.9:80 -g -w 2"},
		{"tunnel", "192.0.2.1:80 10.0.0.8:80 scheduler=sh port tunnel",
			"-e -t 192.0.2.1:80 -r 10.0.0.8:80 -i -w 1; -d -t 192.0.2.1:80 -r 10.0.0.9:80"},
		{"gue", "192.0.2.1:80 10.0.0.8:80 scheduler=sh port gue", "-e -t 192.0.2.1:80 -r 10.0.0.8:80 -i -w 1 --tun-type gue --tun-port 6080"},
		{"no backend", "192.0.2.1:80", "-D -t 192.0.2.1:80"},
		{"one again", "192.0.2.1:80 10.0.0.1:80", "-A -t 192.0.2.1:80 -s wrr; -a -t 192.0.2.1:80 -r 10.0.0.1:80 -m -w 1"},
	} {
		want := lb.NewSnapshot(svc(step.service), svc("192.0.2.2:53/udp 10.0.0.3:53"))
		if step.name == "comes" {
			want = lb.NewSnapshot(svc(step.service))
		}
		plan, err := p.Plan(t.Context(), want, prune)
		if err != nil {
			t.Fatal(err)
		}
		h.did(false)
		if err := p.Sync(t.Context(), want, prune); err != nil {
			t.Fatal(err)
		}
		planned := spell(plan)
		did := h.did(false)
		if planned != did {
			t.Errorf("%s: did\n%s\nand planned\n%s", step.name, did, planned)
		}
		const other = "; -a -u 192.0.2.2:53 -r 10.0.0.3:53 -m -w 1"
		if step.name == "scheduler" { // the other one comes with this step
			step.want = "-E -t 192.0.2.1:80 -s mh; -A -u 192.0.2.2:53 -s wrr" + other
		}
		if did != step.want {
			t.Errorf("%s: did\n%s\nwant\n%s", step.name, did, step.want)
		}
	}
}

func spell(plan []proxier.Change) (text string) {
	for i, c := range plan {
		if i > 0 {
			text += "; "
		}
		text += c.Detail
	}
	return text
}

// A flow of UDP or SCTP stays with its destination until that is gone.
func TestB38_B39_UnusableBackendsOfUDPAndSCTPGoAtOnce(t *testing.T) {
	for _, k := range []string{"192.0.2.1:53/udp", "192.0.2.1:53/sctp", "[2001:db8::1]:53/udp"} {
		h := newHarness(vs.NewFake())
		p := h.proxier()
		a, b := "10.0.0.1:53", "10.0.0.2:53"
		if svc(k).Key.Addr.Is6() {
			a, b = "[fd00::1]:53", "[fd00::2]:53"
		}
		address := vs.Command{Op: vs.DeleteServer, Server: vs.Server{Key: svc(k).Key}}.String()[len("-D "):]
		h.sync(t, p, prune, services(k+" "+a+" "+b))
		for _, step := range []struct{ service, want string }{
			{a + " " + b + "*draining", "-d " + address + " -r " + b},
			{a + " " + b, "-a " + address + " -r " + b + " -m -w 1"},
			{a + "*0 " + b, "-d " + address + " -r " + a},
			{a + "*0 " + b + "*draining", "-D " + address},
		} {
			if got := h.sync(t, p, prune, services(k+" "+step.service)); got != step.want {
				t.Errorf("%s %s: did %s, want %s", k, step.service, got, step.want)
			}
		}
	}
}

// While nothing may be removed a destination that is not listed gets nothing new, and
// goes, with its flows, when something may.
func TestB53_GateKeepsDestinations(t *testing.T) {
	h := newHarness(vs.NewFake())
	h.sync(t, h.proxier(), prune, services("192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*2", "192.0.2.2:80 10.0.0.1:80", "192.0.2.3:80 10.0.0.1:80"))
	p := h.proxier()
	h.evictor.asked()
	now := services("192.0.2.1:80 10.0.0.1:80", "192.0.2.3:80")
	for i, step := range []struct {
		how        proxier.How
		want, asks string
	}{
		{gated, "-e -t 192.0.2.1:80 -r 10.0.0.2:80 -m -w 0; -e -t 192.0.2.3:80 -r 10.0.0.1:80 -m -w 0", ""},
		{gated, "", ""},
		{proxier.How{Fresh: true}, "", ""},
		{prune, "-d -t 192.0.2.1:80 -r 10.0.0.2:80; -D -t 192.0.2.2:80; -D -t 192.0.2.3:80",
			"end 192.0.2.1:80/tcp>10.0.0.2:80; end 192.0.2.2:80/tcp>10.0.0.1:80; end 192.0.2.3:80/tcp>10.0.0.1:80; " +
				"note 192.0.2.1:80/tcp>10.0.0.2:80; note 192.0.2.2:80/tcp>10.0.0.1:80; note 192.0.2.3:80/tcp>10.0.0.1:80"},
		{fresh, "", ""},
	} {
		if got := h.sync(t, p, step.how, now); got != step.want {
			t.Errorf("pass %d did\n%s\nwant\n%s", i, got, step.want)
		}
		if got := h.evictor.asked(); got != step.asks {
			t.Errorf("pass %d asked for %q, want %q", i, got, step.asks)
		}
	}
}

// A memory that is behind the kernel costs no service: it is read again, alone.
func TestF103_ChangeOfAServiceThatSomebodyDeleted(t *testing.T) {
	for name, harm := range map[string][]vs.Command{
		"its virtual server": {{Op: vs.DeleteServer, Server: serverOf(svc("192.0.2.1:80"))}},
		"a destination":      {{Op: vs.DeleteDestination, Server: serverOf(svc("192.0.2.1:80")), Destination: vs.Destination{Addr: backend("10.0.0.1:80").Addr}}},
		"one that is to come": {{Op: vs.AddDestination, Server: serverOf(svc("192.0.2.1:80")),
			Destination: vs.Destination{Addr: backend("10.0.0.3:80").Addr, Weight: 7}}},
	} {
		h := newHarness(vs.NewFake())
		p := h.proxier()
		h.sync(t, p, prune, services("192.0.2.1:80 10.0.0.1:80 10.0.0.2:80", "192.0.2.2:80 10.0.0.1:80"))
		h.foreign(t, harm...)
		dumps := h.kernel.dumps
		now := services("192.0.2.1:80 10.0.0.1:80*9 10.0.0.3:80*9", "192.0.2.2:80 10.0.0.1:80")
		h.sync(t, p, prune, now)
		if h.kernel.dumps != dumps {
			t.Errorf("%s is gone: everything was read", name)
		}
		if got := h.sync(t, p, fresh, now); got != "" {
			t.Errorf("%s is gone: left to be done: %s", name, got)
		}
	}
}

// A line that breaks off after a command took effect leaves nothing behind.
func TestLineThatBreaksOff(t *testing.T) {
	h := newHarness(vs.NewFake())
	p := h.proxier()
	want := services("192.0.2.1:80 10.0.0.1:80 10.0.0.2:80", "192.0.2.2:80 10.0.0.1:80")
	for broken := range 5 {
		n := broken
		h.kernel.after = func(vs.Command) error {
			if n--; n == -1 {
				return errors.New("broken off by the test")
			}
			return nil
		}
		h.sync(t, p, prune, want)
		h.kernel.after = nil
		if got := h.sync(t, p, fresh, want); got != "" {
			t.Errorf("broken off at command %d: left to be done: %s", broken, got)
		}
		h.sync(t, p, prune, nil)
	}
}

// A pass that is stopped in the middle is made up for.
func TestPassThatIsStopped(t *testing.T) {
	h := newHarness(vs.NewFake())
	p := h.proxier()
	want := services("192.0.2.1:80 10.0.0.1:80 10.0.0.2:80", "192.0.2.2:80 10.0.0.1:80")
	for n := range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		h.kernel.after = func(vs.Command) error {
			if n--; n < 0 {
				cancel()
			}
			return nil
		}
		if err := p.Sync(ctx, lb.NewSnapshot(want...), prune); !errors.Is(err, context.Canceled) {
			t.Errorf("Sync: %v", err)
		}
		h.kernel.after = nil
		h.sync(t, p, prune, want)
		if got := h.sync(t, p, fresh, want); got != "" {
			t.Errorf("left to be done: %s", got)
		}
		h.sync(t, p, prune, nil)
		cancel()
	}
}

// Without IPVS nothing is any service's fault, and when it is there again all is made.
func TestF92_IPVSGoesAndComes(t *testing.T) {
	fake := vs.NewFake()
	h := newHarness(fake)
	p := h.proxier()
	want := lb.NewSnapshot(services("192.0.2.1:80 10.0.0.1:80")...)
	if err := p.Sync(t.Context(), want, prune); err != nil {
		t.Fatal(err)
	}
	fake.Clear()
	gone := func(vs.Command) error { return vs.ErrUnsupported }
	fake.FailRead = func() error { return vs.ErrUnsupported }
	h.kernel.before = gone
	e := want.Edit()
	e.Put(svc("192.0.2.1:80 10.0.0.2:80"))
	for _, how := range []proxier.How{prune, prune, fresh} {
		err := p.Sync(t.Context(), e.Snapshot(), how)
		if _, only := proxier.FailedServices(err); !errors.Is(err, vs.ErrUnsupported) || only {
			t.Errorf("Sync %+v: %v", how, err)
		}
	}
	h.kernel.before, fake.FailRead = nil, nil
	if got := h.sync(t, p, prune, services("192.0.2.1:80 10.0.0.2:80")); got != "-A -t 192.0.2.1:80 -s wrr; -a -t 192.0.2.1:80 -r 10.0.0.2:80 -m -w 1" {
		t.Errorf("did %s", got)
	}
}

// The messages are counted: a change of nothing none, a change of one object one, a
// comparison of everything one dump and one for each virtual server of ours.
func TestB54_B55_B64_NetlinkMessages(t *testing.T) {
	fake := vs.NewFake()
	h := newHarness(fake)
	p := h.proxier()
	h.foreign(t, vs.Command{Op: vs.AddServer, Server: serverOf(svc("198.51.100.1:80"))})
	all := services("192.0.2.1:80 10.0.0.1:80", "192.0.2.2:80 10.0.0.1:80 10.0.0.2:80", "192.0.2.3:80", "[2001:db8::1]:80 [fd00::1]:80")
	h.sync(t, p, prune, all)
	all[0] = svc("192.0.2.1:80 10.0.0.1:80*2")
	for _, step := range []struct {
		what string
		p    *Proxier
		how  proxier.How
		want uint64
	}{
		{"one weight", p, prune, 1}, {"nothing", p, prune, 0}, {"nothing, gated", p, gated, 0},
		{"everything is compared", p, fresh, 1 + 3}, {"restart", h.proxier(), prune, 1 + 3},
	} {
		before := fake.Messages()
		h.sync(t, step.p, step.how, all)
		if got := fake.Messages() - before; got != step.want {
			t.Errorf("%s: %d messages, want %d", step.what, got, step.want)
		}
	}
}
