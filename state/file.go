package state

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// header is the first line of a log: the format and a hash of the machine id, so
// that a directory copied to another host is not taken for its own.
func header() string {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		id = []byte("unknown")
	}
	sum := sha256.Sum256([]byte("vipd state " + strings.TrimSpace(string(id))))
	return fmt.Sprintf("vipd-state %d %x", version, sum[:8])
}

// acquire takes the lock of a directory. The kernel gives it back when the
// process ends, however it ends.
func acquire(path string) (*os.File, error) {
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrLocked, filepath.Dir(path))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return lock, nil
}

// replaceFile writes a file so that path holds either the old or the new content
// at every moment, and returns it open for reading and writing.
func replaceFile(path string, content func(io.Writer) error) (*os.File, error) {
	tmp := path + newSuffix
	file, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o640)
	if err != nil {
		return nil, err
	}
	buffer := bufio.NewWriterSize(file, bufferSize)
	if err = content(buffer); err == nil {
		err = buffer.Flush()
	}
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close(), os.Remove(tmp))
	}
	if dir, err := os.Open(filepath.Dir(path)); err == nil {
		_ = dir.Sync() // the rename itself; not every filesystem can
		_ = dir.Close()
	}
	return file, nil
}

// Remove deletes the log of a directory that nobody uses, and what was put aside
// of it. That there is none is no error.
func Remove(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	lock, err := acquire(filepath.Join(dir, lockName))
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	var errs []error
	for _, name := range []string{logName, logName + badSuffix, logName + newSuffix} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("state log: %w", err))
		}
	}
	return errors.Join(errs...)
}
