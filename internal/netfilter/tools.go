package netfilter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Backend is the part of the kernel that iptables writes to: one iptables
// translates for nftables, the other speaks to x_tables. The rules of both are in
// force at once, and neither shows those of the other.
type Backend string

// The backends. Auto is no backend but a question: that of the system's iptables.
const (
	Auto   Backend = "auto"
	NFT    Backend = "nft"
	Legacy Backend = "legacy"
)

// other returns the backend that b is not.
func (b Backend) other() Backend {
	if b == NFT {
		return Legacy
	}
	return NFT
}

// ErrNotInstalled says that a tool is missing; the text names the package to
// install.
var ErrNotInstalled = errors.New("not installed")

// toolDirs is where the tools are looked for, in this order: never in $PATH,
// which is somebody else's word.
var toolDirs = []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"}

// ToolOptions say which tools are used. The zero value of a field is its default.
type ToolOptions struct {
	Backend  Backend       // Auto
	Dirs     []string      // where the tools are looked for; the system's folders
	Deadline time.Duration // of a run, without what a big input adds; 30 s
	Log      *slog.Logger  // slog.Default()

	started func(pid int) // called with the process of a run
}

func (o ToolOptions) withDefaults() ToolOptions {
	if o.Backend == "" {
		o.Backend = Auto
	}
	if o.Dirs == nil {
		o.Dirs = toolDirs
	}
	if o.Deadline == 0 {
		o.Deadline = baseDeadline
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}

// Tools is iptables for both families, with one backend. There is one Tools in a
// program, so that at most one restore runs at once a family. A nil *Tools has none.
type Tools struct {
	backend Backend
	options ToolOptions
	found   [len(Families)]*Tool
	missing [len(Families)]error // why there is no Tool
	lock    *lockWaits
	ledger  *Ledger     // nft
	poll    *legacyPoll // legacy
}

// FindTools finds the tools of a backend; for Auto that of the system's iptables,
// or if there is none, the one that is installed. It needs no privilege and runs
// only "iptables -V". The error is ErrNotInstalled if there is a tool for neither
// family; that of one family comes from Tool.
func FindTools(ctx context.Context, o ToolOptions) (*Tools, error) {
	o = o.withDefaults()
	t := &Tools{backend: o.Backend, options: o, lock: &lockWaits{}}
	switch o.Backend {
	case Auto:
		var err error
		if t.backend, err = systemBackend(ctx, o); err != nil {
			return nil, err
		}
	case NFT, Legacy:
	default:
		return nil, fmt.Errorf("unknown iptables backend %q; use %q, %q or %q", o.Backend, Auto, NFT, Legacy)
	}
	if t.backend == NFT {
		t.ledger = newLedger()
	} else {
		t.poll = newLegacyPoll()
	}
	for i, f := range Families {
		t.found[i], t.missing[i] = findTool(ctx, f, t.backend, o)
		if t.found[i] != nil {
			t.found[i].lock, t.found[i].ledger, t.found[i].poll = t.lock, t.ledger, t.poll
		}
	}
	if t.missing[0] != nil && t.missing[1] != nil {
		return nil, errors.Join(t.missing[:]...)
	}
	return t, nil
}

// Backend returns NFT or Legacy.
func (t *Tools) Backend() Backend { return t.backend }

// Version returns the version of iptables: "1.8.9".
func (t *Tools) Version() string {
	for _, tool := range t.found {
		if tool != nil {
			return tool.version.text
		}
	}
	return ""
}

// Tool returns the tool of a family, always the same one. The error is that with
// which it was not found: ErrNotInstalled, or a binary that is not to be trusted.
func (t *Tools) Tool(f Family) (*Tool, error) {
	if t == nil {
		return nil, fmt.Errorf("iptables is %w", ErrNotInstalled)
	}
	i := f.index()
	return t.found[i], t.missing[i]
}

// Watch calls drift for every change to what is ours in the packet filter that
// somebody else made: nearly at once with the nft backend, where it also says who
// did it, within a second with the legacy one. Our own writes do not count. It
// returns nil when ctx ends. One watch may run at a time.
func (t *Tools) Watch(ctx context.Context, drift func(Drift)) error {
	switch {
	case t == nil:
		<-ctx.Done()
		return nil
	case t.backend == Legacy:
		err := t.poll.watch(ctx, drift)
		if !errors.Is(err, fs.ErrPermission) {
			return err
		}
		t.options.Log.Warn("what others do to the legacy tables is seen by the resyncs only: to list the tables takes root", "error", err)
		<-ctx.Done()
		return nil
	}
	return watchEvents(ctx, t.ledger, drift)
}

// systemBackend asks the iptables that the host's administrator uses.
func systemBackend(ctx context.Context, o ToolOptions) (Backend, error) {
	path, err := findBinary("iptables", o.Dirs)
	if err == nil {
		v, err := askVersion(ctx, path, o)
		return v.backend, err
	}
	if !errors.Is(err, ErrNotInstalled) {
		return "", err
	}
	for _, b := range []Backend{NFT, Legacy} {
		if _, found := findBinary("iptables-"+string(b), o.Dirs); found == nil {
			return b, nil
		}
	}
	return "", err
}

// findTool finds the three binaries of a family: those that name their backend,
// or else the plain ones if they say that they have it.
func findTool(ctx context.Context, f Family, b Backend, o ToolOptions) (*Tool, error) {
	plain := "iptables"
	if f == IPv6 {
		plain = "ip6tables"
	}
	name := plain + "-" + string(b)
	if _, err := findBinary(name, o.Dirs); errors.Is(err, ErrNotInstalled) {
		path, plainErr := findBinary(plain, o.Dirs)
		if plainErr != nil {
			return nil, err
		}
		if v, plainErr := askVersion(ctx, path, o); plainErr != nil || v.backend != b {
			return nil, errors.Join(err, plainErr)
		}
		name = plain
	}
	t := &Tool{family: f, backend: b, options: o, busy: make(chan struct{}, 1)}
	for suffix, path := range map[string]*string{"": &t.iptables, "-restore": &t.restore, "-save": &t.save} {
		found, err := findBinary(name+suffix, o.Dirs)
		if err != nil {
			return nil, err
		}
		*path = found
	}
	var err error
	if t.version, err = askVersion(ctx, t.iptables, o); err != nil {
		return nil, err
	}
	if t.version.backend != b {
		return nil, fmt.Errorf("%s says that its backend is %s, not %s; mend the installation of iptables", t.iptables, t.version.backend, b)
	}
	return t, nil
}

// findBinary returns the absolute path of a binary that only root can change.
func findBinary(name string, dirs []string) (string, error) {
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
	return "", fmt.Errorf("%s is %w: install the package iptables (Debian, Ubuntu), or iptables-nft or iptables-legacy (RHEL, Fedora)", name, ErrNotInstalled)
}

// version is what "iptables -V" says.
type version struct {
	text    string // "1.8.9"
	number  [3]int
	backend Backend
}

// atLeast reports whether the version is that one or newer.
func (v version) atLeast(major, minor, patch int) bool {
	for i, n := range []int{major, minor, patch} {
		if v.number[i] != n {
			return v.number[i] > n
		}
	}
	return true
}

// versionLine is "iptables v1.8.9 (nf_tables)"; before 1.8 there was one backend,
// and no word of it.
var versionLine = regexp.MustCompile(`^ip6?tables v((\d+)\.(\d+)(?:\.(\d+))?)\S*(?: \((\w+)\))?\s*$`)

// askVersion runs "iptables -V".
func askVersion(ctx context.Context, path string, o ToolOptions) (version, error) {
	out, _, err := run(ctx, o, path, []string{"-V"}, nil)
	if err != nil {
		return version{}, fmt.Errorf("asking for its version: %w", err)
	}
	v, ok := parseVersion(string(out))
	if !ok {
		return version{}, fmt.Errorf("%s is not iptables: asked for its version it says %.80q; mend the installation of iptables", path, out)
	}
	return v, nil
}

func parseVersion(text string) (v version, ok bool) {
	m := versionLine.FindStringSubmatch(text)
	if m == nil {
		return v, false
	}
	v.text = m[1]
	for i := range v.number {
		v.number[i], _ = strconv.Atoi(m[2+i]) // "" is 0
	}
	switch m[5] {
	case "nf_tables":
		v.backend = NFT
	case "legacy", "":
		v.backend = Legacy
	default:
		return v, false
	}
	return v, true
}

// environment is all that a tool gets to see of ours. The place of the lock of
// x_tables is the administrator's to say, in the environment of the daemon.
func environment() []string {
	env := []string{"LC_ALL=C", "PATH=" + strings.Join(toolDirs, ":")}
	if path := os.Getenv(lockVariable); path != "" {
		env = append(env, lockVariable+"="+path)
	}
	return env
}
