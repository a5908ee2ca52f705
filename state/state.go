// Package state keeps what must outlive the process: the accepted set of each
// source and what was decided of each service (owner, drains).
//
// It is one append-only log of key-value changes in one directory, written before
// the first kernel write that a change covers, in proportion to the change. Each
// line carries a checksum; the first names the format and the host. A tail that
// was cut off by a crash is dropped. A log that is damaged otherwise, or that
// another host or a newer vipd wrote, is put aside under another name and never
// believed: the kernel keeps what it has, and nothing is removed for it.
//
// The log is not synced at every append: what a power failure takes of it, it has
// taken of the kernel's rules as well.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

const (
	logName  = "state.log"
	lockName = "lock"
	// What stands beside the log: one that is not believed, and one being written.
	badSuffix = ".bad"
	newSuffix = ".tmp"
	version   = 1
	// The log is compacted when it is this many times as long as the lines in force,
	// and longer than minCompact bytes.
	compactFactor = 4
	minCompact    = 1 << 20
	bufferSize    = 64 << 10
)

// Change sets or deletes one entry of the log.
type Change struct {
	Bucket string
	Key    string
	Value  json.RawMessage // nil: deleted
}

// ID names an entry.
type ID struct{ Bucket, Key string }

// line is the form of a Change in the log.
type line struct {
	Bucket string          `json:"b"`
	Key    string          `json:"k"`
	Value  json.RawMessage `json:"v,omitempty"`
}

// Store is an open state directory. It may be used by several goroutines.
type Store struct {
	dir  string
	lock *os.File

	mu      sync.Mutex
	file    *os.File
	size    int64                  // of the log
	index   index                  // where in it the lines in force are
	torn    bool                   // there may be parts of lines after size
	pending map[ID]json.RawMessage // what could not be written yet
}

// ErrLocked is the error of Open when another vipd holds the directory.
var ErrLocked = errors.New("another vipd is using this state directory")

// Damaged is the error of Open for a log that cannot be believed. The Store that
// comes with it is empty and ready for use.
type Damaged struct {
	Aside  string // where the log is now
	Reason error
}

// Error says what was wrong and where the log is now.
func (d *Damaged) Error() string {
	return fmt.Sprintf("the state of the last run is not used (%v); it was moved to %s", d.Reason, d.Aside)
}

// Unwrap returns the reason.
func (d *Damaged) Unwrap() error { return d.Reason }

// Open locks dir, which it makes if needed, and returns what its log holds. With
// a *Damaged error the Store is usable and empty; with any other it is nil.
func Open(dir string) (*Store, map[ID]json.RawMessage, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, nil, fmt.Errorf("state directory: %w", err)
	}
	lock, err := acquire(filepath.Join(dir, lockName))
	if err != nil {
		return nil, nil, err
	}
	s := &Store{dir: dir, lock: lock, pending: map[ID]json.RawMessage{}}
	entries, damaged, err := s.begin()
	if err != nil {
		_ = lock.Close()
		return nil, nil, err
	}
	if damaged != nil {
		return s, nil, damaged
	}
	return s, entries, nil
}

// begin reads the log that is there and goes on with it, compacted; with one that
// is damaged put aside. A log that cannot be compacted is gone on with as it is: a
// disk that is full does not stop vipd from starting.
func (s *Store) begin() (map[ID]json.RawMessage, *Damaged, error) {
	file, c, err := load(s.path(), os.O_RDWR)
	var damaged *Damaged
	if err != nil {
		aside := s.path() + badSuffix
		if moved := os.Rename(s.path(), aside); moved != nil {
			return nil, nil, errors.Join(err, moved)
		}
		damaged = &Damaged{Aside: aside, Reason: err}
	}
	s.file, s.index, s.size, s.torn = file, c.index, c.whole, true
	if err := s.compact(); err != nil && s.size == 0 {
		if s.file != nil {
			_ = s.file.Close()
		}
		return nil, nil, err
	}
	return c.entries, damaged, nil
}

// Load reads the log of a directory without locking or changing it. A directory
// without a log is empty.
func Load(dir string) (map[ID]json.RawMessage, error) {
	file, c, err := load(filepath.Join(dir, logName), os.O_RDONLY)
	if file != nil {
		_ = file.Close()
	}
	return c.entries, err
}

// Append writes changes. After an error, which does not harm what was written
// before, they are kept and written with the next Append.
func (s *Store) Append(changes ...Change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changes {
		s.pending[ID{c.Bucket, c.Key}] = c.Value
	}
	if len(s.pending) == 0 {
		return nil
	}
	refused, err := s.write()
	if err != nil {
		return errors.Join(append(refused, fmt.Errorf("state log: %w", err))...)
	}
	if s.size > minCompact && s.size > compactFactor*s.index.bytes {
		refused = append(refused, s.compact())
	}
	return errors.Join(refused...)
}

// write appends what is pending to the log. What a failed write left of its lines
// is cut off before anything follows it, or else it could be read as newer than
// that.
func (s *Store) write() (refused []error, err error) {
	if s.torn {
		if err := s.file.Truncate(s.size); err != nil {
			return nil, err
		}
		s.torn = false
	}
	var out []byte
	var lines []entryLine
	end := s.size // of what is in the file
	flush := func() error {
		_, err := s.file.WriteAt(out, end)
		end += int64(len(out))
		out = out[:0]
		return err
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.pending), compareID) {
		begin := len(out)
		if out, err = encode(out, id, s.pending[id]); err != nil { // no later try could write it either
			refused, err = append(refused, fmt.Errorf("state of %s %s: %w", id.Bucket, id.Key, err)), nil
			continue
		}
		lines = append(lines, entryLine{id, s.pending[id] == nil, extent{end + int64(begin), int64(len(out) - begin)}})
		if len(out) > bufferSize {
			if err = flush(); err != nil {
				break
			}
		}
	}
	if err == nil {
		err = flush()
	}
	if err != nil {
		s.torn = s.file.Truncate(s.size) != nil
		return refused, err
	}
	for _, l := range lines {
		s.index.note(l)
	}
	s.size, s.pending = end, map[ID]json.RawMessage{}
	return refused, nil
}

func compareID(a, b ID) int {
	if c := strings.Compare(a.Bucket, b.Bucket); c != 0 {
		return c
	}
	return strings.Compare(a.Key, b.Key)
}

// compact replaces the log by one that holds just the lines in force: a new file,
// synced, renamed over the old one, which stays whole until then. It copies line by
// line: the log may be many times as long as what vipd has in memory.
func (s *Store) compact() error {
	index := newIndex()
	size := int64(0)
	file, err := replaceFile(s.path(), func(w io.Writer) error {
		n, err := fmt.Fprintln(w, header())
		size = int64(n)
		for digest, at := range s.index.inOrder() {
			if err == nil {
				_, err = io.Copy(w, io.NewSectionReader(s.file, at.offset, at.length))
			}
			index.set(digest, extent{size, at.length})
			size += at.length
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("state log, compacting: %w", err)
	}
	if s.file != nil {
		_ = s.file.Close()
	}
	s.file, s.index, s.size, s.torn = file, index, size, false
	return nil
}

// Close writes what is pending, if it can, and unlocks the directory.
func (s *Store) Close() error {
	err := s.Append()
	return errors.Join(err, s.file.Close(), s.lock.Close())
}

func (s *Store) path() string { return filepath.Join(s.dir, logName) }
