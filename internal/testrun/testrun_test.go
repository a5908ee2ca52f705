package testrun

import (
	"strings"
	"testing"
)

const sample = `{"Action":"build-output","ImportPath":"vipd/broken","Output":"x.go:1: oh\n"}
{"Action":"fail","Package":"vipd/broken"}
not json
{"Action":"run","Package":"vipd/a","Test":"TestOne"}
{"Action":"output","Package":"vipd/a","Test":"TestOne","Output":"hello\n"}
{"Action":"run","Package":"vipd/a","Test":"TestOne/x"}
{"Action":"run","Package":"vipd/a","Test":"TestOne/y"}
{"Action":"pass","Package":"vipd/a","Test":"TestOne/x","Elapsed":0.5}
{"Action":"fail","Package":"vipd/a","Test":"TestOne/y"}
{"Action":"fail","Package":"vipd/a","Test":"TestOne"}
{"Action":"run","Package":"vipd/a","Test":"TestSkipped"}
{"Action":"skip","Package":"vipd/a","Test":"TestSkipped"}
{"Action":"run","Package":"vipd/a","Test":"TestDied"}
{"Action":"fail","Package":"vipd/a"}
`

func TestRunCountsLeavesAndLostTests(t *testing.T) {
	var run Run
	verdicts := 0
	if err := run.Read(strings.NewReader(sample), func(*Test) { verdicts++ }); err != nil {
		t.Fatal(err)
	}
	// y, TestDied without a verdict, and the package that did not build.
	if got, want := run.Count(nil), (Count{Passed: 1, Failed: 3, Skipped: 1}); got != want {
		t.Errorf("count is %v, want %v", got, want)
	}
	if verdicts != 6 {
		t.Errorf("%d verdicts were told, want 6", verdicts)
	}
	var failed []string
	for _, f := range run.Failures() {
		failed = append(failed, f.Package+" "+f.Name)
	}
	want := "vipd/broken |vipd/a TestOne|vipd/a TestOne/y|vipd/a TestDied|vipd/a "
	if got := strings.Join(failed, "|"); got != want {
		t.Errorf("failures are %q, want %q", got, want)
	}
	if got := strings.Join(run.Build, ""); got != "x.go:1: oh\nnot json\n" {
		t.Errorf("build output is %q", got)
	}
	only := run.Count(func(t *Test) bool { return t.Package == "vipd/a" })
	if want := (Count{Passed: 1, Failed: 2, Skipped: 1}); only != want {
		t.Errorf("count of vipd/a is %v, want %v", only, want)
	}
}

func TestRunOfNothingCountsNothing(t *testing.T) {
	var run Run
	if err := run.Read(strings.NewReader(""), nil); err != nil {
		t.Fatal(err)
	}
	if got := run.Count(nil); got != (Count{}) {
		t.Errorf("count of nothing is %v", got)
	}
}
