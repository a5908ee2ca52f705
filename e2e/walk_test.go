//go:build kernel

package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
	"vipd/reconciler"
)

// walk goes at random from configuration to configuration.
type walk struct {
	*world
	random   *rand.Rand
	kept     []service // which it leaves alone
	services []service
}

// newWalk makes the world of a walk. One service stays, since a file with none at
// all is held to be a mistake.
func newWalk(t *testing.T) *walk {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("VIPD_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("seed %d (VIPD_SEED repeats it)", seed)
	w := &walk{world: newWorld(t, 4), random: rand.New(rand.NewPCG(seed, 0))}
	w.kept = []service{{name: "keeper", port: 80, backends: w.at(8080, 1)}}
	w.serveAll(8080)
	return w
}

// TestB63_ARandomWalkWithKillsAndDamageEndsAsIfNothingHadHappened edits the
// configuration, reloads, kills vipd and its children in the middle of passes, and
// takes things away that are ours. In the end the kernel has what a start from
// nothing puts there, and further passes write nothing.
func TestB63_ARandomWalkWithKillsAndDamageEndsAsIfNothingHadHappened(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWalk(t)
	w.LB.Run(t, "iptables-nft", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "7", "-j", "ACCEPT")
	w.LB.Run(t, "ip6tables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "7", "-j", "DROP")
	foreign := w.LB.Foreign(t)
	w.edit()
	w.start()
	for range soak(25, 250) {
		w.step()
	}
	if w.cmd == nil {
		w.start()
	}
	w.must(0, "reload")
	w.eventually("there is nothing to do", func() bool { _, code := w.vipd("plan"); return code == 0 })
	w.check()
	w.rests()
	w.forgets()
	if diff := w.LB.Foreign(t).Diff(foreign); diff != "" {
		t.Errorf("something foreign changed:\n%s", diff)
	}
	end := w.kernelState()
	w.stop()
	w.must(0, "cleanup")
	w.start()
	if diff := differ(end, w.kernelState()); diff != "" {
		t.Errorf("a start from nothing differs from the end of the walk by\n%s", diff)
	}
}

// step does one thing.
func (w *walk) step() {
	w.t.Helper()
	w.do(w.random.IntN(6))
}

// do does the thing of that number. The last one harms services that are kept.
func (w *walk) do(what int) {
	w.t.Helper()
	if w.cmd == nil {
		w.start()
	}
	switch what {
	case 0, 1: // a change, as it should be
		w.edit()
		w.must(0, "reload")
	case 2: // a change with a kill in the middle
		w.edit()
		w.hup()
		time.Sleep(time.Duration(w.random.IntN(400)) * time.Millisecond)
		w.kill()
		if w.random.IntN(2) == 0 {
			w.edit()
		}
	case 3: // a change whose tools are killed
		w.edit()
		w.hup()
		w.killChildren(time.Duration(w.random.IntN(600)) * time.Millisecond)
	case 4: // an end, as it should be
		w.stop()
	case 5: // damage, and a change over it
		damages := w.damages()
		tools := slices.Sorted(maps.Keys(damages))
		tool := tools[w.random.IntN(len(tools))]
		damage := damages[tool][w.random.IntN(len(damages[tool]))]
		_, _ = w.LB.Try(w.t.Context(), tool, damage...) // a pass may have taken it away already
		w.edit()
		w.hup()
	}
}

// edit changes some services, drops some, adds some, and writes the file. Those
// that are kept stay.
func (w *walk) edit() {
	for range 1 + w.random.IntN(3) {
		n := w.random.IntN(30)
		name := fmt.Sprintf("s%d", n)
		var rest []service
		for _, s := range w.services {
			if s.name != name {
				rest = append(rest, s)
			}
		}
		w.services = rest
		if w.random.IntN(3) > 0 {
			w.services = append(w.services, w.pick(n))
		}
	}
	w.write(config(slices.Concat(w.kept, w.services)...))
}

// Client ranges that hold the client, and that do not.
const (
	insideRanges  = `["10.1.0.0/24", "fd00:1::/64", "198.51.100.0/24"]`
	outsideRanges = `["198.51.100.0/24", "2001:db8:ffff::/48"]`
)

// pick makes a service out of chance. Its VIP and port follow from its number: few
// VIPs with several ports, others alone.
func (w *walk) pick(n int) service {
	s := service{
		name: fmt.Sprintf("s%d", n), port: 1000 + n, protocol: []string{"tcp", "udp"}[n%2],
		vips: []string{fmt.Sprintf("192.0.2.%d", 100+n%20), fmt.Sprintf("2001:db8::%d", 100+n%20)},
		more: []string{
			fmt.Sprintf("masquerade = %q", []string{"always", "never", "auto"}[w.random.IntN(3)]),
			fmt.Sprintf("scheduler = %q", []string{"wrr", "rr"}[w.random.IntN(2)]),
			fmt.Sprintf("affinity_timeout = %q", []string{"0s", "1h"}[w.random.IntN(2)]),
			fmt.Sprintf("allow = %s", []string{"[]", "[]", insideRanges, outsideRanges}[w.random.IntN(4)]),
		},
	}
	for b := range w.Backends {
		if w.random.IntN(2) == 0 {
			s.backends = append(s.backends, w.at(8080, b+1)...)
		}
	}
	return s
}

// check asks every service, and looks who answers.
func (w *walk) check() {
	w.t.Helper()
	for _, s := range w.services {
		for _, v := range s.vips {
			target := addrPort(v, uint16(s.port))
			silent, deadline := strings.Contains(s.String(), outsideRanges), time.Second
			if silent {
				deadline = 100 * time.Millisecond
			}
			a, err := loss.Request{In: w.Client.Do, Network: s.protocol, Target: target, Deadline: deadline}.Ask(w.t.Context())
			switch {
			case (silent || len(s.backends) == 0) != (err != nil):
				w.t.Errorf("service %s, %s/%s: %+v, %v", s.name, target, s.protocol, a, err)
			case err == nil && !strings.Contains(s.String(), w.addressOf(a.Backend)):
				w.t.Errorf("service %s, %s/%s: answered by %s", s.name, target, s.protocol, a.Backend)
			}
		}
	}
}

func (w *walk) addressOf(backend string) string {
	for _, b := range w.Backends {
		if b.Name == backend {
			return b.Addr4.String() + ":"
		}
	}
	return "nobody"
}

// rests waits for two passes that read the whole kernel, and wants them to write
// nothing.
func (w *walk) rests() {
	w.t.Helper()
	generation := w.generation()
	state := w.kernelState()
	first, err := w.status()
	if err != nil {
		w.t.Fatal(err)
	}
	w.await("make two passes", func(s reconciler.Status) bool { return s.Pass.Count >= first.Pass.Count+2 && s.Pass.Fresh })
	if now := w.generation(); now != generation {
		w.t.Errorf("passes with nothing to do wrote the rule set %d times", now-generation)
	}
	if diff := differ(state, w.kernelState()); diff != "" {
		w.t.Errorf("passes with nothing to do changed\n%s", diff)
	}
}

// forgets ends all affinity, so that what stands is a function of the configuration
// alone: which clients were kept in which set depends on the past.
func (w *walk) forgets() {
	w.t.Helper()
	for i := range w.services {
		w.services[i].more = append(w.services[i].more[:2:2], w.services[i].more[3:]...)
	}
	w.reload(config(slices.Concat(w.kept, w.services)...))
	w.eventually("there is nothing to do", func() bool { _, code := w.vipd("plan"); return code == 0 })
	w.check()
}

// killChildren kills every tool that vipd runs, for some time.
func (w *walk) killChildren(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
		processes, _ := filepath.Glob("/proc/[0-9]*")
		for _, p := range processes {
			pid, _ := strconv.Atoi(filepath.Base(p))
			if parentOf(p) == w.cmd.Process.Pid {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

// parentOf returns the parent of a process, by /proc/PID/stat (proc(5)).
func parentOf(process string) int {
	text, _ := os.ReadFile(process + "/stat")
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	pid, _ := strconv.Atoi(fields[1])
	return pid
}
