package linux

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// ErrNoScratch says that no network namespace can be made, so that nothing could be
// tried out. It needs CAP_SYS_ADMIN.
var ErrNoScratch = errors.New("make a network namespace")

// InScratch runs f on a thread in a network namespace of its own. Both end with f.
func InScratch(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the first thread of a process never ends
			done <- InScratch(f) // on another one, for this one is taken
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: nobody else may run in there.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("%w: %w", ErrNoScratch, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Loopback brings up lo in the network namespace of the calling thread, which makes
// its table of local addresses.
func Loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	request, err := unix.NewIfreq("lo")
	if err == nil {
		request.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
