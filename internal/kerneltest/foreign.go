package kerneltest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Foreign is what a host holds that is not ours: rules, sets, links, addresses and
// routes, each section as sorted or ordered lines. A test takes it before and after
// and compares: nothing foreign may have changed.
type Foreign map[string][]string

// The names that are ours. A line with one of them is no foreign line.
var ours = []string{"VIPD-", "vipd"}

// foreignSections are the commands that show a host. ordered: the order of the lines
// has a meaning, as it has for rules.
var foreignSections = []struct {
	ordered bool
	argv    []string
}{
	{true, []string{"iptables-nft-save"}},
	{true, []string{"ip6tables-nft-save"}},
	{true, []string{"iptables-legacy-save"}},
	{true, []string{"ip6tables-legacy-save"}},
	{false, []string{"ipset", "save"}},
	{false, []string{"ip", "-o", "link", "show"}},
	{false, []string{"ip", "-o", "address", "show"}},
	{true, []string{"ip", "rule", "show"}},
	{false, []string{"ip", "-4", "route", "show", "table", "all"}},
	{false, []string{"ip", "-6", "route", "show", "table", "all"}},
}

// Foreign reads the foreign state of h. own lists further words that mark a line as
// ours, such as the name of a device other than vipd0.
func (h *Host) Foreign(t testing.TB, own ...string) Foreign {
	t.Helper()
	own = append(slices.Clone(ours), own...)
	state := Foreign{}
	for _, s := range foreignSections {
		lines := foreignLines(h.show(t, s.argv...), own)
		if !s.ordered {
			slices.Sort(lines)
		}
		state[strings.Join(s.argv, " ")] = lines
	}
	for table := range strings.Lines(h.show(t, "nft", "list", "tables")) {
		table = strings.TrimSpace(table)
		if name, ok := strings.CutPrefix(table, "table "); ok && !xtablesTable.MatchString(table) {
			state["nft "+table] = foreignLines(h.show(t, append([]string{"nft", "-s", "list", "table"}, strings.Fields(name)...)...), own)
		}
	}
	return state
}

// show returns the standard output of a command; warnings on standard error, such as
// the one of iptables-save about legacy tables, are no state.
func (h *Host) show(t testing.TB, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), runTimeout)
	defer cancel()
	var stderr bytes.Buffer
	cmd := h.Command(ctx, argv[0], argv[1:]...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kerneltest: on %s: %s: %v\n%s", h.Name, strings.Join(argv, " "), err, stderr.Bytes())
	}
	return string(out)
}

// Diff tells what differs from an earlier state, a line each, and is empty if
// nothing does.
func (f Foreign) Diff(earlier Foreign) string {
	all := maps.Clone(f)
	maps.Copy(all, earlier)
	var b strings.Builder
	for _, section := range slices.Sorted(maps.Keys(all)) {
		was, is := earlier[section], f[section]
		if slices.Equal(was, is) {
			continue
		}
		fmt.Fprintf(&b, "%s:\n", section)
		for _, l := range DiffLines(was, is) {
			fmt.Fprintf(&b, "  %s\n", l)
		}
	}
	return b.String()
}

// DiffLines returns the lines that went, each after "- ", and then those that came,
// each after "+ ". If neither is so although the two differ, it says that.
func DiffLines(was, is []string) (lines []string) {
	for _, l := range was {
		if !slices.Contains(is, l) {
			lines = append(lines, "- "+l)
		}
	}
	for _, l := range is {
		if !slices.Contains(was, l) {
			lines = append(lines, "+ "+l)
		}
	}
	if len(lines) == 0 && !slices.Equal(was, is) {
		lines = append(lines, "the same lines in another order or number")
	}
	return lines
}

// WithoutCarrier returns a line of ip without what a link finds on its wire, which
// follows a moment after it was set up, by itself.
func WithoutCarrier(line string) string { return carrier.ReplaceAllString(line, "") }

var (
	// What iptables-nft shows in its own words is not shown a second time in nft's.
	xtablesTable = regexp.MustCompile(`^table ip6? (raw|mangle|nat|filter|security)$|vipd`)
	// Tables and base chains come into being with the first rule in them and are no
	// state by themselves, unless a policy is not the default one.
	emptyTable = regexp.MustCompile(`^(#|\*|COMMIT$|:[A-Z]+ ACCEPT |$)`)
	counters   = regexp.MustCompile(`\[\d+:\d+\]`)
	lifetime   = regexp.MustCompile(`\b(\d+sec|expires \S+)`)
	carrier    = regexp.MustCompile(`NO-CARRIER,|,LOWER_UP\b| state [A-Z]+\b| linkdown\b`)
)

// foreignLines returns the lines of text that are foreign state, without what
// changes by itself.
func foreignLines(text string, own []string) []string {
	var lines []string
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \n")
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name + " "
		}
		isOurs := func(word string) bool { return strings.Contains(line, word) }
		if emptyTable.MatchString(line) || slices.ContainsFunc(own, isOurs) {
			continue
		}
		line = counters.ReplaceAllString(line, "[0:0]")
		line = WithoutCarrier(line)
		lines = append(lines, table+lifetime.ReplaceAllString(line, "-"))
	}
	return lines
}
