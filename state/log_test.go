package state

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestIndexIsThatOfTheFile: after anything that happens to a log, what is known of it
// is what reading it would tell, and it holds what was written last.
func TestIndexIsThatOfTheFile(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	want := map[ID]json.RawMessage{}
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // to be repeated
	compacted, before := 0, int64(0)
	for round := range 120 {
		var changes []Change
		for range 1 + r.IntN(40) {
			c := change(fmt.Sprint("key-", r.IntN(50)), fmt.Sprintf(`"%d %s"`, round, strings.Repeat("x", r.IntN(9000))))
			if r.IntN(4) == 0 {
				c.Value = nil
			}
			changes = append(changes, c)
			if delete(want, ID{c.Bucket, c.Key}); c.Value != nil {
				want[ID{c.Bucket, c.Key}] = c.Value
			}
		}
		add(t, s, changes...)
		if r.IntN(20) == 0 {
			closeStore(t, s)
			s, _ = open(t, dir)
		} else if s.size < before {
			compacted++
		}
		before = s.size
		file, err := os.Open(filepath.Join(dir, logName))
		if err != nil {
			t.Fatal(err)
		}
		c, err := read(file, header())
		if err != nil || c.whole != s.size || c.index.bytes != s.index.bytes || !maps.Equal(c.index.lines, s.index.lines) {
			t.Fatalf("round %d: the log of %d bytes is taken for one of %d: %v", round, c.whole, s.size, err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		if !same(c.entries, want) {
			t.Fatalf("round %d: it holds %d entries that differ from the %d written", round, len(c.entries), len(want))
		}
	}
	if compacted == 0 {
		t.Error("it was never compacted")
	}
}
