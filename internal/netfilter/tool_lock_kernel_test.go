//go:build kernel

package netfilter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
)

// hold takes the lock of x_tables, as an iptables-legacy would that hangs.
func hold(t *testing.T, path string) (release func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	return func() { _ = f.Close() }
}

func TestB62_F64_TheLockIsWaitedForWithinTheDeadline(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	tools, err := FindTools(t.Context(), ToolOptions{Backend: Legacy, Deadline: 2 * time.Second, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	tool, err := tools.Tool(IPv4)
	if err != nil {
		t.Fatal(err)
	}
	write := func(ctx context.Context, chain string) error {
		return tool.Restore(ctx, []byte("*nat\n:"+chain+" - [0:0]\nCOMMIT\n"))
	}
	me := fmt.Sprintf("(pid %d)", os.Getpid())

	release := hold(t, lockFile)
	var refused *RestoreError
	if err := write(t.Context(), "VIPD-A"); err == nil || errors.As(err, &refused) || !strings.Contains(err.Error(), "the xtables lock is held by") || !strings.Contains(err.Error(), me) {
		t.Errorf("error %v, want one that names %s", err, me)
	}
	if n, now := tools.LockWaits(); n != 1 || now != nil {
		t.Errorf("%d waits, %+v", n, now)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- write(ctx, "VIPD-B") }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want canceled", err)
	}
	release()
	if err := write(t.Context(), "VIPD-C"); err != nil {
		t.Error(err)
	}
	table, err := tool.Read(t.Context(), "nat")
	if _, found := table.Own["VIPD-C"]; err != nil || !found || len(table.Own) != 1 {
		t.Errorf("read %v, %v; want VIPD-C alone", table.Own, err)
	}

	other := filepath.Join(t.TempDir(), "lock")
	t.Setenv(lockVariable, other)
	defer hold(t, lockFile)()
	if err := write(t.Context(), "VIPD-D"); err != nil {
		t.Errorf("with another lock: %v", err)
	}
	defer hold(t, other)()
	if err := write(t.Context(), "VIPD-E"); err == nil || !strings.Contains(err.Error(), me) {
		t.Errorf("with another lock, which is held: %v", err)
	}
}
