//go:build kernel

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
)

// TestB61 takes away every single thing of ours, one of each kind at a time. Each
// comes back by itself, and then everything is as it was.
func TestB61_WhatSomebodyTakesAwayComesBack(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	w.write(strings.Replace(config(
		service{name: "web", port: 80, backends: w.at(8080, 1, 2)},
		service{name: "never", port: 81, more: []string{`masquerade = "never"`}, backends: w.at(8080, 1)},
		service{name: "auto", port: 82, more: []string{`masquerade = "auto"`}, backends: w.at(8080, 1)},
		service{name: "dns", port: 53, protocol: "udp", backends: w.at(8080, 1, 2)}),
		`sync_period = "2s"`, `sync_period = "1s"`, 1))
	w.start()
	whole := w.kernelState()
	damages := w.damages()
	for i := 0; len(damages) > 0; i++ {
		for tool, list := range damages {
			if i == len(list) {
				delete(damages, tool)
				continue
			}
			t.Logf("%s %s", tool, strings.Join(list[i], " "))
			w.LB.Run(t, tool, list[i]...)
		}
		took := w.eventually("all is repaired", func() bool { return w.kernelState() == whole })
		t.Logf("repaired after %s", took.Round(time.Millisecond))
	}
	for _, target := range targets(80) {
		w.answeredBy(w.Client, "tcp", target, "b1", "b2")
	}
}

// damages lists, by tool, the commands that take away one thing each: every chain
// flushed, every jump to one of our chains deleted, every set emptied, every
// address, the device.
func (w *world) damages() map[string][][]string {
	w.t.Helper()
	list := map[string][][]string{}
	for _, tool := range []string{"iptables-nft", "ip6tables-nft"} {
		table := ""
		for line := range strings.Lines(w.LB.Run(w.t, tool+"-save")) {
			line = strings.TrimSpace(line)
			switch fields := strings.Fields(line); {
			case strings.HasPrefix(line, "*"):
				table = line[1:]
			case strings.HasPrefix(line, ":VIPD-"):
				list[tool] = append(list[tool], []string{"-t", table, "-F", strings.TrimPrefix(fields[0], ":")})
			case strings.HasPrefix(line, "-A ") && !strings.HasPrefix(line, "-A VIPD-") && strings.Contains(line, "VIPD-"):
				list[tool] = append(list[tool], append([]string{"-t", table, "-D"}, fields[1:]...))
			}
		}
	}
	for line := range strings.Lines(w.LB.Run(w.t, "ipset", "list", "-n")) {
		if name := strings.TrimSpace(line); strings.HasPrefix(name, "vipd-") {
			list["ipset"] = append(list["ipset"], []string{"flush", name})
		}
	}
	list["ip"] = [][]string{
		{"address", "del", vips[0], "dev", "vipd0"}, {"address", "del", vips[1], "dev", "vipd0"},
		{"link", "set", "vipd0", "down"}, {"link", "del", "vipd0"},
	}
	return list
}

func restartWritesNothing(w *world) {
	w.serveAll(8080)
	w.run(
		service{name: "web", port: 80, backends: w.at(8080, 1, 2)},
		service{name: "auto", port: 81, more: []string{`masquerade = "auto"`, `scheduler = "rr"`}, backends: w.at(8080, 1)},
		service{name: "empty", port: 82},
		service{name: "dns", port: 53, protocol: "udp", backends: w.at(8080, 1, 2)})
	state, generation := w.kernelState(), w.generation()
	for i := range 3 {
		if i%2 == 0 {
			w.kill()
		} else {
			w.stop()
		}
		w.start()
		w.must(0, "plan")
	}
	w.must(0, "reload")
	if now := w.generation(); now != generation {
		w.t.Errorf("the rule set was written %d times", now-generation)
	}
	if diff := differ(state, w.kernelState()); diff != "" {
		w.t.Errorf("restarts changed\n%s", diff)
	}
}

//lane:vm
//lane:vm ipvs
func TestB66_F151_CleanupRemovesExactlyWhatIsOurs(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	for _, tool := range []string{"iptables-nft", "ip6tables-nft"} {
		w.LB.Run(t, tool, "-t", "nat", "-N", "FOREIGN")
		w.LB.Run(t, tool, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "7", "-j", "FOREIGN")
		w.LB.Run(t, tool, "-A", "FORWARD", "-p", "tcp", "--dport", "9", "-j", "DROP")
		w.LB.Run(t, tool, "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP")
	}
	w.LB.Run(t, "ipset", "create", "foreign", "hash:ip")
	w.LB.Run(t, "ip", "address", "add", "192.0.2.200/32", "dev", "lo")
	before := w.LB.Foreign(t)
	w.run(
		service{name: "web", port: 80, backends: w.at(8080, 1, 2)},
		service{name: "dns", port: 53, protocol: "udp", backends: w.at(8080, 1)})
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b1", "b2")
	// Chains that another version may have left, with a name this one does not make.
	w.LB.Run(t, "iptables-nft", "-t", "nat", "-N", "VIPD-OLDER")
	w.LB.Run(t, "iptables-nft", "-t", "nat", "-N", "VIPD-OLD")
	w.LB.Run(t, "iptables-nft", "-t", "nat", "-A", "VIPD-OLD", "-j", "VIPD-OLDER")
	w.LB.Run(t, "iptables-nft", "-t", "nat", "-A", "OUTPUT", "-j", "VIPD-OLD")
	if out, code := w.vipd("cleanup"); code == 0 {
		t.Errorf("cleanup beside a running vipd is to be refused:\n%s", out)
	}
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b1", "b2")
	w.stop()
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b1", "b2")
	for range 2 { // the second time there is nothing left to do
		w.must(0, "cleanup")
		if left := w.kernelState(); left != "" {
			t.Errorf("cleanup left\n%s", left)
		}
	}
	if diff := w.LB.Foreign(t).Diff(before); diff != "" {
		t.Errorf("something foreign changed:\n%s", diff)
	}
}

func TestF114_SIGTERMEndsTheDaemonAndNotTheService(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	w.run(
		service{name: "web", port: 80, backends: w.at(8080, 1, 2)},
		service{name: "dns", port: 53, protocol: "udp", backends: w.at(8080, 1, 2)})
	l := w.load(w.Client)
	for i, target := range targets(80) {
		l.Connect(loss.Connections{Target: target, Rate: 100})
		l.Hold(loss.Hold{Target: target, Count: 5, Every: slower(20 * time.Millisecond)})
		l.Send(loss.Flows{Target: targets(53)[i], Count: 5, Every: slower(20 * time.Millisecond)})
	}
	var slowest time.Duration
	for range soak(5, 200) {
		slowest = max(slowest, w.stop())
		w.start()
	}
	lossless(t, fmt.Sprintf("stopped and started, the slowest end took %s", slowest.Round(time.Millisecond)), l.Stop())
	if slowest > 10*time.Second {
		t.Errorf("the slowest end took %s", slowest)
	}
}
