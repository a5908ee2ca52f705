//go:build kernel

package e2e

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/iptables"
	"vipd/vip"
)

// arrival is the world of a VIP that comes while a client asks for it all the time
// and a daemon of the host listens on every address. Before the VIP is there the
// client hears nothing. From then on it may hear a backend only: no refusal, and
// never the daemon of the host.
type arrival struct {
	*world
	backend *loss.Server
	load    *loss.Load
}

func newArrival(t *testing.T) *arrival {
	t.Helper()
	a := &arrival{world: newWorld(t, 1)}
	a.backend = a.serveAll(8080, 8081)[0]
	a.listen(a.LB, "host", wildcards(80), wildcards(80))
	// Without the VIP, silence.
	a.LB.Run(t, "ip", "route", "add", "blackhole", kerneltest.VIPNet4)
	a.LB.Run(t, "ip", "route", "add", "blackhole", kerneltest.VIPNet6)
	return a
}

// hammer starts the traffic.
func (a *arrival) hammer() {
	a.load = loss.Start(a.t.Context(), loss.Options{In: a.Client.Do, Deadline: 400 * time.Millisecond})
	a.load.Forbid("host")
	for i, target := range targets(80) {
		a.load.Connect(loss.Connections{Target: target, Rate: fewer(rate / 2)})
		a.load.Send(loss.Flows{Target: target, Count: 10, Every: 20 * time.Millisecond, Port: uint16(7000 + 10*i)})
	}
}

// early returns how much heard what it must not have heard so far.
func (a *arrival) early() int {
	r := a.load.Report()
	return r.Connections.Classes[loss.Refused] + r.Connections.Classes[loss.Wrong] + r.Connections.Classes[loss.Reset] +
		r.Datagrams.Classes[loss.Refused] + r.Datagrams.Classes[loss.Wrong]
}

// answered waits until both VIPs are answered.
func (a *arrival) answered() {
	a.t.Helper()
	for _, target := range targets(80) {
		a.eventually("the VIP is answered", func() bool {
			_, err := loss.Request{In: a.Client.Do, Network: "tcp", Target: target, Deadline: 100 * time.Millisecond}.Ask(a.t.Context())
			return err == nil
		})
	}
}

// silent waits until the VIPs are gone and all that was in flight has ended.
func (a *arrival) silent() {
	a.t.Helper()
	for _, v := range vips {
		a.eventually("the VIP is gone", func() bool { return !a.hasAddress(v) })
	}
	time.Sleep(500 * time.Millisecond) // longer than the deadline of what is in flight
}

//lane:vm ipvs
func TestB30_RulesAndMasqueradeStandBeforeTheVIPCanBeReached(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	a := newArrival(t)
	keeper := service{name: "keeper", vips: []string{"192.0.2.99"}, port: 80, backends: a.at(8080, 1)[:1]}
	tcp := service{name: "web", port: 80, backends: a.at(8080, 1)}
	udp := service{name: "dns", port: 80, protocol: "udp", backends: a.at(8080, 1)}
	a.run(keeper)
	a.hammer()
	for range soak(max(2, fewer(6)), 60) {
		before := a.early()
		a.change(keeper, tcp, udp)
		a.answered()
		if n := a.early() - before; n > 0 {
			t.Errorf("%d heard a refusal or the host itself while the VIP came:\n%s", n, a.load.Report())
		}
		a.change(keeper)
		a.silent()
	}
	r := a.load.Stop()
	for _, tally := range []loss.Tally{r.Connections, r.Datagrams} {
		if tally.Backends["host"] > 0 || tally.Backends["b1"] == 0 {
			t.Errorf("answered by %v", tally.Backends)
		}
	}
	for addr, n := range a.backend.Clients() {
		if addr.String() != "10.2.0.1" && addr.String() != "fd00:2::1" {
			t.Errorf("the backend saw %d requests from %s, which is not the load balancer", n, addr)
		}
	}
}

// The negative controls: vipd's own parts put together with the faults that vipd
// must not have. If the account did not see them, its zeros would mean nothing.

// parts are the door and the proxier of vipd, without a reconciler to keep them in
// order.
type parts struct {
	w      *world
	door   *vip.Door
	tables *iptables.Proxier
	want   lb.Snapshot
}

func newParts(w *world) *parts {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	evictor := netfilter.NewEvictor(netfilter.DefaultMark, log)
	w.t.Cleanup(func() { _ = evictor.Close() })
	tools, err := netfilter.FindTools(w.t.Context(), netfilter.ToolOptions{Log: log})
	if err != nil {
		w.t.Fatal(err)
	}
	door, err := vip.New(vip.Options{Tools: tools, Log: log})
	if err != nil {
		w.t.Fatal(err)
	}
	tables, err := iptables.New(iptables.Options{Tools: tools, Evict: evictor, Log: log})
	if err != nil {
		w.t.Fatal(err)
	}
	p := &parts{w: w, door: door, tables: tables}
	p.weigh(1)
	return p
}

// weigh changes the services that are wanted: the weight of a backend.
func (p *parts) weigh(weight uint16) {
	var services []*lb.Service
	for i, target := range targets(80) {
		for _, protocol := range []lb.Protocol{lb.TCP, lb.UDP} {
			services = append(services, &lb.Service{
				Key:       lb.Key{Addr: target.Addr(), Port: 80, Protocol: protocol},
				Scheduler: lb.WRR, Masquerade: lb.MasqueradeAlways,
				Backends: []lb.Backend{
					{Addr: netip.MustParseAddrPort(p.w.at(8080, 1)[i]), Weight: weight},
					{Addr: netip.MustParseAddrPort(p.w.at(8081, 1)[i]), Weight: 1},
				},
			})
		}
	}
	p.want = lb.NewSnapshot(services...)
}

// The stages of a pass.
const (
	shut = iota
	rules
	open
	plain // the guard refuses, as if nothing was ever to be served
)

// pass makes a pass with its stages in the given order.
func (p *parts) pass(want lb.Snapshot, stages ...int) {
	p.w.t.Helper()
	ctx, how := p.w.t.Context(), proxier.How{Prune: true}
	for _, stage := range stages {
		err := error(nil)
		switch stage {
		case shut:
			err = p.door.Shut(ctx, want, how)
		case rules:
			err = p.tables.Sync(ctx, want, how)
		case open:
			err = p.door.Open(ctx, want, how)
		case plain:
			p.w.LB.Run(p.w.t, "ipset", "flush", "vipd-served4")
			p.w.LB.Run(p.w.t, "ipset", "flush", "vipd-served6")
		}
		if err != nil {
			p.w.t.Fatalf("stage %d: %v", stage, err)
		}
	}
}

func TestAddressBeforeRulesIsSeen(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	a := newArrival(t)
	p := newParts(a.world)
	a.hammer()
	rounds := func(stages ...int) (early int) {
		for range 5 {
			before := a.early()
			p.pass(p.want, stages...)
			a.answered()
			early += a.early() - before
			p.pass(lb.Snapshot{}, shut, rules, open)
			a.silent()
		}
		return early
	}
	if n := rounds(shut, rules, open); n != 0 {
		t.Errorf("in the right order %d heard something too early", n)
	}
	if n := rounds(shut, open, plain, rules); n == 0 {
		t.Error("the account does not see that the address came before the rules")
	} else {
		t.Logf("in the wrong order %d heard something too early", n)
	}
	t.Logf("in all:\n%s", a.load.Stop())
}

// TestFlushAndRefillIsSeen writes all rules anew for each change, as a tool does
// that knows no difference but only the whole.
func TestFlushAndRefillIsSeen(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 1)
	w.serveAll(8080, 8081)
	p := newParts(w)
	p.pass(p.want, shut, rules, open)
	run := func(flush bool) loss.Report {
		l := w.load(w.Client)
		for _, target := range targets(80) {
			l.Connect(loss.Connections{Target: target, Rate: rate / 2})
		}
		for i := range 20 {
			if flush {
				p.pass(lb.Snapshot{}, rules)
			}
			p.weigh(uint16(1 + i%2))
			p.pass(p.want, rules)
		}
		w.eventually("there is traffic", func() bool { return l.Report().Total() > 50 })
		return l.Stop()
	}
	lossless(t, "by difference", run(false))
	if r := run(true); r.Lost() == 0 {
		t.Errorf("the account does not see flush and refill:\n%s", r)
	} else {
		t.Logf("by flush and refill:\n%s", r)
	}
}

// TestADrainThatDoesNotHappenIsSeen forbids a backend that goes on getting
// connections.
func TestADrainThatDoesNotHappenIsSeen(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	w.run(service{name: "web", port: 80, backends: w.at(8080, 1, 2)})
	l := w.load(w.Client)
	l.Connect(loss.Connections{Target: targets(80)[0], Rate: 100})
	l.Forbid("b1")
	w.eventually("the account sees the wrong backend", func() bool { return l.Report().Connections.Classes[loss.Wrong] > 0 })
}
