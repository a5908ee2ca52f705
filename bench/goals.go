package main

import (
	"fmt"
	"slices"
	"strings"
)

// goal is what vipd is to reach: a figure of one cell of a table.
type goal struct {
	what string
	cell
	part, arm, name, unit string
	most                  float64
	of                    func([]float64) float64 // nil: the median
	against               string                  // an arm: it is the share of that one's figure
}

func most(samples []float64) float64 { return slices.Max(samples) }

func p99(samples []float64) float64 { return percentile(samples, 99) }

// goals lists them, for ten backends a service. A load counts with VIPs and guard.
func goals() []goal {
	var list []goal
	for _, g := range []struct {
		backend string
		size    int
		load    float64 // seconds
		change  float64
	}{
		{nft, 5000, 1.5, 0.025}, {nft, 10000, 3, 0.025}, {nft, 50000, 15, 0.025}, {legacy, 5000, 1, 0.2}, {legacy, 10000, 2, 0.42},
	} {
		c := cell{g.backend, g.size}
		list = append(list,
			goal{"load, rules", c, "load", armTree, "sync", "s", g.load, nil, ""},
			goal{"load, all", c, "load", armTree, "total", "s", g.load, nil, ""},
			goal{"one change", c, "change replace", armTree, "total", "s", g.change, nil, ""})
	}
	big := cell{nft, 50000}
	list = append(list,
		goal{"own part of a change", big, "change replace", armTree, "own", "s", 0.001, nil, ""},
		goal{"programs run for a no-op", cell{nft, 5000}, "calls no-op", armTree, "execs", "", 0, most, ""},
		goal{"kernel writes for a no-op", cell{nft, 5000}, "calls no-op", armTree, "netlink_writes", "", 0, most, ""},
		goal{"rules on a packet's way", big, "shape", armTree, "way", "", 24, most, ""},
		goal{"resident memory", cell{nft, 10000}, "memory", armDaemon, "rss_rest", "B", 80 << 20, nil, ""},
		goal{"staleness, p99", cell{nft, 10000}, "stale " + quickest.String(), armTree, "stale", "s", 0.25, p99, ""},
	)
	return append(list, virtualGoals()...)
}

// writeGoals writes which of the goals that were measured are met.
func (r *results) writeGoals(b *strings.Builder) {
	rows := [][]string{{"goal", "services", "backend", "at most", "is", "so it is"}}
	for _, g := range goals() {
		samples := r.samples(g.part, g.cell, g.arm, g.name)
		if g.against != "" {
			samples = ratios(samples, r.samples(g.part, g.cell, g.against, g.name))
		}
		if len(samples) == 0 {
			continue
		}
		of := g.of
		if of == nil {
			of = median
		}
		is, verdict := of(samples), "met"
		if is > g.most {
			verdict = "missed"
		}
		rows = append(rows, []string{g.what, fmt.Sprint(g.size), g.backend, number(g.most, g.unit), number(is, g.unit), verdict})
	}
	for _, c := range r.cells() {
		few, many := r.samples("connect", cell{c.backend, smallest}, armTree, "p50"), r.samples("connect", c, armTree, "p50")
		if len(few) > 0 && len(many) > 0 && c.size > smallest {
			is := median(many) / median(few)
			rows = append(rows, []string{fmt.Sprintf("latency p50 against %d services", smallest), fmt.Sprint(c.size), c.backend, "no slope", number(is, "x"), ""})
		}
	}
	if len(rows) > 1 {
		b.WriteString("\n### Goals\n\n")
		align(b, rows)
	}
}
