//go:build kernel

package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
	"vipd/reconciler"
)

// inMode is a configuration with another mode in force than that of the tests.
func inMode(mode, text string) string {
	return strings.Replace(text, "mode = \""+kerneltest.Mode()+"\"", mode, 1)
}

// TestB65_F60 moves services between the modes under a load: one service by a mode of
// its own, all of them by a restart with another mode, there and back. No connection is
// lost, and nothing of the old mode is left.
//
//lane:vm ipvs
func TestB65_F60_AMoveBetweenModesLosesNothing(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newIPVS(t, 2)
	kerneltest.InMode(t, "iptables")
	w.serveAll(8080)
	services := func(own string) string {
		web := service{name: "web", port: 80, more: []string{`drain_timeout = "1h"`}, backends: w.at(8080, 1, 2)}
		if own != "" {
			web.more = append(web.more, `mode = "`+own+`"`)
		}
		return config(web,
			service{name: "dns", port: 53, protocol: "udp", backends: w.at(8080, 1, 2)},
			service{name: "steady", port: 81, backends: w.at(8080, 1)})
	}
	w.write(services(""))
	w.start()
	fresh, held, flows := w.load(w.Client), w.load(w.Client), w.load(w.Client)
	for i, target := range targets(80) {
		fresh.Connect(loss.Connections{Target: target, Rate: 10})
		fresh.Connect(loss.Connections{Target: targets(81)[i], Rate: 5})
		held.Hold(loss.Hold{Target: target, Count: 4, Every: 200 * time.Millisecond})
		held.Hold(loss.Hold{Target: target, Count: 4})
		flows.Send(loss.Flows{Target: targets(53)[i], Count: 4, Every: 200 * time.Millisecond})
	}
	for _, own := range []string{"iptables", "", "iptables", ""} {
		w.reload(services(own))
	}
	for _, mode := range []string{`mode = "iptables"`, `mode = "ipvs"`} {
		w.stop()
		w.write(inMode(mode, services("")))
		w.start()
		for i, target := range targets(80) {
			w.answeredBy(w.Client, "tcp", target, "b1", "b2")
			w.answeredBy(w.Client, "udp", targets(53)[i], "b1", "b2")
		}
	}
	lossless(t, "connections held through six moves", held.Stop())
	lossless(t, "new connections over six moves", fresh.Stop())
	r := flows.Stop()
	t.Logf("flows through six moves:\n%s", r)
	if r.Lost() > 8 { // an answer that was under way finds no entry of its flow: one a flow at most
		t.Errorf("%d datagrams were lost", r.Lost())
	}
	w.noResidue()
}

// noResidue moves what there is to mode iptables and back, without a drain, and wants
// nothing of the mode that was left.
func (w *world) noResidue() {
	w.t.Helper()
	text := config(service{name: "web", port: 80, backends: w.at(8080, 1)})
	w.stop()
	w.write(inMode(`mode = "iptables"`, text))
	w.start()
	w.eventually("no virtual server is left", func() bool { return strings.Join(w.virtualServers(), "") == "" })
	w.stop()
	w.write(text)
	w.start()
	w.eventually("no rule of a service is left", func() bool { return !strings.Contains(w.kernelState(), "--to-destination") })
	w.must(0, "plan")
}

// TestB67_F91 has a kernel without IPVS, and a configuration that asks for it: mode
// iptables stands in and says so, with what it does not do; where nothing may stand in,
// vipd does not start.
func TestB67_F91_WithoutIPVSAnotherModeStandsInOrVipdSaysWhyNot(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	kerneltest.Without(t, kerneltest.IPVS())
	w := newWorld(t, 2)
	w.serveAll(8080)
	least := service{name: "least", port: 80, more: []string{`scheduler = "lc"`}, backends: w.at(8080, 1)}
	direct := service{name: "direct", port: 81, more: []string{`forward = "dr"`}, backends: w.at(81, 2)}
	w.write(inMode(`mode = "ipvs"`, config(least, direct)))
	w.begin()
	s := w.await("serve in another mode", func(s reconciler.Status) bool {
		return len(s.Services) > 0 && !s.Pass.Pending && s.Mode == "iptables"
	})
	if !strings.Contains(s.ModeReason, "ipvs") || s.IPVS.Available {
		t.Errorf("mode %s, since %q; IPVS %+v", s.Mode, s.ModeReason, s.IPVS)
	}
	for _, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b1")
		w.refusedOrSilent(targets(81)[0])
	}
	out, _ := w.vipd("status")
	for _, word := range []string{"iptables", "lc", "wrr", "direct"} {
		if !strings.Contains(out, word) {
			t.Errorf("status does not tell of %q:\n%s", word, out)
		}
	}
	w.stop()
	w.write(inMode("mode = \"ipvs\"\nfallback = \"none\"", config(least)))
	if out := w.must(1, "run"); !strings.Contains(out, "modprobe ip_vs") {
		t.Errorf("run without a fallback says\n%s", out)
	}
	w.write(inMode(`mode = "auto"`, config(least)))
	w.start()
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b1")
}

// refusedOrSilent wants that nobody answers.
func (w *world) refusedOrSilent(target netip.AddrPort) {
	w.t.Helper()
	if a, err := (loss.Request{In: w.Client.Do, Network: "tcp", Target: target, Deadline: 200 * time.Millisecond}).Ask(w.t.Context()); err == nil {
		w.t.Errorf("%s is answered by %s", target, a.Backend)
	}
}
