//go:build kernel

package netfilter

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"vipd/internal/kerneltest"
)

// Somebody puts a rule into a base chain of iptables that iptables cannot show. Our
// jump goes to the top, once, not at each pass; when the rule goes, so does the jump
// that was behind it.
func TestB61_AJumpBehindARuleThatOnlyNftCanShowIsPutRightOnce(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	for _, f := range Families {
		tool, seen, want := kernelTool(t, f), NewBaseline(), testSkeleton()
		ensure := func(step string, wantWrite bool) {
			t.Helper()
			if r, err := tool.ensure(t.Context(), want, seen); err != nil || r.Empty() == wantWrite {
				t.Fatalf("%s, %s: wrote %q, %v", f, step, r.Script, err)
			}
		}
		family := map[Family]string{IPv4: "ip", IPv6: "ip6"}[f]
		nft := func(args ...string) string {
			t.Helper()
			out, err := exec.CommandContext(t.Context(), "nft", args...).CombinedOutput()
			if err != nil {
				t.Fatalf("nft %v: %v\n%s", args, err, out)
			}
			return string(out)
		}
		ensure("first", true)
		nft("insert", "rule", family, "nat", "PREROUTING", "ct", "state", "established", "accept")
		ensure("a rule before the jump", true)
		for range 3 {
			ensure("again", false)
		}
		if _, err := tool.Read(t.Context(), "nat"); !errors.Is(err, ErrIncompatible) {
			t.Errorf("%s: the table is read: %v", f, err)
		}
		nft("delete", "rule", family, "nat", "PREROUTING", "handle", handleOf(t, nft("-a", "list", "chain", family, "nat", "PREROUTING"), "ct state"))
		ensure("the rule is gone", true)
		ensure("at the end", false)
		table, err := tool.Read(t.Context(), "nat")
		if err != nil || len(table.Base["PREROUTING"]) != 1 {
			t.Errorf("%s: the table is %+v, %v", f, table, err)
		}
	}
}

// handleOf returns the handle of the rule that has the text in it.
func handleOf(t *testing.T, listing, text string) string {
	t.Helper()
	for line := range strings.Lines(listing) {
		if _, handle, found := strings.Cut(strings.TrimSpace(line), "# handle "); found && strings.Contains(line, text) {
			return handle
		}
	}
	t.Fatalf("no %q in\n%s", text, listing)
	return ""
}
