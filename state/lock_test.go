package state

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// holder is the environment variable that makes this test binary hold the
// directory it names until it is killed.
const holder = "VIPD_TEST_HOLD_STATE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(holder); dir != "" {
		s, _, err := Open(dir)
		if err == nil {
			err = s.Append(Change{Bucket: "b", Key: "x", Value: []byte(`1`)})
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("holding")
		time.Sleep(time.Minute) // killed long before
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func TestF140_SecondOpenerIsRefused(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	add(t, s, change("x", `1`))
	second, _, err := Open(dir)
	if second != nil || !errors.Is(err, ErrLocked) {
		t.Fatalf("store %v, error %v; want ErrLocked", second, err)
	}
	wants(t, "nothing changed", load2(t, dir), "x=1")
	closeStore(t, s)
	_, entries := open(t, dir)
	wants(t, "after the first is closed", entries, "x=1")
}

func TestRemoveLeavesNothingButTheLock(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"state.log", "state.log.bad", "state.log.tmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // a second time there is nothing to do
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "lock" {
		t.Errorf("left are %v, %v; want the lock alone", left, err)
	}
}

func TestF142_LockVanishesWithTheProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holder+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "holding\n" {
		t.Errorf("the other process says %q (%v)", line, err)
	}
	if _, _, err := Open(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("error %v while another process holds the directory, want ErrLocked", err)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the other process was not killed")
	}
	_, entries := open(t, dir)
	wants(t, "after kill -9", entries, "x=1")
}
