package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// column is a column of a table: what stands in it for a cell.
type column struct {
	title string
	text  func(r *results, c cell) string
}

// of shows the median and the range of what was measured of an arm.
func of(title, part, arm, name, unit string) column {
	return column{title, func(r *results, c cell) string {
		if limit := r.overtime(part, c, arm, name); limit > 0 {
			return "> " + number(limit.Seconds(), "s")
		}
		return spread(r.samples(part, c, arm, name), unit)
	}}
}

// at shows a percentile of what was measured of an arm.
func at(title, part, arm, name, unit string, p float64) column {
	return column{title, func(r *results, c cell) string { return number(percentile(r.samples(part, c, arm, name), p), unit) }}
}

// ratio shows how often the figure of vipd goes into that of another arm, measured next
// to each other.
func ratio(title, part, name, other string) column {
	return column{title, func(r *results, c cell) string {
		return spread(ratios(r.samples(part, c, other, name), r.samples(part, c, armTree, name)), "x")
	}}
}

// section is a table: a row for each cell that has anything in it.
type section struct {
	title   string
	columns []column
}

func sections() []section {
	list := []section{
		{"Cold load: from the start to the last answer of the kernel", []column{
			of("vipd: rules", "load", armTree, "sync", "s"), of("vipd: VIPs and guard", "load", armTree, "door", "s"),
			of("vipd: all", "load", armTree, "total", "s"), of("linear", "load", armLinear, "total", "s"),
			ratio("linear / vipd", "load", "total", armLinear)}},
	}
	for _, kind := range []struct{ kind, title string }{
		{kindReplace, "One change: a backend replaced"}, {kindAdd, "One change: a service more"}, {kindRemove, "One change: a service less (until it is refused)"},
	} {
		part := "change " + kind.kind
		list = append(list, section{kind.title, []column{
			of("vipd: all", part, armTree, "total", "s"), of("vipd: rules", part, armTree, "sync", "s"),
			of("linear", part, armLinear, "total", "s"), ratio("linear / vipd", part, "total", armLinear)}})
	}
	list = append(list,
		section{"vipd's own part of one change (a backend replaced)", []column{
			of("own part", "change replace", armTree, "own", "s"), of("hub, decision, record", "change replace", armTree, "decide", "s"),
			of("door", "change replace", armTree, "door", "s"), of("processor in rules", "change replace", armTree, "sync_cpu", "s"), of("processor of the tool", "change replace", armTree, "tool_cpu", "s"),
			of("allocations", "own replace", armTree, "mallocs", ""), of("bytes allocated", "own replace", armTree, "alloc_bytes", "B"),
			of("allocated: add", "own add", armTree, "alloc_bytes", "B"), of("remove", "own remove", armTree, "alloc_bytes", "B")}},
		section{"What one change asks of the kernel", []column{
			of("programs run", "calls", armTree, "execs", ""), of("own netlink messages", "calls", armTree, "netlink", ""),
			of("messages of the tool", "calls", armTree, "tool_messages", ""), of("bytes of the tool", "calls", armTree, "tool_bytes", "B"),
			of("linear: bytes to the tool", "change replace", armLinear, "script_bytes", "B")}},
		section{"No-op: the source answers again; resync: all of the kernel is compared", []column{
			of("no-op", "no-op", armTree, "total", "s"), of("programs run", "calls no-op", armTree, "execs", ""),
			of("netlink messages", "calls no-op", armTree, "netlink", ""), of("of them writes", "calls no-op", armTree, "netlink_writes", ""),
			of("bytes allocated", "own no-op", armTree, "alloc_bytes", "B"), of("resync", "resync", armTree, "total", "s")}},
		section{"Latency of a connection: median (and range) of the rounds", []column{
			of("vipd p50", "connect", armTree, "p50", "s"), of("p99", "connect", armTree, "p99", "s"), of("per s", "connect", armTree, "rate", ""),
			of("linear p50", "connect", armLinear, "p50", "s"), of("p99", "connect", armLinear, "p99", "s"), of("per s", "connect", armLinear, "rate", ""),
			of("direct p50", "connect", armDirect, "p50", "s"), of("p99", "connect", armDirect, "p99", "s"), of("per s", "connect", armDirect, "rate", "")}},
		section{"The rules in table nat, and a packet's way to its service", []column{
			of("vipd: chains", "shape", armTree, "chains", ""), of("rules", "shape", armTree, "rules", ""), of("rules on the way", "shape", armTree, "way", ""), of("chains", "shape", armTree, "depth", ""),
			of("linear: chains", "shape", armLinear, "chains", ""), of("rules", "shape", armLinear, "rules", ""), of("rules on the way", "shape", armLinear, "way", "")}},
		staleSection(quickest), staleSection(time.Second),
		section{"Memory of the daemon, and its start from the file", []column{
			of("started", "memory", armDaemon, "ready", "s"), of("its first pass", "memory", armDaemon, "first_pass", "s"),
			of("resident", "memory", armDaemon, "rss_start", "B"), of(rests.String()+" later", "memory", armDaemon, "rss_rest", "B"),
			of("greatest", "memory", armDaemon, "peak_rest", "B"), of("live heap", "memory", armDaemon, "heap_rest", "B")}},
	)
	return append(list, virtualSections()...)
}

func staleSection(period time.Duration) section {
	part := "stale " + period.String()
	return section{fmt.Sprintf("Staleness: a change every %s, min_sync_period %s, from the change to the first packet at the new backend", stalePeriod, period), []column{
		at("p50", part, armTree, "stale", "s", 50), at("p99", part, armTree, "stale", "s", 99), at("max", part, armTree, "stale", "s", 100),
		{"changes seen", func(r *results, c cell) string { return fmt.Sprint(len(r.samples(part, c, armTree, "stale"))) }},
		of("passes", part, armTree, "passes", ""), of("in", part, armTree, "took", "s")}}
}

// table writes everything as Markdown, with the median and the range of each.
func (r *results) table() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "%s, %d cores; Linux %s; %s; %s; commit %s; %s; others used at most %.0f %% of the processors\n",
		m.CPU, m.Cores, m.Kernel, m.IPTables, m.Go, m.Commit, m.Date.Format(time.DateOnly), 100*m.Busy)
	if len(r.LeftOut) > 0 {
		fmt.Fprintf(&b, "\nLeft out, for the time it would take: %s.\n", strings.Join(r.LeftOut, "; "))
	}
	for _, s := range sections() {
		s.write(&b, r)
	}
	r.writeGoals(&b)
	return b.String()
}

func (s section) write(b *strings.Builder, r *results) {
	rows := [][]string{{"services", "backend"}}
	for _, c := range s.columns {
		rows[0] = append(rows[0], c.title)
	}
	for _, c := range r.cells() {
		row, empty := []string{fmt.Sprint(c.size), c.backend}, true
		for _, column := range s.columns {
			text := column.text(r, c)
			row = append(row, text)
			empty = empty && (text == "-" || text == "0")
		}
		if !empty {
			rows = append(rows, row)
		}
	}
	if len(rows) == 1 {
		return
	}
	fmt.Fprintf(b, "\n### %s\n\n", s.title)
	align(b, rows)
}

// cells returns every cell that something was measured of, by backend and size.
func (r *results) cells() (cells []cell) {
	for _, s := range r.Rows {
		if c := (cell{s.Backend, s.Size}); !slices.Contains(cells, c) {
			cells = append(cells, c)
		}
	}
	slices.SortFunc(cells, func(a, b cell) int {
		if a.backend != b.backend {
			return -strings.Compare(a.backend, b.backend)
		}
		return a.size - b.size
	})
	return cells
}

// align writes a table whose columns stand under each other.
func align(b *strings.Builder, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, text := range row {
			width[i] = max(width[i], len(text))
		}
	}
	line := func(row []string, fill string) {
		for i, text := range row {
			fmt.Fprintf(b, "| %s%s ", text, strings.Repeat(fill, width[i]-len(text)))
		}
		b.WriteString("|\n")
	}
	line(rows[0], " ")
	line(make([]string, len(rows[0])), "-")
	for _, row := range rows[1:] {
		line(row, " ")
	}
}
