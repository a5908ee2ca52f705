package netfilter

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
)

// TestAWaitForTheLockIsToldEverMoreSeldom has a tool that gets the lock at its 21st
// run: 20 steps of waiting are told after 1, 2, 4, 8 and 16, and at their end.
func TestAWaitForTheLockIsToldEverMoreSeldom(t *testing.T) {
	for _, tc := range []struct{ steps, waits, ends int }{{0, 0, 0}, {1, 1, 1}, {20, 5, 1}} {
		runs := filepath.Join(t.TempDir(), "runs")
		tool := shimTool(t, fmt.Sprintf("echo >>%[1]s; test $(wc -l <%[1]s) -gt %[2]d && exit 0\n"+
			"echo 'Another app is currently holding the xtables lock.' >&2; exit 4", runs, tc.steps))
		var log strings.Builder
		tool.options.Log = slog.New(slog.NewTextHandler(&log, nil))
		if _, err := tool.runLocked(t.Context(), tool.restore, nil, nil); err != nil {
			t.Fatal(err)
		}
		waits, ends := strings.Count(log.String(), "waiting for the xtables lock"), strings.Count(log.String(), "is over")
		if waits != tc.waits || ends != tc.ends {
			t.Errorf("%d steps are told %d times, and their end %d times; want %d and %d:\n%s", tc.steps, waits, ends, tc.waits, tc.ends, log.String())
		}
	}
}
