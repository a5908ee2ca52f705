package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// write makes a file and the directories above it.
func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil { //nolint:gosec // a test directory
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil { //nolint:gosec // a test file
		t.Fatal(err)
	}
}

func TestReadTakesConfDInOrder(t *testing.T) {
	dir := t.TempDir()
	main := filepath.Join(dir, "vipd.toml")
	write(t, main, "main")
	for _, name := range []string{"20.toml", "10.toml", "9.toml", "b.toml~", "c.toml.bak", ".#d.toml", ".e.toml", "README", "#f.toml#", "g.toml.dpkg-new"} {
		write(t, filepath.Join(dir, "conf.d", name), name)
	}
	synctest.Test(t, func(t *testing.T) {
		files, err := Read(t.Context(), main)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range files {
			got = append(got, filepath.Base(f.Name)+"="+string(f.Data))
		}
		if want := "vipd.toml=main 10.toml=10.toml 20.toml=20.toml 9.toml=9.toml"; strings.Join(got, " ") != want {
			t.Errorf("got %v, want %s", got, want)
		}
	})
}

// TestF53_HalfWrittenFile lets a writer stop in the middle, where what stands
// there is a valid file that says less.
func TestF53_HalfWrittenFile(t *testing.T) {
	whole := readText(t, "testdata/base.toml")
	half := whole[:strings.Index(whole, "[[service]]\nname = \"dns\"")]
	if _, err := parse("half", half); err != nil {
		t.Fatalf("the half has to be valid for this test: %v", err)
	}
	name := filepath.Join(t.TempDir(), "vipd.toml")
	for _, pause := range []time.Duration{settleTime / 4, settleTime - time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			write(t, name, half)
			go func() {
				time.Sleep(pause)
				write(t, name, whole)
			}()
			c, err := Load(t.Context(), name, modes)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Services) != 5 {
				t.Errorf("writer paused %v: %d services, want 5: a part of the file was believed", pause, len(c.Services))
			}
		})
	}
}

// TestF53_RenameLeavesNoGap: an editor moves the file away before it writes the
// new one.
func TestF53_RenameLeavesNoGap(t *testing.T) {
	name := filepath.Join(t.TempDir(), "vipd.toml")
	synctest.Test(t, func(t *testing.T) {
		go func() {
			time.Sleep(settleTime / 2)
			write(t, name, "new")
		}()
		if files, err := Read(t.Context(), name); err != nil || string(files[0].Data) != "new" {
			t.Errorf("got %v, %v", files, err)
		}
	})
}

func TestF53_FileThatNeverStandsStill(t *testing.T) {
	name := filepath.Join(t.TempDir(), "vipd.toml")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		write(t, name, "0")
		go func() {
			defer close(done)
			_ = wait(ctx, settleTime/4) // never at the moment of a read
			for i := 1; ctx.Err() == nil; i++ {
				write(t, name, fmt.Sprint(i))
				_ = wait(ctx, settleTime/2)
			}
		}()
		start := time.Now()
		_, err := Read(t.Context(), name)
		if err == nil || !strings.Contains(err.Error(), "kept changing") || time.Since(start) != settleDeadline {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		cancel()
		<-done
	})
}

func TestReadHearsItsContext(t *testing.T) {
	name := filepath.Join(t.TempDir(), "vipd.toml")
	write(t, name, "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Read(ctx, name); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestF54_FilesThatAreNone gives one sentence for each, and never waits.
func TestF54_FilesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write(t, at("file"), "x")
	for _, err := range []error{
		os.Mkdir(at("directory"), 0o755), //nolint:gosec // a test directory
		syscall.Mkfifo(at("fifo"), 0o644),
		os.Symlink(at("nowhere"), at("dangling")),
		os.Symlink("loop", at("loop")),
		os.WriteFile(at("huge"), nil, 0o644), //nolint:gosec // a test file
		os.Truncate(at("huge"), 1<<30),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	listener, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	for name, want := range map[string]string{
		at("missing"):     at("missing") + " does not exist; create it or name another file",
		at("dangling"):    "does not exist",
		at("directory"):   "is a directory; name a regular file",
		at("fifo"):        "is a FIFO; name a regular file",
		at("socket"):      "is a socket or a device; name a regular file",
		"/dev/zero":       "is a device; name a regular file",
		at("loop"):        "cannot be read",
		at("huge"):        "is larger than 16 MiB",
		at("file/nested"): "something in this path is no directory",
		"":                "does not exist",
	} {
		synctest.Test(t, func(t *testing.T) {
			files, err := Read(t.Context(), name)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %d files, error %v; want %q", name, len(files), err, want)
			}
		})
	}
}

func TestF54_SameInConfD(t *testing.T) {
	dir := t.TempDir()
	main := filepath.Join(dir, "vipd.toml")
	write(t, main, "")
	write(t, filepath.Join(dir, "conf.d", "good.toml"), "")
	if err := os.Mkdir(filepath.Join(dir, "conf.d", "dir.toml"), 0o755); err != nil { //nolint:gosec // a test directory
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "conf.d", "fifo.toml"), 0o644); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		_, err := Read(t.Context(), main)
		if err == nil || !strings.Contains(err.Error(), "dir.toml is a directory") || !strings.Contains(err.Error(), "fifo.toml is a FIFO") {
			t.Errorf("both have to be named, got %v", err)
		}
	})
}

// TestF54_UnreadableFile reads as another user: nothing keeps root from reading.
func TestF54_UnreadableFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "vipd.toml")
	write(t, name, "")
	if err := os.Chmod(name, 0); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if was, err := unix.SetfsuidRetUid(65534); err == nil { // of this thread only
		defer func() { _, _ = unix.SetfsuidRetUid(was) }()
	}
	if _, err := readFile(name); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "may not be read by this user; ") {
		t.Errorf("got %v", err)
	}
}

func TestReadHoldsTheTotalSize(t *testing.T) {
	dir := t.TempDir()
	main := filepath.Join(dir, "vipd.toml")
	write(t, main, "")
	for i := range maxTotalSize/maxFileSize + 1 {
		name := filepath.Join(dir, "conf.d", fmt.Sprintf("%d.toml", i))
		write(t, name, "")
		if err := os.Truncate(name, maxFileSize); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := readOnce(main); err == nil || !strings.Contains(err.Error(), "4.toml: with this file the configuration is larger than 64 MiB") {
		t.Errorf("got %v", err)
	}
}
