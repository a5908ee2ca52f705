package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

// The errors of the tools. Ask with errors.Is.
var (
	// ErrNotInstalled: a tool is missing; the text names the package to install.
	ErrNotInstalled = errors.New("not installed")
	// ErrPermission: the kernel refused because CAP_NET_ADMIN is missing.
	ErrPermission = errors.New("no permission to change the packet filter; run as root or with CAP_NET_ADMIN")
	// ErrIncompatible: the table holds what iptables cannot show, made with nft.
	ErrIncompatible = errors.New("holds chains that only nft can show; vipd cannot work in it")
)

// toolDirs is where the tools are looked for, in this order: never in $PATH,
// which is somebody else's word.
var toolDirs = []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"}

// baseDeadline is how long a run of a tool may take, plus perMegabyte for what
// it is given to read. A restore of 500 chains takes some 100 ms.
const (
	baseDeadline = 30 * time.Second
	perMegabyte  = 10 * time.Second
)

// Tool runs iptables with the nft backend for one family: reads tables and
// commits scripts. Its methods run the binary on the calling goroutine, so they
// act in the network namespace of its thread. At most one restore runs at once.
type Tool struct {
	family      Family
	iptables    string // absolute paths
	restore     string
	save        string
	randomFully bool
	busy        chan struct{} // holds one token while a restore runs
}

// NewTool finds the iptables of the nft backend for a family. It needs no
// privilege. The error is ErrNotInstalled when a binary is missing, and names a
// binary that somebody else than root could change.
func NewTool(f Family) (*Tool, error) { return newTool(f, toolDirs) }

func newTool(f Family, dirs []string) (*Tool, error) {
	name, proto := "iptables-nft", iptables.ProtocolIPv4
	if f == IPv6 {
		name, proto = "ip6tables-nft", iptables.ProtocolIPv6
	}
	t := &Tool{family: f, busy: make(chan struct{}, 1)}
	for suffix, path := range map[string]*string{"": &t.iptables, "-restore": &t.restore, "-save": &t.save} {
		found, err := findTool(name+suffix, dirs)
		if err != nil {
			return nil, err
		}
		*path = found
	}
	probe, err := iptables.New(iptables.Path(t.iptables), iptables.IPFamily(proto))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.iptables, err)
	}
	t.randomFully = probe.HasRandomFully()
	return t, nil
}

// findTool returns the absolute path of a binary that only root can change.
func findTool(name string, dirs []string) (string, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && (st.Uid != 0 || info.Mode().Perm()&0o022 != 0) {
			return "", fmt.Errorf("%s could be changed by others than root; mend its owner and mode", path)
		}
		return path, nil
	}
	return "", fmt.Errorf("%s is %w: install the package iptables (Debian, Ubuntu) or iptables-nft (RHEL, Fedora)", name, ErrNotInstalled)
}

// Family returns the family that the tool works on.
func (t *Tool) Family() Family { return t.family }

// HasRandomFully reports whether MASQUERADE knows --random-fully (iptables 1.6.2).
func (t *Tool) HasRandomFully() bool { return t.randomFully }

// Restore commits a script of iptables-restore(8) without flushing what it does
// not name. Each COMMIT in it is atomic and stands even if a later one fails. A
// script that the tool or the kernel refuses gives a *RestoreError.
func (t *Tool) Restore(ctx context.Context, script []byte) error {
	return t.runRestore(ctx, script, "--noflush")
}

// Test parses a script and checks it as Restore would, without applying it. The
// kernel is not asked, only what the tool itself knows.
func (t *Tool) Test(ctx context.Context, script []byte) error {
	return t.runRestore(ctx, script, "--noflush", "--test")
}

func (t *Tool) runRestore(ctx context.Context, script []byte, args ...string) error {
	select {
	case t.busy <- struct{}{}:
		defer func() { <-t.busy }()
	case <-ctx.Done():
		return fmt.Errorf("waiting for another %s: %w", t.restore, context.Cause(ctx))
	}
	_, err := run(ctx, t.restore, args, script)
	var exit *exitError
	if errors.As(err, &exit) && !errors.Is(err, ErrPermission) {
		return newRestoreError(script, exit)
	}
	return err
}

// Read returns a table as it stands. A table that does not exist is empty.
func (t *Tool) Read(ctx context.Context, table string) (Table, error) {
	out, err := run(ctx, t.save, []string{"-t", table}, nil)
	if err != nil {
		return Table{}, fmt.Errorf("reading %s table %s: %w", t.family, table, err)
	}
	parsed, err := parseTable(table, string(out))
	if err != nil {
		return Table{}, fmt.Errorf("reading %s table %s: %w", t.family, table, err)
	}
	return parsed, nil
}

// ReadChains returns only the named chains of a table, at a cost that does not
// grow with the rest of it. A chain that does not exist is missing in the answer.
func (t *Tool) ReadChains(ctx context.Context, table string, names ...string) (Table, error) {
	result := Table{Name: table, Base: map[string][]string{}, Own: map[string][]string{}}
	for _, name := range names {
		out, err := run(ctx, t.iptables, []string{"-t", table, "-S", name}, nil)
		var exit *exitError
		if errors.As(err, &exit) && exit.code == 1 {
			continue // "no chain by that name", which 1.8.9 calls incompatible
		}
		if err != nil {
			return Table{}, fmt.Errorf("reading %s chain %s: %w", t.family, name, err)
		}
		result.put(name, parseRules(name, string(out)))
	}
	return result, nil
}

// exitError is a run of a tool that ended with a status other than 0.
type exitError struct {
	tool   string
	code   int
	stderr string
}

func (e *exitError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", e.tool, e.code, strings.TrimSpace(e.stderr))
}

// run runs a tool with a clean environment, as the leader of a process group
// that is killed as a whole when ctx ends or the deadline passes.
func run(ctx context.Context, tool string, args []string, stdin []byte) ([]byte, error) {
	limit := baseDeadline + perMegabyte*time.Duration(len(stdin)>>20)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer in %s", limit))
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=" + strings.Join(toolDirs, ":")}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return stdout.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", tool, context.Cause(ctx))
	case !errors.As(err, &exit) || exit.ExitCode() < 0:
		return nil, fmt.Errorf("%s: %w: %s", tool, err, strings.TrimSpace(stderr.String()))
	}
	failed := &exitError{tool: tool, code: exit.ExitCode(), stderr: stderr.String()}
	if strings.Contains(failed.stderr, "Permission denied") || strings.Contains(failed.stderr, "Operation not permitted") {
		return nil, fmt.Errorf("%w (%w)", ErrPermission, failed)
	}
	return nil, failed
}
