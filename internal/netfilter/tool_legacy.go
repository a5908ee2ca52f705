package netfilter

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// restoreLegacy commits a script, and sees for itself that something came of it:
// legacy tables have no generation that would tell. A table that looks otherwise
// than before is proof. Else all of it is searched, which costs as much as half the
// commit; so a binary that has given proof once is believed for as long as it is the
// same file, and what it might still leave undone is seen by a resync.
func (t *Tool) restoreLegacy(ctx context.Context, script []byte) error {
	marks := scriptMarks(script)
	binary := fileOf(t.restore)
	before, err := t.legacyInfos(marks)
	if err != nil {
		return err
	}
	if err := t.runRestore(ctx, script, nil, "--noflush"); err != nil {
		return err
	}
	after, err := t.legacyInfos(marks)
	if err != nil {
		return err
	}
	for table, sum := range marks {
		if after[table] != before[table] {
			t.proved.Store(binary)
			continue
		}
		if sum == nil || t.proved.Load() == binary {
			continue
		}
		found := false
		err := lookAtLegacy(t.family, table, func(_ legacyInfo, entries []byte) { found = bytes.Contains(entries, sum) })
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("%s: %w", t.restore, errLied)
		}
		t.proved.Store(binary)
	}
	return nil
}

// legacyInfos asks about those of the tables that there are.
func (t *Tool) legacyInfos(tables map[string][]byte) (map[string]legacyInfo, error) {
	infos := map[string]legacyInfo{}
	there, err := legacyTables(t.family)
	if err != nil { // not root: then all of the table is the proof
		t.options.Log.Debug("the legacy tables cannot be listed", "error", err)
		return infos, nil
	}
	for table := range tables {
		if slices.Contains(there, table) {
			if infos[table], err = readLegacyInfo(t.family, table); err != nil {
				return nil, err
			}
		}
	}
	return infos, nil
}

// fileID tells a file from the one that stood in its place before.
type fileID struct {
	dev, inode         uint64
	changed, changedNS int64
}

// fileOf returns what file a path leads to; the zero fileID if to none.
func fileOf(path string) fileID {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileID{}
	}
	sec, nsec := st.Ctim.Unix()
	return fileID{st.Dev, st.Ino, sec, nsec}
}

// scriptMarks returns, for each table that a script names, a checksum that it writes
// there, as it stands in the comment of the rule; nil if it writes none.
func scriptMarks(script []byte) map[string][]byte {
	marks := map[string][]byte{}
	table := ""
	for line := range bytes.Lines(script) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		switch {
		case bytes.HasPrefix(line, []byte("*")):
			table = string(line[1:])
			marks[table] = nil
		case marks[table] == nil && (bytes.HasPrefix(line, []byte("-A ")) || bytes.HasPrefix(line, []byte("-I "))):
			if sum := SumOf(string(line)); sum != "" {
				marks[table] = []byte(sum)
			}
		}
	}
	return marks
}
