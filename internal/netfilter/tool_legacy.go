package netfilter

import (
	"bytes"
	"context"
	"fmt"
	"slices"
)

// restoreLegacy commits a script, and sees for itself that something came of it:
// legacy tables have no generation that would tell.
func (t *Tool) restoreLegacy(ctx context.Context, script []byte) error {
	marks := scriptMarks(script)
	before := map[string]legacyInfo{}
	there, err := legacyTables(t.family)
	for table := range marks {
		if err != nil || !slices.Contains(there, table) {
			continue
		}
		if before[table], err = readLegacyInfo(t.family, table); err != nil {
			return err
		}
	}
	if err := t.runRestore(ctx, script, nil, "--noflush"); err != nil {
		return err
	}
	for table, sum := range marks {
		now, err := readLegacyInfo(t.family, table)
		if err != nil {
			return err
		}
		if now != before[table] || sum == nil {
			continue
		}
		found := false
		if err := lookAtLegacy(t.family, table, func(_ legacyInfo, entries []byte) { found = bytes.Contains(entries, sum) }); err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("%s: %w", t.restore, errLied)
		}
	}
	return nil
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
