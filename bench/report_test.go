package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTableShowsWhatWasMeasured(t *testing.T) {
	r := results{LeftOut: []string{"50000 services, legacy"}}
	c, small := cell{nft, 5000}, cell{nft, smallest}
	r.take("load", c, armTree, reply{Samples: map[string][]float64{"total": {1.25, 1.75, 1.5}, "sync": {1, 1, 1}}})
	r.take("load", c, armTree, reply{Samples: map[string][]float64{"total": {1.6}}})
	r.over("load", c, armLinear, time.Minute)
	r.take("shape", cell{nft, 50000}, armTree, reply{Samples: map[string][]float64{"way": {9, 25}}})
	r.take("connect", small, armTree, reply{Samples: map[string][]float64{"p50": {30e-6}}})
	r.take("connect", c, armTree, reply{Samples: map[string][]float64{"p50": {33e-6}}})
	text := r.table()
	for _, want := range []string{
		"| 5000     | nft     | 1 s         | -                    | 1.55 s (1.25-1.75) | > 60 s | -             |",
		"| load, all                       | 5000     | nft     | 1.50 s   | 1.55 s | missed   |",
		"| load, rules                     | 5000     | nft     | 1.50 s   | 1 s    | met      |",
		"| rules on a packet's way         | 50000    | nft     | 24       | 25     | missed   |",
		"| latency p50 against 10 services | 5000     | nft     | no slope | 1.10x  |          |",
		"Left out, for the time it would take: 50000 services, legacy.",
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("nowhere: %s", want)
		}
	}
	if strings.Contains(text, "Memory") {
		t.Error("a table stands there although nothing of it was measured")
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestResultsOfRunsArePutTogether(t *testing.T) {
	dir, c := t.TempDir(), cell{nft, 5000}
	write := func(name, commit string, busy float64, load ...float64) string {
		r := results{Machine: machine{Commit: commit, Busy: busy}}
		r.take("load", c, armTree, reply{Samples: map[string][]float64{"total": load}})
		r.take(name, c, armTree, reply{Samples: map[string][]float64{"total": {1}}})
		file := filepath.Join(dir, name+".json")
		if err := r.save(file); err != nil {
			t.Fatal(err)
		}
		return file
	}
	first, second := write("first", "a", 0.5, 1, 2), write("second", "a", 0.1, 3)
	all, err := join([]string{first, second})
	if err != nil {
		t.Fatal(err)
	}
	if got := all.samples("load", c, armTree, "total"); !slices.Equal(got, []float64{3}) || all.Machine.Busy != 0.5 {
		t.Errorf("load %v, busy %v", got, all.Machine.Busy)
	}
	if len(all.samples("first", c, armTree, "total")) != 1 || len(all.samples("second", c, armTree, "total")) != 1 {
		t.Error("what one of them measured is not there")
	}
	if _, err := join([]string{first, write("other", "b", 0, 1)}); err == nil {
		t.Error("two commits were put together")
	}
	if _, err := join([]string{filepath.Join(dir, "none.json")}); err == nil {
		t.Error("a file that is not there was read")
	}
}

func TestParse(t *testing.T) {
	p, err := parse(nil)
	if err != nil || len(p.sizes) != 3 || len(p.backends) != 2 || p.limit != time.Minute || !p.wants("load") {
		t.Errorf("%+v, %v", p, err)
	}
	p, err = parse([]string{"-full"})
	if err != nil || len(p.sizes) != 5 || p.limit != 10*time.Minute {
		t.Errorf("%+v, %v", p, err)
	}
	if r := (&run{plan: p}); !r.leftOut(cell{legacy, 50000}) || r.leftOut(cell{nft, 50000}) || r.leftOut(cell{legacy, 10000}) {
		t.Error("what a full run leaves out")
	}
	p, err = parse([]string{"-full", "-sizes", "50000", "-only", "stale"})
	if r := (&run{plan: p}); err != nil || r.leftOut(cell{legacy, 50000}) || p.wants("load") || !p.wants("stale") {
		t.Errorf("what was asked for by its size is left out, or what was not asked for is measured: %v", err)
	}
	for _, bad := range [][]string{{"-sizes", "0"}, {"-sizes", "many"}, {"-sizes", "70000"}, {"-backends", "userspace"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}
