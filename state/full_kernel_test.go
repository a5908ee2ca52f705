//go:build kernel

package state

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
)

// TestF119_FullDisk fills a real file system: what was written stays, what was
// not is written when there is room, and a restart in between starts.
func TestF119_FullDisk(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s, _ := open(t, dir)
	add(t, s, change("x", `1`))
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, bytes.Repeat([]byte("x"), 64<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	written := 0
	var err error
	for ; err == nil; written++ {
		err = s.Append(change("n", fmt.Sprint(written)), change(fmt.Sprint(written), `"a line of some length"`))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	entries := load2(t, dir)
	if string(entries[ID{"b", "n"}]) != fmt.Sprint(written-2) || string(entries[ID{"b", "x"}]) != "1" {
		t.Errorf("%d appends succeeded, the log says n=%s, x=%s", written-1, entries[ID{"b", "n"}], entries[ID{"b", "x"}])
	}
	if err := s.Close(); err == nil {
		t.Error("Close wrote what is pending on a full disk")
	}
	s, entries = open(t, dir)
	if string(entries[ID{"b", "x"}]) != "1" {
		t.Errorf("a start on a full disk has x=%s", entries[ID{"b", "x"}])
	}
	if err := s.Append(change("x", `2`), change("long", `"`+string(bytes.Repeat([]byte("y"), 8<<10))+`"`)); err == nil {
		t.Error("a full disk is no error")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	add(t, s)
	if x := load2(t, dir)[ID{"b", "x"}]; string(x) != "2" {
		t.Errorf("with room again x=%s", x)
	}
}
