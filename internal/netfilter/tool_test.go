package netfilter

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// shim writes executable scripts in place of the tools and returns their folder.
func shim(t *testing.T, restore string) string {
	t.Helper()
	dir := t.TempDir()
	for name, body := range map[string]string{
		"iptables":             `echo "iptables v1.8.9 (nf_tables)"`,
		"iptables-nft":         `echo "iptables v1.8.9 (nf_tables)"`,
		"iptables-nft-save":    `true`,
		"iptables-nft-restore": restore,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func shimTool(t *testing.T, restore string) *Tool {
	t.Helper()
	tools, err := FindTools(t.Context(), ToolOptions{Dirs: []string{shim(t, restore)}})
	if err != nil {
		t.Fatal(err)
	}
	tool, err := tools.Tool(IPv4)
	if err != nil {
		t.Fatal(err)
	}
	return tool
}

func TestToolThatIsMissingNamesItsPackage(t *testing.T) {
	_, err := FindTools(t.Context(), ToolOptions{Dirs: []string{t.TempDir()}})
	if !errors.Is(err, ErrNotInstalled) || !strings.Contains(err.Error(), "install the package iptables (Debian") {
		t.Errorf("error %v", err)
	}
}

func TestToolThatOthersCanChangeIsRefused(t *testing.T) {
	dir := shim(t, "true")
	if err := os.Chmod(filepath.Join(dir, "iptables-nft-save"), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := FindTools(t.Context(), ToolOptions{Dirs: []string{dir}}); err == nil || !strings.Contains(err.Error(), "could be changed by others") {
		t.Errorf("error %v", err)
	}
}

func TestRestoreErrorNamesTheLine(t *testing.T) {
	script := []byte("*nat\n-A VIPD-X -j FIRST\n-A VIPD-X -j SECOND\nCOMMIT\n")
	for _, tc := range []struct{ stderr, text string }{
		{"iptables-restore v1.8.9 (nf_tables): Chain 'X' does not exist\nError occurred at line: 2\nTry `iptables-restore -h'", "-A VIPD-X -j FIRST"},
		{"iptables-restore v1.8.9 (nf_tables): \nline 3: RULE_APPEND failed (Too many links): rule in chain X", "-A VIPD-X -j SECOND"},
		{"iptables-restore: line 3 failed: No chain/target/match by that name.", "-A VIPD-X -j SECOND"},
		{"iptables-restore: line 99 failed", ""},
	} {
		tool := shimTool(t, "cat >/dev/null; cat >&2 <<'END'\n"+tc.stderr+"\nEND\nexit 2")
		var refused *RestoreError
		if err := tool.Restore(t.Context(), script); !errors.As(err, &refused) || refused.Text != tc.text || refused.Stderr != tc.stderr {
			t.Errorf("stderr %q gives %#v", tc.stderr, err)
		}
	}
}

// What no rule is guilty of must not be laid to the charge of services.
func TestF73_RestoreThatFailsForAnotherReasonRefusesNothing(t *testing.T) {
	for _, end := range []string{
		"echo 'something else' >&2; exit 2", "exit 1", "exit 127", "kill -SEGV $$",
		"echo 'iptables-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: Device busy' >&2; exit 4",
		"echo 'line 3: RULE_APPEND failed (Cannot allocate memory): rule in chain X' >&2; exit 4",
		"echo \"iptables-restore: unable to initialize table 'nat'\n\nError occurred at line: 1\" >&2; exit 2",
	} {
		tool := shimTool(t, "cat >/dev/null; "+end)
		var refused *RestoreError
		if err := tool.Restore(t.Context(), []byte("*nat\n-A VIPD-X -j FIRST\nCOMMIT\n")); err == nil || errors.As(err, &refused) {
			t.Errorf("%s: error %v", end, err)
		}
	}
}

func TestScriptMarksAreTheFirstSumOfEachTable(t *testing.T) {
	script := "*nat\n:VIPD-A - [0:0]\n-A VIPD-A -j RETURN\n-A VIPD-A -m comment --comment vipd-ABC\n-A VIPD-B -m comment --comment vipd-DEF -j RETURN\nCOMMIT\n" +
		"*filter\n-X VIPD-C\n-D INPUT -m comment --comment vipd-GHI -j VIPD-C\nCOMMIT\n"
	want := map[string][]byte{"nat": []byte("ABC"), "filter": nil}
	if got := scriptMarks([]byte(script)); !maps.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("marks %q, want %q", got, want)
	}
}

func TestRestoreWithoutPermissionIsItsOwnError(t *testing.T) {
	tool := shimTool(t, "cat >/dev/null; echo 'Permission denied (you must be root)' >&2; exit 4")
	var refused *RestoreError
	if err := tool.Restore(t.Context(), nil); !errors.Is(err, ErrPermission) || errors.As(err, &refused) {
		t.Errorf("error %v", err)
	}
}

func TestRestoreRunsInACleanEnvironment(t *testing.T) {
	t.Setenv("XTABLES_LIBDIR", "/nonexistent")
	tool := shimTool(t, `cat >/dev/null; test -z "$XTABLES_LIBDIR" && test "$LC_ALL" = C && test "$1" = --noflush`)
	if err := tool.Restore(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

func TestRestoreThatHangsIsKilledWithItsChildren(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	tool := shimTool(t, "sleep 1000 & echo $! > "+pidFile+".new; mv "+pidFile+".new "+pidFile+"; wait")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tool.Restore(ctx, nil) }()
	var pid []byte
	for pid == nil {
		pid, _ = os.ReadFile(pidFile)
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want canceled", err)
	}
	for { // the child is a zombie or gone as soon as its signal is handled
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z") {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestRestoreWaitsForTheOneBefore(t *testing.T) {
	tool := shimTool(t, "true")
	tool.busy <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tool.Restore(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want canceled: two restores would have run at once", err)
	}
	<-tool.busy
	if err := tool.Restore(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// A tool that complains without end is not kept in memory, nor written to the log.
func TestToolThatComplainsWithoutEnd(t *testing.T) {
	err := shimTool(t, `echo "line 2 failed" >&2; head -c 4000000 /dev/zero | tr '\0' x >&2; exit 1`).Restore(t.Context(), []byte("*nat\nCOMMIT\n"))
	var refused *RestoreError
	if !errors.As(err, &refused) || refused.Line != 2 || len(refused.Stderr) > maxComplaint {
		t.Errorf("error %.200v", err)
	}
}
