package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// story returns a log and every state that it passes through, line by line.
func story(t testing.TB) (log []byte, states []map[ID]json.RawMessage) {
	t.Helper()
	log = []byte(header() + "\n")
	entries := map[ID]json.RawMessage{}
	states = append(states, maps.Clone(entries))
	for i := range 12 {
		c := change(fmt.Sprint("192.0.2.", i%5, ":80/tcp"), fmt.Sprintf(`{"owner":"static","n":%d}`, i))
		if i%4 == 3 {
			c.Value = nil
		}
		var err error
		if log, err = encode(log, ID{c.Bucket, c.Key}, c.Value); err != nil {
			t.Fatal(err)
		}
		if c.Value == nil {
			delete(entries, ID{c.Bucket, c.Key})
		} else {
			entries[ID{c.Bucket, c.Key}] = c.Value
		}
		states = append(states, maps.Clone(entries))
	}
	return log, states
}

func parse(data []byte, want string) (map[ID]json.RawMessage, error) {
	c, err := read(bytes.NewReader(data), want)
	return c.entries, err
}

func same(a, b map[ID]json.RawMessage) bool {
	return maps.EqualFunc(a, b, func(x, y json.RawMessage) bool { return string(x) == string(y) })
}

func TestF121_TruncatedAnywhereItIsAStateThatWas(t *testing.T) {
	log, states := story(t)
	for cut := range len(log) + 1 {
		entries, err := parse(log[:cut], header())
		if err != nil {
			t.Fatalf("cut at %d of %d: %v", cut, len(log), err)
		}
		lines := max(0, strings.Count(string(log[:cut]), "\n")-1)
		if !same(entries, states[lines]) {
			t.Fatalf("cut at %d of %d: holds %v, want the state after %d lines", cut, len(log), entries, lines)
		}
	}
}

func TestF121_AnyFlippedByteIsSeen(t *testing.T) {
	log, states := story(t)
	for at := range log {
		for _, mask := range []byte{0x01, 0x02, 0x08, 0x20, 0x80, 0xff} {
			bad := append([]byte(nil), log...)
			bad[at] ^= mask
			entries, err := parse(bad, header())
			if err != nil {
				if entries != nil {
					t.Fatalf("byte %d ^ %#x: half believed: %v", at, mask, entries)
				}
				continue
			}
			// Without its last newline the last line is one that a crash cut off.
			if at != len(log)-1 || !same(entries, states[len(states)-2]) {
				t.Fatalf("byte %d (%q) ^ %#x is not seen; holds %v", at, log[at], mask, entries)
			}
		}
	}
}

func FuzzF121_DamageIsNeverHalfBelieved(f *testing.F) {
	log, states := story(f)
	host := header()
	f.Add(uint(0), byte(0), uint(len(log)), []byte{})
	f.Add(uint(len(header())), byte('\n'), uint(len(log)), []byte{})
	f.Add(uint(70), byte(1), uint(90), []byte("garbage\n"))
	f.Add(uint(0), byte(0), uint(40), []byte("\n00000000 {}\n"))
	f.Add(uint(0), byte(0), uint(len(header())+1), []byte("\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, at uint, mask byte, cut uint, tail []byte) {
		bad := append([]byte(nil), log...)
		bad[at%uint(len(bad))] ^= mask
		bad = append(bad[:cut%uint(len(log)+1)], tail...)
		entries, err := parse(bad, host)
		if err != nil {
			if entries != nil {
				t.Fatalf("half believed: %v", entries)
			}
			return
		}
		for _, s := range states {
			if same(entries, s) {
				return
			}
		}
		t.Fatalf("a state that never was: %v", entries)
	})
}

func FuzzF121_ParseNeverPanics(f *testing.F) {
	log, _ := story(f)
	host := header()
	f.Add(log)
	f.Add([]byte{})
	f.Add([]byte("vipd-state 1"))
	f.Add([]byte(header() + "\n1c291ca3 \n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if entries, err := parse(data, host); (entries == nil) == (err == nil) {
			t.Fatalf("entries %v with error %v", entries, err)
		}
	})
}

func TestF121_DamagedLogIsPutAsideAndTheStoreIsUsable(t *testing.T) {
	log, _ := story(t)
	cases := map[string]string{
		"a flipped byte":   strings.Replace(string(log), "owner", "0wner", 1),
		"a newer version":  strings.Replace(string(log), "vipd-state 1", "vipd-state 2", 1),
		"another host":     strings.Replace(string(log), header(), header()[:len(header())-4]+"beef", 1),
		"something else":   "#!/bin/sh\nexit 0\n",
		"a long line":      strings.Repeat("x", 1<<20) + "\n",
		"a line in excess": string(log) + "\n",
	}
	for name, content := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, logName)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if entries, err := Load(dir); err == nil {
				t.Errorf("Load believes it: %v", entries)
			}
			s, entries, err := Open(dir)
			var damaged *Damaged
			if !errors.As(err, &damaged) || s == nil || len(entries) != 0 {
				t.Fatalf("store %v, entries %v, error %v; want a *Damaged", s, entries, err)
			}
			t.Cleanup(func() { _ = s.Close() })
			if aside, err := os.ReadFile(damaged.Aside); err != nil || string(aside) != content {
				t.Errorf("the log was not kept aside: %v", err)
			}
			if len(err.Error()) > 500 {
				t.Errorf("the error is %d bytes long", len(err.Error()))
			}
			add(t, s, change("x", `1`))
			closeStore(t, s)
			_, entries = open(t, dir)
			wants(t, "after a restart", entries, "x=1")
		})
	}
}
