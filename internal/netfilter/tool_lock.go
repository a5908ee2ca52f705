package netfilter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The lock of x_tables: a file that every program which changes legacy rules locks
// with flock(2). The nft backend has no need of it. lockVariable names another file;
// the tool must be told the same one as everybody else on the host.
const (
	lockVariable = "XTABLES_LOCKFILE"
	lockFile     = "/run/xtables.lock"
)

// lockStep is how long one run of a tool waits for the lock. Then it is run again:
// so the wait hears its context, and it can be told who is waited for.
const lockStep = time.Second

// lockWaits counts the waits for the lock of x_tables, of both families.
type lockWaits struct {
	mu     sync.Mutex
	count  uint64
	holder string // who is waited for; empty: nobody
	since  time.Time
}

// LockWait is a wait for the lock of x_tables.
type LockWait struct {
	Holder string    // "flock (pid 123)", or "another program" if the kernel does not tell
	Since  time.Time // when the wait began
}

// LockWaits returns how often a tool had to wait for the lock of x_tables (legacy
// backend) for longer than a moment, and the wait that goes on, or nil.
func (t *Tools) LockWaits() (count uint64, now *LockWait) {
	t.lock.mu.Lock()
	defer t.lock.mu.Unlock()
	if t.lock.holder != "" {
		now = &LockWait{t.lock.holder, t.lock.since}
	}
	return t.lock.count, now
}

func (w *lockWaits) begin(holder string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.holder == "" {
		w.count++
		w.since = time.Now()
	}
	w.holder = holder
}

func (w *lockWaits) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holder = ""
}

// runLocked runs a tool that takes the lock of x_tables, again and again until it
// gets it, the deadline passes or ctx ends.
func (t *Tool) runLocked(ctx context.Context, path string, args []string, stdin []byte) ([]byte, error) {
	args = append(args, "-w", strconv.Itoa(int(lockStep/time.Second)))
	log := t.options.Log.With("family", t.family)
	began, holder := time.Now(), ""
	defer t.lock.end()
	for runs := 1; ; runs++ {
		out, err := t.runOnce(ctx, path, args, stdin, nil)
		waited := time.Since(began).Round(time.Second)
		if !lockHeld(err) {
			if holder != "" {
				log.Warn("the wait for the xtables lock is over", "holder", holder, "waited", waited)
			}
			return out, err
		}
		holder = lockHolder()
		t.lock.begin(holder)
		if time.Since(began) >= t.options.Deadline {
			return nil, fmt.Errorf("%s: the xtables lock is held by %s; waited %s for it", path, holder, waited)
		}
		if runs&(runs-1) == 0 { // 1, 2, 4, 8... steps
			log.Warn("waiting for the xtables lock", "holder", holder, "waited", waited)
		}
	}
}

// lockHeld reports whether a tool gave up because somebody else has the lock.
func lockHeld(err error) bool {
	var exit *exitError
	return errors.As(err, &exit) && exit.code == exitResource && strings.Contains(exit.stderr, "holding the xtables lock")
}

// lockHolder says who has the lock, if the kernel tells: not who is in another pid
// namespace.
func lockHolder() string {
	const unknown = "another program"
	path := os.Getenv(lockVariable)
	if path == "" {
		path = lockFile
	}
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return unknown
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return unknown
	}
	defer func() { _ = f.Close() }()
	// As the kernel writes it: major and minor in hex, the inode in decimal.
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 24623 fe:00:9977857 0 EOF
		words := strings.Fields(lines.Text())
		if len(words) < 6 || words[1] != "FLOCK" || words[5] != want {
			continue // those who wait have "->" in place of FLOCK
		}
		name, err := os.ReadFile("/proc/" + words[4] + "/comm")
		if err != nil {
			return "pid " + words[4]
		}
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), words[4])
	}
	return unknown
}
