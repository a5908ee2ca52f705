// Command bench measures vipd on the running kernel, beside rules of kube-proxy's
// shape, and prints a table. See docs/performance.md for what it measures and how to
// read it; `make bench` runs it.
//
// The rules of measuring:
//   - Both sides of a comparison stand side by side, each in namespaces of its own,
//     and work in turns, A B B A; what is told is the median and the range, and the
//     median of the ratios of what was measured next to each other.
//   - The first turn of every kind warms up and does not count.
//   - A connection that fails ends the measurement: no rate of errors is told.
//   - What has a limit and does not end within it is told as "> limit".
//   - Counts (system calls, messages, bytes, allocations, rules) do not depend on the
//     machine, times do: the machine and how busy it was stand in the table.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
)

// The arms.
const (
	armTree   = "vipd"
	armLinear = "linear"
	armDirect = "direct"
	armDaemon = "daemon"
	armRules  = "iptables" // vipd in mode iptables, where armTree is in mode ipvs
	armKube   = "kube-proxy"
)

// The backends: of iptables, and mode ipvs.
const (
	nft     = "nft"
	legacy  = "legacy"
	virtual = "ipvs"
)

// The kinds of change.
const (
	kindReplace = "replace" // one backend of one service by another
	kindAdd     = "add"     // a service more
	kindRemove  = "remove"  // a service less
	kindNone    = "none"    // the source answers again, and nothing is new
	kindGrow    = "grow"    // a backend more of one service
	kindWeigh   = "weigh"   // another weight of a backend
)

// plan says what is measured.
type plan struct {
	sizes    []int // services
	backends []string
	only     []string      // parts; none: all
	full     bool          // all sizes that make sense
	rounds   int           // of everything that takes less than seconds
	limit    time.Duration // of one run of one thing
	stale    int           // services in the measurement of staleness
	program  string        // path of vipd
	out      string        // path of the table, without its suffix
	join     []string      // results to print as one, in place of measuring
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	var err error
	if name := os.Getenv(armEnv); name != "" {
		if err = kerneltest.Enter(); err == nil {
			err = serveArm(ctx, name, os.Stdin, os.Stdout)
		}
	} else {
		err = bench(ctx, os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, args []string) error {
	p, err := parse(args)
	if err != nil {
		return err
	}
	if len(p.join) > 0 {
		all, err := join(p.join)
		if err == nil {
			fmt.Print(all.table())
		}
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make network namespaces")
	}
	if err := os.Setenv(vipdEnv, p.program); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p.out), 0o755); err != nil { //nolint:gosec // results are for everybody
		return err
	}
	run := &run{plan: p, results: results{Machine: thisMachine(ctx)}}
	failed := run.all(ctx)
	text := run.results.table()
	fmt.Print(text)
	return errors.Join(failed, os.WriteFile(p.out+".md", []byte(text), 0o644), run.keep()) //nolint:gosec // as above
}

// parse reads the command line.
func parse(args []string) (p plan, err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	together := flags.String("join", "", "print the results of these .json files as one, and measure nothing")
	sizes := flags.String("sizes", "", `numbers of services (default "100 1000 5000", with -full to 50000)`)
	backends := flags.String("backends", nft+" "+legacy, "backends of iptables; or ipvs, which needs a kernel with IPVS")
	only := flags.String("only", "", "parts to measure: load session stale memory (default all); of ipvs: load session")
	flags.BoolVar(&p.full, "full", false, "all sizes, ten minutes for one run of one thing")
	flags.IntVar(&p.rounds, "rounds", 5, "rounds of everything that takes less than seconds")
	flags.DurationVar(&p.limit, "limit", 0, "of one run of one thing (default 60s, with -full 10m)")
	flags.IntVar(&p.stale, "stale", 10000, "services in the measurement of staleness")
	flags.StringVar(&p.program, "program", "bin/vipd", "path of vipd")
	flags.StringVar(&p.out, "out", ".cache/results/bench", "path of the results, without suffix")
	if err := flags.Parse(args); err != nil {
		return p, err
	}
	p.backends, p.only = strings.Fields(*backends), strings.Fields(*only)
	p.join = strings.Fields(*together)
	if p.limit == 0 {
		p.limit = time.Minute
		if p.full {
			p.limit = 10 * time.Minute
		}
	}
	p.full = p.full && *sizes == ""
	if *sizes == "" {
		*sizes = "100 1000 5000"
		if p.full {
			*sizes += " 10000 50000"
		}
	}
	for _, word := range strings.Fields(*sizes) {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 || n > maxServices {
			return p, fmt.Errorf("%q is not a number of services; use 1 to %d", word, maxServices)
		}
		p.sizes = append(p.sizes, n)
	}
	for _, b := range p.backends {
		if b != nft && b != legacy && b != virtual {
			return p, fmt.Errorf("there is no backend %q; use %s, %s or %s", b, nft, legacy, virtual)
		}
	}
	p.program, err = filepath.Abs(p.program)
	return p, err
}

// wants tells whether a part is to be measured.
func (p plan) wants(part string) bool { return len(p.only) == 0 || slices.Contains(p.only, part) }
