package kerneltest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LaneEnv names the environment variable that names the lane: "vm" in the virtual
// machine, whose kernel has every feature, so that a skip there is a failure.
const LaneEnv = "VIPD_LANE"

// ErrNotSupported is the answer of a kernel that does not have a feature.
var ErrNotSupported = errors.New("not supported by this kernel")

// Feature is something that not every kernel has.
type Feature struct {
	Name   string // for people: "dummy network device"
	Module string // the kernel module, without .ko
	Config string // the option of the kernel's configuration
	probe  func() error
}

// Dummy is the dummy network device.
func Dummy() Feature {
	return Feature{Name: "dummy network device", Module: "dummy", Config: "CONFIG_DUMMY", probe: probeDummy}
}

// Statistic is the match of iptables that takes a packet at random.
func Statistic() Feature {
	return Feature{Name: "iptables match statistic", Module: "xt_statistic", Config: "CONFIG_NETFILTER_XT_MATCH_STATISTIC", probe: probeStatistic}
}

// SCTP is sockets for SCTP; netfilter knows the protocol without them.
func SCTP() Feature {
	return Feature{Name: "SCTP sockets", Module: "sctp", Config: "CONFIG_IP_SCTP", probe: probeSCTP}
}

// IPVS is the load balancer of the kernel.
func IPVS() Feature {
	return Feature{Name: "IPVS", Module: "ip_vs", Config: "CONFIG_IP_VS", probe: probeIPVS}
}

// SmallTable is a table of connection tracking that a test can fill. Its limit belongs
// to the whole machine, so only the virtual one is ever given one: see LimitConnections.
func SmallTable() Feature {
	return Feature{Name: "connection tracking of at most 1000 connections", probe: func() error {
		text, err := os.ReadFile(connectionLimit)
		if err != nil {
			return err
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err != nil || n > 1000 {
			return ErrNotSupported
		}
		return nil
	}}
}

const connectionLimit = "/proc/sys/net/netfilter/nf_conntrack_max"

// LimitConnections has the kernel of the virtual machine track at most 1000 connections
// a network namespace until the test ends. It does nothing elsewhere, nor in the
// namespaces of Isolate, which it has to be called before: they cannot change the limit.
func LimitConnections(t testing.TB) {
	t.Helper()
	if os.Getenv(LaneEnv) != "vm" || isolated() {
		return
	}
	if out, err := exec.CommandContext(t.Context(), "modprobe", "nf_conntrack").CombinedOutput(); err != nil {
		t.Fatalf("kerneltest: %v: %s", err, out)
	}
	before, err := os.ReadFile(connectionLimit)
	if err == nil {
		err = os.WriteFile(connectionLimit, []byte("1000"), 0o644)
	}
	if err != nil {
		t.Fatalf("kerneltest: %v", err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(connectionLimit, bytes.TrimSpace(before), 0o644); err != nil {
			t.Errorf("kerneltest: %v", err)
		}
	})
}

// Probe asks the kernel, in the namespaces of the process: nil is yes,
// ErrNotSupported is no, any other error means that it could not be found out.
func (f Feature) Probe() error {
	if !isolated() {
		return errors.New("call Isolate first")
	}
	return f.probe()
}

// Need skips the test on a kernel that does not have the feature. The skip proves
// itself: it fails the test if the feature could not be probed, if the kernel's own
// configuration or modules say that it is there, and in the VM lane.
func Need(t testing.TB, f Feature) {
	t.Helper()
	err := f.Probe()
	if err == nil {
		return
	}
	if !errors.Is(err, ErrNotSupported) {
		t.Fatalf("kerneltest: probing for %s: %v", f.Name, err)
	}
	if os.Getenv(LaneEnv) == "vm" {
		t.Fatalf("kerneltest: the kernel of the VM lane lacks %s: %v", f.Name, err)
	}
	if evidence := f.evidence(); evidence != "" {
		t.Fatalf("kerneltest: the kernel refused %s, but %s: the probe is wrong or the module cannot be loaded", f.Name, evidence)
	}
	t.Skipf("kerneltest: this kernel has no %s; the VM lane has (make test-vm)", f.Name)
}

// Without makes sure that the kernel does not have the feature, for the tests of
// what happens then. In the VM lane it unloads the module and bars the kernel from
// loading it until the test ends; elsewhere it skips the test where the feature is.
func Without(t testing.TB, f Feature) {
	t.Helper()
	if os.Getenv(LaneEnv) == "vm" {
		bar(t, f)
	}
	switch err := f.Probe(); {
	case errors.Is(err, ErrNotSupported):
	case err != nil:
		t.Fatalf("kerneltest: probing for %s: %v", f.Name, err)
	case os.Getenv(LaneEnv) == "vm":
		t.Fatalf("kerneltest: %s is still there after its module was unloaded", f.Name)
	default:
		t.Skipf("kerneltest: this kernel has %s; the VM lane takes it away (make test-vm)", f.Name)
	}
}

// Unload removes the module of a feature from the kernel of the virtual machine, which
// may load it again. It skips the test elsewhere.
func Unload(t testing.TB, f Feature) {
	t.Helper()
	if os.Getenv(LaneEnv) != "vm" {
		t.Skip("kerneltest: modules are unloaded in the VM lane only (make test-vm)")
	}
	if err := unload(f.Module, time.Now().Add(unloadTimeout)); err != nil {
		t.Fatalf("kerneltest: %v", err)
	}
}

// bar takes a module away from the kernel of the virtual machine.
func bar(t testing.TB, f Feature) {
	t.Helper()
	const loader = "/proc/sys/kernel/modprobe"
	before, err := os.ReadFile(loader)
	if err != nil {
		t.Fatalf("kerneltest: %v", err)
	}
	if err := os.WriteFile(loader, []byte("/bin/false"), 0o644); err != nil {
		t.Fatalf("kerneltest: %v", err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(loader, bytes.TrimSpace(before), 0o644); err != nil {
			t.Errorf("kerneltest: %v", err)
		}
	})
	if err := unload(f.Module, time.Now().Add(unloadTimeout)); err != nil {
		t.Fatalf("kerneltest: %v", err)
	}
}

// unloadTimeout is how long a module may be in use by a network namespace that goes.
const unloadTimeout = 30 * time.Second

// unload removes a module, and those that use it before: the schedulers of IPVS, say.
func unload(module string, end time.Time) error {
	holders, err := os.ReadDir(filepath.Join("/sys/module", module, "holders"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, h := range holders {
		if err := unload(h.Name(), end); err != nil {
			return err
		}
	}
	for ; ; time.Sleep(50 * time.Millisecond) {
		err := unix.DeleteModule(module, unix.O_NONBLOCK)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EAGAIN) || time.Now().After(end) { // a network namespace that goes still has rules
			return fmt.Errorf("unload module %s: %w", module, err)
		}
	}
}

// probeStatistic adds a rule to a chain that nothing leads to.
func probeStatistic() error {
	const chain = "probe-statistic"
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	iptables := func(args ...string) ([]byte, error) {
		return exec.CommandContext(ctx, "iptables-nft", append([]string{"-t", "nat"}, args...)...).CombinedOutput()
	}
	if out, err := iptables("-N", chain); err != nil {
		return fmt.Errorf("make a chain: %w: %s", err, out)
	}
	out, err := iptables("-A", chain, "-m", "statistic", "--mode", "random", "--probability", "0.5")
	_, flushErr := iptables("-F", chain)
	_, deleteErr := iptables("-X", chain)
	if err := errors.Join(flushErr, deleteErr); err != nil {
		return fmt.Errorf("remove a chain: %w", err)
	}
	if err != nil {
		return fmt.Errorf("add a rule: %w (%w: %s)", ErrNotSupported, err, out)
	}
	return nil
}

func probeDummy() error {
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "probe-dummy"}}
	err := netlink.LinkAdd(link)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("add a dummy device: %w (%w)", ErrNotSupported, err)
	}
	if err != nil {
		return fmt.Errorf("add a dummy device: %w", err)
	}
	return netlink.LinkDel(link)
}

// probeIPVS asks for the generic netlink family, which has the kernel load the module.
func probeIPVS() error {
	if _, err := netlink.GenlFamilyGet("IPVS"); errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("find the netlink family of IPVS: %w (%w)", ErrNotSupported, err)
	} else if err != nil {
		return fmt.Errorf("find the netlink family of IPVS: %w", err)
	}
	return nil
}

func probeSCTP() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) {
		return fmt.Errorf("open an SCTP socket: %w (%w)", ErrNotSupported, err)
	}
	if err != nil {
		return fmt.Errorf("open an SCTP socket: %w", err)
	}
	return unix.Close(fd)
}

// evidence says, in words, where the host shows that its kernel has the feature;
// empty if nowhere.
func (f Feature) evidence() string {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		dir := filepath.Join("/lib/modules", unix.ByteSliceToString(uts.Release[:]))
		for _, list := range []string{"modules.dep", "modules.builtin"} {
			data, err := os.ReadFile(filepath.Join(dir, list))
			if err == nil && regexp.MustCompile(`(?m)(^|/)`+regexp.QuoteMeta(f.Module)+`\.ko`).Match(data) {
				return fmt.Sprintf("%s/%s lists the module %s", dir, list, f.Module)
			}
		}
	}
	for _, set := range []string{"=y\n", "=m\n"} {
		if strings.Contains(kernelConfig(), "\n"+f.Config+set) {
			return "/proc/config.gz says " + f.Config + strings.TrimSpace(set)
		}
	}
	return ""
}

// kernelConfig returns the configuration of the running kernel, if it shows it.
func kernelConfig() string {
	packed, err := os.ReadFile("/proc/config.gz")
	if err != nil {
		return ""
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return ""
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return ""
	}
	return string(text)
}
