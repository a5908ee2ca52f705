package netfilter

import (
	"bytes"
	"context"
	"errors"
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
	if err := t.commitLegacy(ctx, script); err != nil {
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

// legacyAttempts is how often a commit is tried that failed without a reason.
const legacyAttempts = 3

// commitLegacy runs the restore. Of a commit that the kernel does not take the tool
// names the line and no reason. It may be a rule; or memory; or that somebody else,
// who does not use the lock or another one, replaced the table meanwhile (EAGAIN).
// A *RestoreError, for which services are quarantined, is only what fails although
// the kernel takes a commit that changes nothing.
func (t *Tool) commitLegacy(ctx context.Context, script []byte) error {
	var refused *RestoreError
	var other error
	before := 0 // lines of commits that stand
	for range legacyAttempts {
		err := t.runRestore(ctx, script, nil, "--noflush")
		if !errors.As(err, &refused) {
			return err
		}
		lines := bytes.SplitAfter(script, []byte("\n"))
		stand := 0
		for i, line := range lines[:max(refused.Line-1, 0)] {
			if bytes.HasPrefix(line, []byte("COMMIT")) {
				stand = i + 1
			}
		}
		if refused.Line > 0 {
			refused.Line += before
		}
		if refused.Text != "COMMIT" {
			return err
		}
		before += stand
		script = bytes.Join(lines[stand:], nil)
		table := bytes.TrimSpace(lines[stand])
		nothing := fmt.Appendf(nil, "%s\n:%sTRY - [0:0]\n-X %sTRY\nCOMMIT\n", table, ChainPrefix, ChainPrefix)
		if err := t.runRestore(ctx, nothing, nil, "--noflush"); err != nil {
			other = err
		}
	}
	if other != nil {
		return fmt.Errorf("the kernel takes no commit now: memory is short, or another program changes the table without the xtables lock "+
			"(let it use the file that %s names, %s by default): %v", lockVariable, lockFile, other) // not %w: no rule is guilty
	}
	return refused
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
