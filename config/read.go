package config

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Limits of what is read, in bytes.
const (
	maxFileSize  = 16 << 20
	maxTotalSize = 64 << 20
)

const (
	// settleTime is how long the files have to stand still to be believed.
	settleTime = 200 * time.Millisecond
	// settleDeadline is how long Read waits for that.
	settleDeadline = 10 * time.Second
)

// File is the name and the content of a file.
type File struct {
	Name string
	Data []byte
}

// Read returns the file at path, and behind it the files conf.d/*.toml beside it
// in lexical order. A name that begins with a dot is passed over, and so is what
// does not end in ".toml": backups and half-written files of editors.
//
// Read believes what it sees twice, 200 ms apart: a file that somebody is writing
// is read again, and so is one that is missing while an editor renames it. It
// takes only regular files, and never waits for the writer of a FIFO.
func Read(ctx context.Context, path string) ([]File, error) {
	ctx, cancel := context.WithTimeout(ctx, settleDeadline)
	defer cancel()
	files, err := readOnce(path)
	for {
		if wait(ctx, settleTime) != nil {
			break
		}
		was, wasErr := files, err
		if files, err = readOnce(path); sameFiles(was, files) && sameError(wasErr, err) {
			return files, err
		}
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
		return nil, fmt.Errorf("reading %s: %w", path, cause)
	}
	return nil, fmt.Errorf("%s or a file in its conf.d kept changing for %v; write to another name and rename it into place", path, settleDeadline)
}

// wait sleeps for d, or less if ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func sameFiles(a, b []File) bool {
	return slices.EqualFunc(a, b, func(a, b File) bool { return a.Name == b.Name && bytes.Equal(a.Data, b.Data) })
}

func sameError(a, b error) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Error() == b.Error()
}

// readOnce reads all files. The error names each one that could not be read.
func readOnce(path string) ([]File, error) {
	names, err := included(path)
	var (
		files []File
		errs  = []error{err}
		total int
	)
	for _, name := range append([]string{path}, names...) {
		data, err := readFile(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if total += len(data); total > maxTotalSize {
			errs = append(errs, fmt.Errorf("%s: with this file the configuration is larger than %d MiB; make it smaller", name, maxTotalSize>>20))
			break
		}
		files = append(files, File{name, data})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return files, nil
}

// included returns the names of the files in conf.d beside path.
func included(path string) ([]string, error) {
	dir := filepath.Join(filepath.Dir(path), "conf.d")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, explain(dir, err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".toml") && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	return names, nil
}

// readFile reads one regular file.
func readFile(name string) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO returns at once.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, explain(name, err)
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return nil, explain(name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is %s; name a regular file", name, kindOfFile(info.Mode()))
	}
	if info.Size() > maxFileSize {
		return nil, tooLarge(name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, explain(name, err)
	}
	if len(data) > maxFileSize {
		return nil, tooLarge(name)
	}
	return data, nil
}

func tooLarge(name string) error {
	return fmt.Errorf("%s is larger than %d MiB; divide it into files in conf.d", name, maxFileSize>>20)
}

func kindOfFile(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case m&fs.ModeSocket != 0:
		return "a socket"
	}
	return "a device"
}

// explain makes one sentence of an error of the file system.
func explain(name string, err error) error {
	var inPath *fs.PathError
	if errors.As(err, &inPath) {
		err = inPath.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist; create it or name another file: %w", name, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s may not be read by this user; change its mode or run as root: %w", name, err)
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%s cannot be read, for something in this path is no directory; mend the path: %w", name, err)
	case errors.Is(err, syscall.ENXIO):
		return fmt.Errorf("%s is a socket or a device; name a regular file: %w", name, err)
	}
	return fmt.Errorf("%s cannot be read; look at the file: %w", name, err)
}
