package netfilter

import (
	"strings"
	"testing"
)

func testSkeleton() Skeleton {
	return Skeleton{
		Table:  "nat",
		Chains: []Chain{{Name: "VIPD-A", Rules: []string{"-p tcp -j RETURN", "-g VIPD-B"}}, {Name: "VIPD-B"}},
		Jumps:  []Jump{{"PREROUTING", "-j VIPD-A"}, {"OUTPUT", "-j VIPD-A"}},
	}
}

// standing returns the table in which the Skeleton stands, and nothing else.
func standing(s Skeleton) Table {
	t := Table{Name: s.Table, Base: map[string][]string{"POSTROUTING": nil}, Own: map[string][]string{}}
	for _, c := range s.Chains {
		t.Own[c.Name] = c.Lines()
	}
	for _, j := range s.Jumps {
		t.Base[j.Base] = append(t.Base[j.Base], j.line())
	}
	return t
}

func TestSkeletonThatStandsNeedsNothing(t *testing.T) {
	if r := testSkeleton().Compare(standing(testSkeleton()), NewBaseline()); !r.Empty() || len(r.Lines) != 0 {
		t.Errorf("wants to write\n%s", r.Script)
	}
}

func TestB61_SkeletonRepairsOnlyWhatDiffers(t *testing.T) {
	jump := testSkeleton().Jumps[0].line()
	for _, tc := range []struct {
		name   string
		harm   func(Table)
		script string
	}{
		{"chain removed", func(h Table) { delete(h.Own, "VIPD-B") },
			":VIPD-B - [0:0]\n-A VIPD-B " + Chain{Name: "VIPD-B"}.Lines()[0] + "\n"},
		{"jump removed", func(h Table) { h.Base["PREROUTING"] = nil },
			"-I PREROUTING 1 " + jump + "\n"},
		{"jump behind a foreign rule", func(h Table) { h.Base["PREROUTING"] = []string{"-j ACCEPT", jump} },
			"-D PREROUTING " + jump + "\n-I PREROUTING 1 " + jump + "\n"},
		{"jump twice", func(h Table) { h.Base["PREROUTING"] = []string{jump, jump} },
			"-D PREROUTING " + jump + "\n-D PREROUTING " + jump + "\n-I PREROUTING 1 " + jump + "\n"},
		{"stray jump", func(h Table) { h.Base["POSTROUTING"] = []string{"-j ACCEPT", "-j VIPD-B"} },
			"-D POSTROUTING -j VIPD-B\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			have := standing(testSkeleton())
			tc.harm(have)
			got := string(testSkeleton().Compare(have, NewBaseline()).Script)
			if want := "*nat\n" + tc.script + "COMMIT\n"; got != want {
				t.Errorf("script\n%swant\n%s", got, want)
			}
		})
	}
}

func TestSkeletonPlanDoesNotChangeWhatCountsAsDrift(t *testing.T) {
	s, seen := testSkeleton(), NewBaseline()
	s.Compare(standing(s), seen)
	drifted := standing(s)
	drifted.Own["VIPD-A"][0] = "-p udp -j RETURN"
	for i := range 3 {
		if s.Compare(drifted, seen).Empty() {
			t.Fatalf("comparison %d takes drift for ours", i)
		}
	}
}

func TestSkeletonRemovalTakesJumpsFirst(t *testing.T) {
	have := standing(testSkeleton())
	have.Base["PREROUTING"] = append(have.Base["PREROUTING"], "-j ACCEPT")
	script := string(testSkeleton().Removal(have).Script)
	last := -1
	for _, want := range []string{"-D OUTPUT", "-D PREROUTING", "-F VIPD-A", "-F VIPD-B", "-X VIPD-A", "-X VIPD-B"} {
		i := strings.Index(script, want)
		if i <= last {
			t.Errorf("%q is missing or too early in\n%s", want, script)
		}
		last = i
	}
	if strings.Contains(script, "ACCEPT") {
		t.Errorf("touches a foreign rule:\n%s", script)
	}
	if r := testSkeleton().Removal(Table{}); !r.Empty() {
		t.Errorf("removes what does not stand:\n%s", r.Script)
	}
}
