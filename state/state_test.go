package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func change(key, value string) Change {
	c := Change{Bucket: "b", Key: key}
	if value != "" {
		c.Value = json.RawMessage(value)
	}
	return c
}

// open opens a directory that is whole and not in use.
func open(t *testing.T, dir string) (*Store, map[ID]json.RawMessage) {
	t.Helper()
	s, entries, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, entries
}

func add(t *testing.T, s *Store, changes ...Change) {
	t.Helper()
	if err := s.Append(changes...); err != nil {
		t.Fatal(err)
	}
}

func closeStore(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// wants compares what a directory holds with "key=value" pairs in bucket b.
func wants(t *testing.T, what string, got map[ID]json.RawMessage, pairs ...string) {
	t.Helper()
	want := map[ID]string{}
	for _, p := range pairs {
		k, v, _ := strings.Cut(p, "=")
		want[ID{"b", k}] = v
	}
	texts := map[ID]string{}
	for id, v := range got {
		texts[id] = string(v)
	}
	if !maps.Equal(texts, want) {
		t.Fatalf("%s: holds %v, want %v", what, texts, want)
	}
}

func load2(t *testing.T, dir string) map[ID]json.RawMessage {
	t.Helper()
	entries, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestWhatIsAppendedIsThereAfterARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "down")
	s, entries := open(t, dir)
	wants(t, "new directory", entries)
	add(t, s, change("x", `1`), change("y", `{"a":"<&>\n"}`), change("z", `null`))
	add(t, s, change("x", `2`), change("y", ""), change("never", ""))
	wants(t, "beside the running one", load2(t, dir), "x=2", "z=null")
	closeStore(t, s)
	s, entries = open(t, dir)
	wants(t, "restart", entries, "x=2", "z=null")
	add(t, s)
	closeStore(t, s)
	_, entries = open(t, dir)
	wants(t, "second restart", entries, "x=2", "z=null")
}

func TestAppendCostsTheChange(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	for i := range 400 {
		add(t, s, change(fmt.Sprintf("key-%d", i), `"a value of some length"`))
	}
	before := s.size
	add(t, s, change("key-7", `"another value"`))
	if grown := s.size - before; grown > 100 {
		t.Errorf("one change grew the log by %d bytes", grown)
	}
}

func TestLogIsCompacted(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	long := `"` + strings.Repeat("x", 10_000) + `"`
	largest := int64(0)
	for i := range 400 {
		add(t, s, change(fmt.Sprint(i%10), long), change("n", fmt.Sprint(i)))
		info, err := os.Stat(filepath.Join(dir, logName))
		if err != nil {
			t.Fatal(err)
		}
		largest = max(largest, info.Size())
		if info.Size() != s.size {
			t.Fatalf("the log is %d bytes long, taken for %d", info.Size(), s.size)
		}
	}
	if largest > 2*minCompact {
		t.Errorf("the log of 100 KB of entries grew to %d bytes", largest)
	}
	entries := load2(t, dir)
	if len(entries) != 11 || string(entries[ID{"b", "n"}]) != "399" || string(entries[ID{"b", "3"}]) != long {
		t.Errorf("after compaction there are %d entries, n=%s", len(entries), entries[ID{"b", "n"}])
	}
}

func TestTailCutOffByACrashIsDropped(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	add(t, s, change("x", `1`))
	add(t, s, change("y", `2`))
	closeStore(t, s)
	path := filepath.Join(dir, logName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data[:len(data)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	s, entries := open(t, dir)
	wants(t, "cut", entries, "x=1")
	add(t, s, change("z", `3`))
	wants(t, "what follows is not glued to the tail", load2(t, dir), "x=1", "z=3")
}

func TestF119_WhatCannotBeWrittenIsWrittenLater(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	add(t, s, change("x", `1`))
	good := s.file
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = full.Close() }()
	s.file = full
	for i := range 3 {
		if err := s.Append(change("x", fmt.Sprint(10+i)), change(fmt.Sprint("k", i), `true`)); err == nil {
			t.Fatal("a full disk is no error")
		}
		wants(t, "the old content is intact", load2(t, dir), "x=1")
	}
	// The disk has room again; what a failed write left behind is still there.
	if _, err := good.WriteAt([]byte("a part of a line, and more of it than follows now"+strings.Repeat("!", 500)+"\n"), s.size); err != nil {
		t.Fatal(err)
	}
	s.file = good
	add(t, s, change("y", `2`))
	wants(t, "later", load2(t, dir), "x=12", "y=2", "k0=true", "k1=true", "k2=true")
}

func TestValueThatIsNoJSONHarmsNoOther(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	if err := s.Append(change("x", `1`), change("bad", `{"half":`), change("y", `2`)); err == nil || !strings.Contains(err.Error(), "bad") {
		t.Errorf("error %v, want one that names the entry", err)
	}
	add(t, s, change("z", `3`))
	wants(t, "the others", load2(t, dir), "x=1", "y=2", "z=3")
}

func TestCloseWritesWhatIsPending(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	s.pending[ID{"b", "x"}] = json.RawMessage(`1`)
	closeStore(t, s)
	wants(t, "closed", load2(t, dir), "x=1")
}

func TestManyGoroutinesAppend(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 50 {
				if err := s.Append(change(fmt.Sprint(g), fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	closeStore(t, s)
	wants(t, "all", load2(t, dir), "0=49", "1=49", "2=49", "3=49", "4=49", "5=49", "6=49", "7=49")
}

func TestLoadOfNothingIsEmpty(t *testing.T) {
	entries, err := Load(filepath.Join(t.TempDir(), "none"))
	if err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestOpenSaysWhatIsWrongWithTheDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _, err := Open(file)
	if s != nil || err == nil || !strings.Contains(err.Error(), "state directory") {
		t.Errorf("store %v, error %v", s, err)
	}
	var damaged *Damaged
	if errors.As(err, &damaged) {
		t.Error("a file in place of the directory is no damaged log")
	}
}
