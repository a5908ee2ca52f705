package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vipd/internal/testrun"
)

func TestJudge(t *testing.T) {
	const (
		passed  = `{"Action":"pass","Package":"p","Test":"TestA"}`
		failed  = `{"Action":"fail","Package":"p","Test":"TestB"}`
		proof   = `{"Action":"output","Package":"p","Test":"TestC","Output":"a proof of it"}`
		skipped = `{"Action":"skip","Package":"p","Test":"TestC"}`
		died    = `{"Action":"run","Package":"p","Test":"TestD"}`
		broken  = `{"Action":"fail","Package":"p"}`
	)
	tests := []struct {
		name     string
		skips    string
		packages []string
		events   []string
		want     string // in the error; empty: none
	}{
		{"good", "", []string{"p"}, []string{passed}, ""},
		{"nothing ran", "", nil, nil, "no test passed"},
		{"a package ran nothing", "", []string{"p", "q"}, []string{passed}, "no test of q ran"},
		{"failed", "", nil, []string{passed, failed}, "1 failed"},
		{"died", "", nil, []string{passed, died}, "1 failed"},
		{"did not build", "", nil, []string{passed, broken}, "1 failed"},
		{"skip where none is allowed", "", nil, []string{passed, proof, skipped}, "TestC was skipped"},
		{"skip without proof", "a proof", nil, []string{passed, skipped}, "TestC was skipped"},
		{"skip with proof", "a proof", nil, []string{passed, proof, skipped}, ""},
		{"all skipped", "a proof", nil, []string{proof, skipped}, "no test passed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var run testrun.Run
			if err := run.Read(strings.NewReader(strings.Join(tt.events, "\n")), nil); err != nil {
				t.Fatal(err)
			}
			err := judge(lane{name: "x", skips: tt.skips}, &run, tt.packages)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("judged %v, want %q", err, tt.want)
			}
		})
	}
}

func TestAddTestsFindsMarks(t *testing.T) {
	const text = `package p

// TestOne is marked.
//
//lane:vm
func TestOne(t *testing.T) {}

// TestTwo runs in a mode.
//
//lane:vm ipvs
func TestTwo(t *testing.T) {}

// TestThree runs both ways.
//
//lane:vm
//lane:vm ipvs
func TestThree(t *testing.T) {}

//lane:vmx is none.
func TestFour(t *testing.T) {}

func TestMain(m *testing.M) {}

func (x) TestMethod() {}

func helper() {}
`
	for _, tt := range []struct {
		name, text string
		vm, ipvs   string
	}{
		{"marked tests", text, "TestOne TestThree", "TestTwo TestThree"},
		{"marked file", "//go:build kernel\n\n//lane:vm\n\n" + text, "TestOne TestTwo TestThree TestFour", "TestTwo TestThree"},
		{"file of a mode", "//go:build kernel\n\n//lane:vm ipvs\n\n" + text, "TestOne TestThree", "TestOne TestTwo TestThree TestFour"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := pkg{dir: t.TempDir()}
			if err := os.WriteFile(filepath.Join(p.dir, "x_test.go"), []byte(tt.text), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := p.addTests("x_test.go"); err != nil {
				t.Fatal(err)
			}
			if vm, ipvs := strings.Join(p.vm[""], " "), strings.Join(p.vm["ipvs"], " "); len(p.tests) != 4 || vm != tt.vm || ipvs != tt.ipvs || len(p.vm) != 2 {
				t.Errorf("tests %v, in the vm %v; want %s, and in mode ipvs %s", p.tests, p.vm, tt.vm, tt.ipvs)
			}
		})
	}
}
