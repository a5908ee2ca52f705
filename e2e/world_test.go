//go:build kernel

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
)

// world is what a test has: a client, backends, and a load balancer with vipd on
// it, which is not running yet.
type world struct {
	*kerneltest.Lab
	*daemon
}

func newWorld(t *testing.T, backends int) *world {
	t.Helper()
	kerneltest.InMode(t, kerneltest.Mode())
	return &world{Lab: kerneltest.NewLab(t, backends), daemon: newDaemon(t)}
}

// soak tells whether the long figures are asked for, and picks.
func soak(short, long int) int {
	if os.Getenv("VIPD_SOAK") == "1" {
		return long
	}
	return short
}

// fewer is for counts that prove as much where all is slower, in the virtual machine.
func fewer(n int) int {
	if os.Getenv(kerneltest.LaneEnv) == "vm" {
		return n / 5
	}
	return n
}

// slower is for times that have to be longer there.
func slower(d time.Duration) time.Duration {
	if os.Getenv(kerneltest.LaneEnv) == "vm" {
		return 5 * d
	}
	return d
}

// The VIPs of a service that says nothing else: one of each family.
var vips = []string{"192.0.2.10", "2001:db8::10"}

// service is a [[service]] of a configuration.
type service struct {
	name     string
	vips     []string // nil: vips
	port     int
	protocol string   // "": tcp
	more     []string // further lines
	backends []string
}

func (s service) String() string {
	if s.vips == nil {
		s.vips = vips
	}
	if s.protocol == "" {
		s.protocol = "tcp"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "[[service]]\nname = %q\nvips = [%s]\nport = %d\nprotocol = %q\n", s.name, quoted(s.vips), s.port, s.protocol)
	for _, line := range s.more {
		fmt.Fprintln(&b, line)
	}
	fmt.Fprintf(&b, "backends = [%s]\n", quoted(s.backends))
	return b.String()
}

func quoted(words []string) string {
	list := make([]string, len(words))
	for i, w := range words {
		list[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(list, ", ")
}

// head is the part of a configuration that all tests have: quick passes, drains that
// end at once unless a service says otherwise, and the mode that the tests are in.
var head = `
[daemon]
state_dir = "/run/vipd-state"
admin_socket = "/run/vipd/vipd.sock"
log_level = "debug"
[sync]
min_sync_period = "50ms"
sync_period = "2s"
[vip]
allowed = ["192.0.2.0/24", "2001:db8::/64"]
[proxy]
mode = "` + kerneltest.Mode() + `"
[defaults]
drain_timeout = "0s"
`

// config returns a configuration with these services.
func config(services ...service) string {
	text := head
	for _, s := range services {
		text += "\n" + s.String()
	}
	return text
}

// run has vipd serve these services and nothing else; it starts vipd if need be.
func (w *world) run(services ...service) {
	w.t.Helper()
	w.put(config(services...))
}

// put puts a configuration in force; it starts vipd if need be.
func (w *world) put(text string) {
	w.t.Helper()
	if w.cmd != nil {
		w.reload(text)
		return
	}
	w.write(text)
	w.start()
}

// change puts these services in place of those before.
func (w *world) change(services ...service) {
	w.t.Helper()
	w.reload(config(services...))
}

// at returns the addresses of backends, by number from 1 on, with a port, in
// both families.
func (w *world) at(port int, backends ...int) []string {
	var list []string
	for _, n := range backends {
		list = append(list, hostPorts(w.Backends[n-1], port)...)
	}
	return list
}

func hostPorts(h *kerneltest.Host, port int) []string {
	return []string{fmt.Sprintf("%s:%d", h.Addr4, port), fmt.Sprintf("[%s]:%d", h.Addr6, port)}
}

// targets returns the VIPs with a port.
func targets(port int) []netip.AddrPort {
	var list []netip.AddrPort
	for _, v := range vips {
		list = append(list, netip.AddrPortFrom(netip.MustParseAddr(v), uint16(port)))
	}
	return list
}

// serve answers on a host under a name, with TCP and UDP, on its addresses.
func (w *world) serve(h *kerneltest.Host, name string, ports ...int) *loss.Server {
	w.t.Helper()
	var at []netip.AddrPort
	for _, p := range ports {
		for _, s := range hostPorts(h, p) {
			at = append(at, netip.MustParseAddrPort(s))
		}
	}
	return w.listen(h, name, at, at)
}

// listen answers at any addresses.
func (w *world) listen(h *kerneltest.Host, name string, tcp, udp []netip.AddrPort) *loss.Server {
	w.t.Helper()
	s, err := loss.Serve(w.t.Context(), loss.ServerOptions{Name: name, In: h.Do, TCP: tcp, UDP: udp})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(s.Close)
	return s
}

// serveAll has every backend answer under its own name.
func (w *world) serveAll(ports ...int) []*loss.Server {
	w.t.Helper()
	var servers []*loss.Server
	for _, b := range w.Backends {
		servers = append(servers, w.serve(b, b.Name, ports...))
	}
	return servers
}

// load starts a load from a host, which ends with the test.
func (w *world) load(from *kerneltest.Host) *loss.Load {
	l := loss.Start(w.t.Context(), loss.Options{In: from.Do})
	w.t.Cleanup(func() { l.Stop() })
	return l
}

// ask asks once and fails the test without an answer.
func (w *world) ask(from *kerneltest.Host, network string, target netip.AddrPort) loss.Answer {
	w.t.Helper()
	a, err := loss.Request{In: from.Do, Network: network, Target: target}.Ask(w.t.Context())
	if err != nil {
		w.t.Fatalf("%s asks %s/%s: %v", from.Name, target, network, err)
	}
	return a
}

// answeredBy asks until all these backends have answered, and fails if another
// one does or if one never does.
func (w *world) answeredBy(from *kerneltest.Host, network string, target netip.AddrPort, names ...string) {
	w.t.Helper()
	seen := map[string]bool{}
	for range 30 * len(names) {
		a := w.ask(from, network, target)
		if !slices.Contains(names, a.Backend) {
			w.t.Fatalf("%s asks %s/%s: answered by %s, want one of %v", from.Name, target, network, a.Backend, names)
		}
		if seen[a.Backend] = true; len(seen) == len(names) {
			return
		}
	}
	w.t.Fatalf("%s asks %s/%s: answered by %v only, want all of %v", from.Name, target, network, seen, names)
}

// refused asks once and wants a refusal, and that at once.
func (w *world) refused(from *kerneltest.Host, network string, target netip.AddrPort) {
	w.t.Helper()
	begin := time.Now()
	a, err := loss.Request{In: from.Do, Network: network, Target: target}.Ask(w.t.Context())
	if loss.ClassOf(err) != loss.Refused {
		w.t.Fatalf("%s asks %s/%s: want a refusal; %+v, %v", from.Name, target, network, a, err)
	}
	if took := time.Since(begin); took > time.Second {
		w.t.Errorf("%s asks %s/%s: refused after %s only", from.Name, target, network, took)
	}
}

// eventually waits until it is so.
func (w *world) eventually(what string, so func() bool) time.Duration {
	w.t.Helper()
	begin := time.Now()
	for !so() {
		if time.Since(begin) > patience {
			w.t.Fatalf("waited %s and it did not come true: %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(begin)
}

// lossless fails the test if anything was lost, and else tells how much was not.
func lossless(t *testing.T, what string, r loss.Report) {
	t.Helper()
	if r.Lost() > 0 || r.Total() == 0 {
		t.Errorf("%s:\n%s", what, r)
		return
	}
	t.Logf("%s:\n%s", what, r)
}
