package kerneltest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// isolatedEnv names, in the inner process, the test that it was started for.
const isolatedEnv = "VIPD_KERNELTEST"

// defaultTimeout bounds an isolated test that was started with -timeout=0.
const defaultTimeout = 10 * time.Minute

// Isolate runs the calling test in a process of its own. In the outer process it
// starts the test binary again for this test alone, in fresh network, mount and
// process namespaces, waits, takes over output and result, and returns false. In
// the inner process it returns true, after Enter. It needs root and fails without
// it.
func Isolate(t testing.TB) bool {
	t.Helper()
	if os.Getenv(isolatedEnv) == t.Name() {
		if err := Enter(); err != nil {
			t.Fatalf("kerneltest: setting up the namespaces: %v", err)
		}
		return true
	}
	if os.Geteuid() != 0 {
		t.Fatal("kerneltest: needs root to make namespaces; run it as root (make test-kernel)")
	}
	runInner(t)
	return false
}

// isolated tells whether this process is an inner one.
func isolated() bool { return os.Getenv(isolatedEnv) != "" }

// runInner starts the inner process and judges it.
func runInner(t testing.TB) {
	t.Helper()
	left := defaultTimeout
	if d, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		if at, ok := d.Deadline(); ok {
			left = time.Until(at)
		}
	}
	// The inner process has to give up first, so that its dump of the goroutines
	// reaches the output.
	ctx, cancel := context.WithTimeout(t.Context(), left-left/20)
	defer cancel()
	out := &output{test: t.Name(), stream: testing.Verbose(), to: os.Stdout}
	args := append(innerFlags(t.Name()), "-test.timeout="+(left-left/10).String())
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, isolatedEnv+"=")
	}), isolatedEnv+"="+t.Name())
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The death signal comes when the thread that forked ends, not the process.
	runtime.LockOSThread()
	err := cmd.Run()
	runtime.UnlockOSThread()
	out.Close()
	switch {
	case err != nil || out.status == "FAIL":
		t.Errorf("kerneltest: the isolated test failed: %v\n%s", err, out.held())
	case out.status == "SKIP":
		t.Skip("kerneltest: the isolated test was skipped\n" + out.held())
	case out.status != "PASS":
		t.Errorf("kerneltest: the isolated test did not run\n%s", out.held())
	}
}

// innerFlags returns the flags of the inner process: those of the outer one, but
// for the ones that name files, choose tests or repeat them.
func innerFlags(test string) []string {
	verbose := "-test.v=true"
	args := []string{"-test.run=" + exactly(test), "-test.count=1"}
	flag.Visit(func(f *flag.Flag) {
		switch name, test := strings.CutPrefix(f.Name, "test."); {
		case name == "v" && test && f.Value.String() == "test2json":
			verbose = "-test.v=test2json"
		case !test || slices.Contains([]string{"short", "failfast", "fullpath"}, name):
			args = append(args, "-"+f.Name+"="+f.Value.String())
		}
	})
	return append(args, verbose)
}

// exactly returns the pattern for -test.run that matches one test or subtest only.
func exactly(test string) string {
	parts := strings.Split(test, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

// Enter makes a process at home in the fresh network, mount and process namespaces
// that it was started in: loopback is up, /run is empty and writable (the lock of
// xtables and the names of namespaces live there), /proc and /sys show the new
// namespaces, and bridged packets do not pass iptables (bridge-nf-call-*=0).
func Enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount / private: %w", err)
	}
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.at, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return quietBridges()
}

// quietBridges keeps bridged packets of the current namespace out of iptables.
// With the kernel's default of 1 a hairpin through a bridge fails and a client on
// the backends' own subnet is served by accident: the opposite of production.
func quietBridges() error {
	files, err := filepath.Glob("/proc/sys/net/bridge/bridge-nf-call-*")
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte("0"), 0o644); err != nil {
			return err
		}
	}
	return nil
}
