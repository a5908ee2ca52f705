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
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
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
	// The log is compacted when it is this many times as long as when it was last
	// compacted, and longer than minCompact bytes.
	compactFactor = 4
	minCompact    = 1 << 20
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
	base    int64                  // of the log when it was last compacted
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
	entries, whole, err := load(dir)
	var damaged *Damaged
	if err != nil {
		aside := s.path() + badSuffix
		if moved := os.Rename(s.path(), aside); moved != nil {
			_ = lock.Close()
			return nil, nil, errors.Join(err, moved)
		}
		damaged = &Damaged{Aside: aside, Reason: err}
	}
	if err := s.compact(entries); err != nil {
		if err := s.resume(whole, err); err != nil {
			_ = lock.Close()
			return nil, nil, err
		}
	}
	if damaged != nil {
		return s, nil, damaged
	}
	return s, entries, nil
}

// Load reads the log of a directory without locking or changing it. A directory
// without a log is empty.
func Load(dir string) (map[ID]json.RawMessage, error) {
	entries, _, err := load(dir)
	return entries, err
}

// load is Load. It also returns how many bytes of the log are whole lines.
func load(dir string) (map[ID]json.RawMessage, int64, error) {
	data, err := os.ReadFile(filepath.Join(dir, logName))
	if errors.Is(err, os.ErrNotExist) {
		return map[ID]json.RawMessage{}, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	entries, err := parse(data, header())
	return entries, int64(bytes.LastIndexByte(data, '\n') + 1), err
}

// parse reads a log. Only its last line may be incomplete.
func parse(data []byte, want string) (map[ID]json.RawMessage, error) {
	entries := map[ID]json.RawMessage{}
	first, rest, complete := bytes.Cut(data, []byte("\n"))
	if !complete {
		if strings.HasPrefix(want, string(first)) { // a crash in the very first write
			return entries, nil
		}
		return nil, errors.New("it is no state log of vipd")
	}
	if string(first) != want {
		return nil, fmt.Errorf("its format or host is %.64q, not %q", first, want)
	}
	for number := 2; len(rest) > 0; number++ {
		var text []byte
		text, rest, complete = bytes.Cut(rest, []byte("\n"))
		if !complete {
			return entries, nil
		}
		if err := apply(text, entries); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
	}
	return entries, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// apply reads one line of the log into entries.
func apply(text []byte, entries map[ID]json.RawMessage) error {
	sum, payload, found := bytes.Cut(text, []byte(" "))
	if !found || fmt.Sprintf("%08x", crc32.Checksum(payload, castagnoli)) != string(sum) {
		return errors.New("the checksum is wrong")
	}
	var l line
	if err := json.Unmarshal(payload, &l); err != nil {
		return err
	}
	id := ID{l.Bucket, l.Key}
	if l.Value == nil {
		delete(entries, id)
	} else {
		entries[id] = l.Value
	}
	return nil
}

// encode appends the line of one change.
func encode(out []byte, id ID, value json.RawMessage) ([]byte, error) {
	payload, err := json.Marshal(line{id.Bucket, id.Key, value})
	if err != nil {
		return nil, err
	}
	out = fmt.Appendf(out, "%08x ", crc32.Checksum(payload, castagnoli))
	return append(append(out, payload...), '\n'), nil
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
	var out []byte
	var refused []error
	for _, id := range slices.SortedFunc(maps.Keys(s.pending), compareID) {
		line, err := encode(nil, id, s.pending[id])
		if err != nil { // no later try could write it either
			refused = append(refused, fmt.Errorf("state of %s %s: %w", id.Bucket, id.Key, err))
		}
		out = append(out, line...)
	}
	if err := s.write(out); err != nil {
		return errors.Join(append(refused, fmt.Errorf("state log: %w", err))...)
	}
	s.size += int64(len(out))
	clear(s.pending)
	if s.size > minCompact && s.size > compactFactor*s.base {
		refused = append(refused, s.recompact())
	}
	return errors.Join(refused...)
}

// write appends to the log. What a failed write left of its lines is cut off
// before anything follows it, or else it could be read as newer than that.
func (s *Store) write(out []byte) error {
	if s.torn {
		if err := s.file.Truncate(s.size); err != nil {
			return err
		}
		s.torn = false
	}
	if _, err := s.file.WriteAt(out, s.size); err != nil {
		s.torn = s.file.Truncate(s.size) != nil
		return err
	}
	return nil
}

func compareID(a, b ID) int {
	if c := strings.Compare(a.Bucket, b.Bucket); c != 0 {
		return c
	}
	return strings.Compare(a.Key, b.Key)
}

func (s *Store) recompact() error {
	entries, err := Load(s.dir)
	if err != nil {
		return fmt.Errorf("state log, compacting: %w", err)
	}
	return s.compact(entries)
}

// compact replaces the log by one that holds just these entries: a new file,
// synced, renamed over the old one, which stays whole until then.
func (s *Store) compact(entries map[ID]json.RawMessage) error {
	out := []byte(header() + "\n")
	var err error
	for _, id := range slices.SortedFunc(maps.Keys(entries), compareID) {
		if out, err = encode(out, id, entries[id]); err != nil {
			return fmt.Errorf("state of %s %s: %w", id.Bucket, id.Key, err)
		}
	}
	file, err := replaceFile(s.path(), out)
	if err != nil {
		return fmt.Errorf("state log: %w", err)
	}
	if s.file != nil {
		_ = s.file.Close()
	}
	s.file, s.size, s.base, s.torn = file, int64(len(out)), int64(len(out)), false
	return nil
}

// Close writes what is pending, if it can, and unlocks the directory.
func (s *Store) Close() error {
	err := s.Append()
	return errors.Join(err, s.file.Close(), s.lock.Close())
}

func (s *Store) path() string { return filepath.Join(s.dir, logName) }
