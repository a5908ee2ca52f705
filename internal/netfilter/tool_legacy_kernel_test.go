//go:build kernel

package netfilter

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vipd/internal/kerneltest"
)

// failingCommits returns the tool of a legacy iptables-restore whose commit of a
// script with a word in it fails so many times, as it does when somebody else
// replaces the table meanwhile. The commits before that stand.
func failingCommits(t *testing.T, word string, times int) *Tool {
	t.Helper()
	dir := t.TempDir()
	shim := fmt.Sprintf(`in=$(cat)
n=$(cat %[1]s/n 2>/dev/null || echo 0)
case "$in" in *%[2]s*) if [ "$n" -lt %[3]d ]; then
	echo $((n+1)) >%[1]s/n
	case "$in" in *COMMIT*COMMIT*) printf '%%s\n' "${in%%%%COMMIT*}COMMIT" | /usr/sbin/iptables-legacy-restore "$@" || exit;; esac
	echo "iptables-restore: line $(printf '%%s\n' "$in" | wc -l) failed" >&2
	exit 1
fi;; esac
printf '%%s\n' "$in" | /usr/sbin/iptables-legacy-restore "$@"
`, dir, word, times)
	for name, text := range map[string]string{
		"iptables-legacy": `exec /usr/sbin/iptables-legacy "$@"`, "iptables-legacy-save": `exec /usr/sbin/iptables-legacy-save "$@"`,
		"iptables-legacy-restore": shim,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tools, err := FindTools(t.Context(), ToolOptions{Backend: Legacy, Dirs: []string{dir}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	tool, err := tools.Tool(IPv4)
	if err != nil {
		t.Fatal(err)
	}
	return tool
}

// No service is guilty of it that another program replaced the table meanwhile.
func TestB62_F73_ALegacyCommitThatFailsForNoRuleIsMadeAgain(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	const script = "*nat\n:VIPD-A - [0:0]\n-I PREROUTING 1 -j VIPD-A\nCOMMIT\n*filter\n:VIPD-B - [0:0]\n-I INPUT 1 -j VIPD-B\nCOMMIT\n"
	for _, tc := range []struct {
		name  string
		word  string
		times int
		want  func(error) bool
		stand int // jumps in INPUT
	}{
		{"twice", "VIPD-B", legacyAttempts - 1, func(err error) bool { return err == nil }, 1},
		{"whatever is committed", "COMMIT", 1000, func(err error) bool {
			var refused *RestoreError
			return err != nil && !errors.As(err, &refused) && strings.Contains(err.Error(), "xtables lock")
		}, 0},
		{"this alone", "VIPD-B", 1000, func(err error) bool {
			var refused *RestoreError
			return errors.As(err, &refused) && refused.Line == 8 && refused.Text == "COMMIT"
		}, 0},
	} {
		tool := failingCommits(t, tc.word, tc.times)
		if err := tool.Restore(t.Context(), []byte(script)); !tc.want(err) {
			t.Errorf("%s: error %v", tc.name, err)
		}
		nat, natErr := tool.Read(t.Context(), "nat")
		filter, err := tool.Read(t.Context(), "filter")
		if err := errors.Join(natErr, err); err != nil {
			t.Fatal(err)
		}
		if len(nat.Base["PREROUTING"]) != 1 || len(filter.Base["INPUT"]) != tc.stand {
			t.Errorf("%s: PREROUTING holds %q, INPUT %q", tc.name, nat.Base["PREROUTING"], filter.Base["INPUT"])
		}
		clean := "*nat\n-F PREROUTING\n-F VIPD-A\n-X VIPD-A\nCOMMIT\n*filter\n-F INPUT\n"
		if tc.stand > 0 {
			clean += "-X VIPD-B\n"
		}
		if err := kernelRestore(t, clean+"COMMIT\n"); err != nil {
			t.Fatal(err)
		}
	}
}

func kernelRestore(t *testing.T, script string) error {
	t.Helper()
	tool, err := kernelTools(t, Legacy).Tool(IPv4)
	if err != nil {
		return err
	}
	return tool.Restore(t.Context(), []byte(script))
}
