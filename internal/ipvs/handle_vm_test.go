//lane:vm

//go:build kernel

package ipvs

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	moby "github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
)

// open returns a line to an IPVS without servers.
func open(t testing.TB) *Handle {
	t.Helper()
	kerneltest.Need(t, kerneltest.IPVS())
	h, err := Open(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestTheKernelConforms(t *testing.T) {
	for name, test := range conformance() {
		t.Run(name, func(t *testing.T) {
			if kerneltest.Isolate(t) {
				test(t, open(t))
			}
		})
	}
}

// What another reader finds is what was written.
func TestAnotherReaderFindsWhatWasWritten(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	h := open(t)
	want, add := everything(t)
	must(t, h, add...)
	m, err := moby.New("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	found, err := m.GetServices()
	if err != nil || len(found) != len(want) {
		t.Fatalf("%d servers, want %d: %v", len(found), len(want), err)
	}
	for s, destinations := range want {
		i := slices.IndexFunc(found, func(f *moby.Service) bool {
			a, _ := netip.AddrFromSlice(f.Address)
			return a == s.Key.Addr && f.Port == s.Key.Port && f.Protocol == uint16(s.Key.Protocol)
		})
		if i < 0 {
			t.Errorf("%s is not found", s)
			continue
		}
		f := found[i]
		if f.SchedName != s.Scheduler || Flags(f.Flags)&flagsOurs != s.Flags || int64(f.Timeout) != int64(s.Timeout.Seconds()) ||
			f.Netmask != binary.NativeEndian.Uint32(s.netmask()) {
			t.Errorf("%s is read as %+v", s, f)
		}
		have, err := m.GetDestinations(f)
		if err != nil || len(have) != len(destinations) {
			t.Errorf("%s has %d destinations, want %d: %v", s, len(have), len(destinations), err)
		}
		for _, d := range have {
			a, _ := netip.AddrFromSlice(d.Address)
			got := Destination{Addr: netip.AddrPortFrom(a, d.Port), Forward: Method(d.ConnectionFlags), Weight: uint32(d.Weight),
				Upper: d.UpperThreshold, Lower: d.LowerThreshold}
			if !hasButTunnel(destinations, got) {
				t.Errorf("%s has %s, which was not written", s, got)
			}
		}
	}
}

// hasButTunnel tells whether d is there, of which the type of the tunnel is not known.
func hasButTunnel(all map[Destination]bool, d Destination) bool {
	for have := range all {
		have.Tunnel, have.TunnelPort, have.TunnelFlags = 0, 0, 0
		if have == d {
			return true
		}
	}
	return false
}

// ipvsadm(8) spells what stands as we do, whatever the order of words. It says what goes
// without saying (no checksum, IPIP) and does not say the thresholds.
func TestIpvsadmSpellsCommandsAsWeDo(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	h := open(t)
	_, add := everything(t)
	must(t, h, add...)
	out, err := exec.CommandContext(t.Context(), "ipvsadm", "-Sn").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	words := func(line string) string {
		w := strings.Fields(strings.NewReplacer(" --tun-type ipip", "", " --tun-nocsum", "", " -x 100 -y 80", "").Replace(line))
		slices.Sort(w)
		return strings.Join(w, " ")
	}
	var got, want []string
	for line := range strings.Lines(string(out)) {
		got = append(got, words(line))
	}
	for _, c := range add {
		want = append(want, words(c.String()))
	}
	slices.Sort(got)
	slices.Sort(want)
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("ipvsadm does not say %s", line)
		}
	}
	if len(got) != len(want) || t.Failed() {
		t.Errorf("it says\n%s", out)
	}
}

// Without the capability nothing is done, and the error says which one it is.
func TestWithoutTheCapability(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	h := open(t)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the capability belongs to the thread
		header, data := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
		if err := unix.Capget(&header, &data[0]); err != nil {
			done <- err
			return
		}
		data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&header, &data[0]); err != nil {
			done <- err
			return
		}
		_, err := Open(context.Background())
		errs := h.Do(context.Background(), []Command{{Op: AddServer, Server: Server{Key: servers(t)["plain"].Key, Scheduler: "wrr"}}})
		if err == nil || len(errs) != 1 || !errors.Is(errs[0], ErrPermission) {
			err = errors.Join(errors.New("it was allowed"), err, errors.Join(errs...))
		}
		done <- err
	}()
	if err := <-done; !errors.Is(err, ErrPermission) || strings.Contains(err.Error(), "allowed") {
		t.Error(err)
	}
}

// A module that was unloaded is loaded again by the next command or question, and found
// under its new number.
func TestALineOutlivesItsModule(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	h := open(t)
	web := servers(t)["plain"]
	for range 2 {
		family := h.family.Load()
		kerneltest.Unload(t, kerneltest.IPVS())
		must(t, h, Command{Op: AddServer, Server: web})
		if h.family.Load() == family {
			t.Errorf("the family still has the number %d: nothing was shown", family)
		}
		must(t, h, Command{Op: DeleteServer, Server: web})
		kerneltest.Unload(t, kerneltest.IPVS())
		if got := all(t, h); len(got) > 0 {
			t.Errorf("read %v", got)
		}
	}
}

// The probe tries IPVS out and leaves nothing, not even the module of a scheduler.
func TestAKernelWithIPVSIsFoundToHaveIt(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	h := open(t)
	kerneltest.Unload(t, kerneltest.IPVS())
	got, err := Probe(t.Context())
	if want := (Support{Yes: true, Version: "1.2.1", IPv6: true, GUE: true}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if left := all(t, h); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
	modules, err := exec.CommandContext(t.Context(), "lsmod").Output()
	if err != nil || !strings.Contains(string(modules), "\nip_vs ") || strings.Contains(string(modules), "ip_vs_") {
		t.Errorf("%v: %s", err, modules)
	}
}
