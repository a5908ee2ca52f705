//go:build kernel

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vipd/admin"
	"vipd/reconciler"
)

// binDirEnv names the directory that holds the program under test.
const binDirEnv = "VIPD_BIN_DIR"

// patience is how long anything may take that has no time of its own: long enough
// for the virtual machine, where the first run of everything takes seconds.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	os.Exit(runAll(m))
}

// runAll builds the program once. The inner processes of kerneltest inherit its
// place.
func runAll(m *testing.M) int {
	if os.Getenv(binDirEnv) == "" {
		dir, err := os.MkdirTemp("", "vipd-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if out, err := exec.Command("go", "build", "-o", dir, "vipd/cmd/vipd").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building vipd: %v\n%s", err, out)
			return 1
		}
		if err := os.Setenv(binDirEnv, dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	// A program with the race detector would take a second to end, each time.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func program() string { return filepath.Join(os.Getenv(binDirEnv), "vipd") }

// daemon is a vipd under test, its files and its command line. All of it is on
// the /run of the test, which nobody else sees.
type daemon struct {
	t      *testing.T
	config string
	socket string
	log    string

	cmd    *exec.Cmd // nil: not running
	exited chan error
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{t: t, config: "/run/vipd.toml", socket: "/run/vipd/vipd.sock", log: "/run/vipd.log"}
	t.Cleanup(func() {
		if d.cmd != nil {
			d.kill()
		}
		if t.Failed() {
			text, _ := os.ReadFile(d.log)
			t.Logf("the log of vipd (its end):\n%s", text[max(0, len(text)-12000):])
		}
	})
	return d
}

// write replaces the configuration as an editor should: by renaming.
func (d *daemon) write(text string) {
	d.t.Helper()
	fresh := d.config + ".new"
	if err := errors.Join(os.WriteFile(fresh, []byte(text), 0o600), os.Rename(fresh, d.config)); err != nil {
		d.t.Fatal(err)
	}
}

// begin starts vipd and does not wait for it.
func (d *daemon) begin() {
	d.t.Helper()
	if d.cmd != nil {
		d.t.Fatal("vipd runs already")
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	d.cmd = exec.Command(program(), "run", "-c", d.config)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait() }(d.cmd, d.exited)
}

// start starts vipd and waits until all that its configuration says is in place.
func (d *daemon) start() {
	d.t.Helper()
	d.begin()
	d.await("be ready", func(s reconciler.Status) bool { return s.Ready && !s.Pass.Pending })
}

// await waits until the status of vipd is as it should be.
func (d *daemon) await(what string, so func(reconciler.Status) bool) reconciler.Status {
	d.t.Helper()
	var last reconciler.Status
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		select {
		case exit := <-d.exited:
			d.cmd = nil
			d.t.Fatalf("vipd ended and was to %s: %v", what, exit)
		default:
		}
		if last, err = d.status(); err == nil && so(last) {
			return last
		}
	}
	d.t.Fatalf("waited %s for vipd to %s: %+v, %v", patience, what, last, err)
	return last
}

func (d *daemon) status() (reconciler.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return admin.NewClient(d.socket).Status(ctx)
}

// kill ends vipd without warning.
func (d *daemon) kill() {
	d.t.Helper()
	_ = d.cmd.Process.Kill()
	<-d.exited
	d.cmd = nil
}

// stop ends vipd as systemd does and returns how long that took.
func (d *daemon) stop() time.Duration {
	d.t.Helper()
	begin := time.Now()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	select {
	case err := <-d.exited:
		if err != nil {
			d.t.Errorf("vipd on SIGTERM: %v", err)
		}
	case <-time.After(patience):
		d.t.Errorf("vipd did not end within %s of SIGTERM", patience)
		d.kill()
	}
	d.cmd = nil
	return time.Since(begin)
}

// vipd runs a subcommand and returns what it printed and its exit status.
func (d *daemon) vipd(args ...string) (out string, code int) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	var buf bytes.Buffer
	cmd := exec.CommandContext(ctx, program(), append(args, "-c", d.config)...)
	cmd.Stdout, cmd.Stderr = &buf, &buf
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatalf("vipd %s: %v", strings.Join(args, " "), err)
	}
	return buf.String(), cmd.ProcessState.ExitCode()
}

// must runs a subcommand that is to end with the given status.
func (d *daemon) must(code int, args ...string) string {
	d.t.Helper()
	out, got := d.vipd(args...)
	if got != code {
		d.t.Fatalf("vipd %s: exit status %d, want %d\n%s", strings.Join(args, " "), got, code, out)
	}
	return out
}

// reload puts a new configuration in force and returns when it is in place.
func (d *daemon) reload(text string) {
	d.t.Helper()
	d.write(text)
	d.must(0, "reload")
}

// hup asks for a reload without waiting for it.
func (d *daemon) hup() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		d.t.Fatal(err)
	}
}
