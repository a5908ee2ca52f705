package rows

import (
	"strings"
	"testing"

	"vipd/internal/testrun"
)

func TestRowsAreAllThere(t *testing.T) {
	all, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	count := map[byte]int{}
	for _, r := range all {
		count[r.ID[0]]++
	}
	if count['B'] != 78 || count['F'] != 132 {
		t.Errorf("%d behaviours and %d failures, want 78 and 132", count['B'], count['F'])
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"B1 no tab", "X1\t-\twrong letter", "B0\t-\tzero", "B1\t-\ttwice\nB1\t-\ttwice", "B1\t-\t", "B1\t-\ta\tb\tc",
		"B1\tno mode", "B1\tbridge\tunknown mode",
	} {
		if _, err := parse(text); err == nil || !strings.HasPrefix(err.Error(), "rows.txt:") {
			t.Errorf("parse(%q) = %v, want an error with its place", text, err)
		}
	}
}

func TestRowsOfName(t *testing.T) {
	tests := []struct{ name, want string }{
		{"TestB1_TCP", "B1"},
		{"TestB1_B27_TCP", "B1 B27"},
		{"TestWalk/B63_kill", "B63"},
		{"TestWalk/deep/F75_kill", "F75"},
		{"TestB1_TCP/other", ""},
		{"TestB1", ""},
		{"TestBad_Name", ""},
		{"TestF012_Zero", ""},
	}
	for _, tt := range tests {
		if got := strings.Join(rowsOf(tt.name), " "); got != tt.want {
			t.Errorf("rowsOf(%q) = %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestJudge(t *testing.T) {
	all := []Row{{ID: "B1"}, {ID: "B2"}, {ID: "B3"}, {ID: "B4", Reason: "of no use"}, {ID: "B5"}, {ID: "B6"}, {ID: "B7"}}
	tests := []*testrun.Test{
		{Name: "TestB1_A", Verdict: testrun.Pass},
		{Name: "TestX/B1_b", Verdict: testrun.Pass},
		{Name: "TestB2_A", Verdict: testrun.Pass},
		{Name: "TestB2_B", Verdict: testrun.Fail},
		{Name: "TestB3_A", Verdict: testrun.Skip},
		{Name: "TestB5_A", Verdict: testrun.Skip},
		{Name: "TestB5_A", Verdict: testrun.Pass}, // in another lane
		{Name: "TestB6_A", Verdict: testrun.None}, // its process died
		{Name: "TestB99_A", Verdict: testrun.Pass},
	}
	table := Judge(all, tests)
	want := []State{Passed, Failed, NotYet, NotApplicable, Passed, Failed, NotYet}
	for i, r := range table.Rows {
		if r.State != want[i] {
			t.Errorf("row %s is %q, want %q", r.ID, r.State, want[i])
		}
	}
	if len(table.Unknown) != 1 || !strings.Contains(table.Unknown[0], "B99") {
		t.Errorf("unknown rows: %q, want B99", table.Unknown)
	}
	if table.Err() == nil {
		t.Error("a failed row is no error")
	}
	if got, want := table.Summary(), "rows: 2 passed, 2 failed, 2 not yet, 1 not applicable"; got != want {
		t.Errorf("summary is %q, want %q", got, want)
	}
}

// TestJudgeByMode has a row of each mode passed only if it was shown in each.
func TestJudgeByMode(t *testing.T) {
	each, err := parseModes("each")
	if err != nil {
		t.Fatal(err)
	}
	all := []Row{{ID: "B1", Modes: each}, {ID: "B2", Modes: each}, {ID: "B3", Modes: each}, {ID: "F64", Modes: []string{"iptables"}}, {ID: "B5", Modes: each}, {ID: "B6", Modes: each},
		{ID: "B7", Modes: each}, {ID: "B8"}, {ID: "B9", Modes: each}, {ID: "B10", Modes: each}, {ID: "F86", Modes: []string{"ipvs"}}}
	says := func(mode string) []string { return []string{"    x_test.go:1: kerneltest: in ", "mode " + mode + "\n"} }
	table := Judge(all, []*testrun.Test{
		{Package: "vipd/e2e", Name: "TestB1_A", Verdict: testrun.Pass, Output: says("iptables")},
		{Package: "vipd/e2e@ipvs", Name: "TestB1_A", Verdict: testrun.Pass, Output: says("ipvs")},
		{Package: "vipd/e2e", Name: "TestB2_A", Verdict: testrun.Pass, Output: says("iptables")},
		{Package: "vipd/desired", Name: "TestB2_A", Verdict: testrun.Pass},
		{Package: "vipd/vip", Name: "TestX", Verdict: testrun.Pass, Output: says("ipvs")},
		{Package: "vipd/vip", Name: "TestX/B3_a", Verdict: testrun.Pass},
		{Package: "vipd/proxier/iptables", Name: "TestB3_A", Verdict: testrun.Pass},
		{Package: "vipd/vip", Name: "TestF64_A", Verdict: testrun.Pass},
		{Package: "vipd/proxier/iptables", Name: "TestB5_A", Verdict: testrun.Pass},
		{Package: "vipd/proxier/ipvs", Name: "TestB5_A", Verdict: testrun.Fail},
		{Package: "vipd/e2e@ipvs", Name: "TestB6_A", Verdict: testrun.Skip},
		{Package: "vipd/e2e", Name: "TestB6_A", Verdict: testrun.Pass, Output: says("iptables")},
		{Package: "vipd/vip", Name: "TestB7_A", Verdict: testrun.Pass},
		{Package: "vipd/vip", Name: "TestB7_A/ipvs", Verdict: testrun.Pass, Output: says("ipvs")},
		{Package: "vipd/vip", Name: "TestB7_A/iptables", Verdict: testrun.Pass, Output: says("iptables")},
		{Package: "vipd/vip", Name: "TestB7_A/iptables/B10_b", Verdict: testrun.Pass},
		{Package: "vipd/vip", Name: "TestB8_A", Verdict: testrun.Pass, Output: says("iptables")}, // all of it is skipped
		{Package: "vipd/vip", Name: "TestB8_A/ipvs", Verdict: testrun.Pass},
		{Package: "vipd/vip", Name: "TestB8_A/ipvs/a", Verdict: testrun.Skip, Output: says("ipvs")},
		{Package: "vipd/e2e", Name: "TestF86_A", Verdict: testrun.Pass, Output: says("iptables")},
		{Package: "vipd/vip", Name: "TestB9_A", Verdict: testrun.Pass, Output: says("iptables")},
		{Package: "vipd/vip", Name: "TestB9_A/ipvs", Verdict: testrun.Skip, Output: says("ipvs")},
		{Package: "vipd/vip", Name: "TestB9_A/other", Verdict: testrun.Pass},
	})
	want := []string{"passed [2, iptables 1, ipvs 1]", "not yet [2, iptables 1, ipvs 0]", "passed [2, iptables 1, ipvs 1]",
		"passed [1]", "FAILED [2, iptables 1, ipvs 0]", "not yet [1, iptables 1, ipvs 0]",
		"passed [1, iptables 1, ipvs 1]", "not yet", "not yet [1, iptables 1, ipvs 0]",
		"not yet [1, iptables 1, ipvs 0]", "not yet [1]"}
	for i, r := range table.Rows {
		if got := string(r.State) + r.proof(); got != want[i] {
			t.Errorf("row %s is %q, want %q", r.ID, got, want[i])
		}
	}
}
