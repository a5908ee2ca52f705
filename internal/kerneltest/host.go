package kerneltest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runTimeout bounds one command of Host.Run.
const runTimeout = 30 * time.Second

// netnsDir is where `ip netns` looks for named namespaces.
const netnsDir = "/run/netns"

// Host is a network namespace with addresses: a machine of the lab.
type Host struct {
	Name  string     // "lb", "client", "b1"
	Addr4 netip.Addr // its first address in each family
	Addr6 netip.Addr

	ns string // path of the namespace; empty for that of the process
}

// NewHost makes a host without links but lo, which is up. Sysctls are set so that
// tests are exact: no duplicate address detection, no reverse path filter, bridged
// packets kept out of iptables.
func NewHost(t testing.TB, name string) *Host {
	t.Helper()
	if !isolated() {
		t.Fatal("kerneltest: call Isolate first")
	}
	h := &Host{Name: name, ns: filepath.Join(netnsDir, name)}
	if err := makeNetns(h.ns); err != nil {
		t.Fatalf("kerneltest: host %s: %v", name, err)
	}
	t.Cleanup(func() { removeNetns(t, h.ns) })
	h.prepare(t)
	return h
}

// prepare brings the namespace of h into its known state.
func (h *Host) prepare(t testing.TB) {
	t.Helper()
	for _, key := range []string{"net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter",
		"net/ipv6/conf/all/accept_dad", "net/ipv6/conf/default/accept_dad", "net/ipv6/conf/default/dad_transmits"} {
		h.SetSysctl(t, key, "0")
	}
	if err := h.Do(quietBridges); err != nil {
		t.Fatalf("kerneltest: host %s: %v", h.Name, err)
	}
	h.Run(t, "ip", "link", "set", "lo", "up")
}

// Do runs f on a thread that is in the namespace of h and waits for it. Sockets
// that f makes stay in the namespace; goroutines that it starts do not run there.
// f must not call t.Fatal: it returns its error.
func (h *Host) Do(f func() error) error {
	if h.ns == "" {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and no other
		// goroutine ever runs in the namespace.
		runtime.LockOSThread()
		done <- enterNetns(h.ns, f)
	}()
	return <-done
}

// Dial makes a connection from h. address holds an IP address, not a name.
func (h *Host) Dial(ctx context.Context, d net.Dialer, network, address string) (c net.Conn, err error) {
	err = h.Do(func() error {
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens on h for a stream protocol.
func (h *Host) Listen(ctx context.Context, lc net.ListenConfig, network, address string) (l net.Listener, err error) {
	err = h.Do(func() error {
		l, err = lc.Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket listens on h for a datagram protocol.
func (h *Host) ListenPacket(ctx context.Context, lc net.ListenConfig, network, address string) (c net.PacketConn, err error) {
	err = h.Do(func() error {
		c, err = lc.ListenPacket(ctx, network, address)
		return err
	})
	return c, err
}

// Command returns a command that will run on h and is killed when ctx ends. Its
// process is the program itself (ip netns exec replaces itself), so signals reach it.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	argv := append([]string{name}, args...)
	if h.ns != "" {
		argv = append([]string{"ip", "netns", "exec", h.Name}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Try runs a command on h to its end, at most 30 s, and returns what it printed.
func (h *Host) Try(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	out, err := h.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("on %s: %s %s: %w\n%s", h.Name, name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// Run runs a command on h as Try does and fails the test if the command fails.
func (h *Host) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := h.Try(context.WithoutCancel(t.Context()), name, args...)
	if err != nil {
		t.Fatalf("kerneltest: %v", err)
	}
	return out
}

// batch gives ip(8) many commands at once.
func (h *Host) batch(t testing.TB, lines ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runTimeout)
	defer cancel()
	cmd := h.Command(ctx, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kerneltest: host %s: ip -batch: %v\n%s%s", h.Name, err, strings.Join(lines, "\n"), out)
	}
}

// Sysctl reads a sysctl of h: "net.ipv4.ip_forward", or with slashes where the name
// of an interface has a dot.
func (h *Host) Sysctl(t testing.TB, key string) string {
	t.Helper()
	var value []byte
	err := h.Do(func() (err error) {
		value, err = os.ReadFile(sysctlPath(key))
		return err
	})
	if err != nil {
		t.Fatalf("kerneltest: host %s: %v", h.Name, err)
	}
	return strings.TrimSpace(string(value))
}

// SetSysctl writes a sysctl of h.
func (h *Host) SetSysctl(t testing.TB, key, value string) {
	t.Helper()
	if err := h.Do(func() error { return os.WriteFile(sysctlPath(key), []byte(value), 0o644) }); err != nil {
		t.Fatalf("kerneltest: host %s: %v", h.Name, err)
	}
}

func sysctlPath(key string) string {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return "/proc/sys/" + key
}

// makeNetns makes a namespace and gives it a name, as `ip netns add` does.
func makeNetns(path string) error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, see Do
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		done <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "none", unix.MS_BIND, "")
	}()
	return <-done
}

func removeNetns(t testing.TB, path string) {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		t.Errorf("kerneltest: unmount %s: %v", path, err)
	}
	if err := os.Remove(path); err != nil {
		t.Errorf("kerneltest: %v", err)
	}
}

// enterNetns runs f in a namespace, on the calling thread, which stays there.
func enterNetns(path string, f func() error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	err = unix.Setns(fd, unix.CLONE_NEWNET)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("enter %s: %w", path, err)
	}
	return f()
}
