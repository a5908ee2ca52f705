package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
)

// ErrIncompatible says that a table holds what iptables cannot show, made with
// nft.
var ErrIncompatible = errors.New("a rule in it was made with nft, and iptables cannot show it; " +
	"move such rules to a table of their own (nft list ruleset)")

// Tool runs iptables for one family: reads tables and commits scripts. Its methods
// run the binary on the calling goroutine, so they act in the network namespace of
// its thread. At most one restore runs at once.
type Tool struct {
	family          Family
	backend         Backend
	options         ToolOptions
	iptables        string // absolute paths
	restore         string
	save            string
	version         version
	lock            *lockWaits    // of all Tools together
	ledger          *Ledger       // of all Tools together; nil with the legacy backend
	poll            *legacyPoll   // of all Tools together; nil with the nft backend
	busy            chan struct{} // holds one token while a restore runs
	proved          atomic.Value  // fileID: the restore of the legacy backend that was seen to commit
	plainMasquerade atomic.Bool   // the kernel has no --random-fully
	noise           sync.Map      // by binary: what a run that succeeded complained of last
}

// Family returns the family that the tool works on.
func (t *Tool) Family() Family { return t.family }

// Backend returns the part of the kernel that the tool works on.
func (t *Tool) Backend() Backend { return t.backend }

// Version returns the version of iptables: "1.8.9".
func (t *Tool) Version() string { return t.version.text }

// HasRandomFully reports whether MASQUERADE knows --random-fully (iptables 1.6.2, and
// a kernel that Probe has not found to lack it).
func (t *Tool) HasRandomFully() bool {
	return t.version.atLeast(1, 6, 2) && !t.plainMasquerade.Load()
}

// CommitChains returns how many chains one commit may name. With the nft backend
// more is quadratic: 10,000 services take 13 s in one commit, 2.3 s in commits of
// 500 chains and 2 s in commits of 50 to 200. The legacy one replaces the whole
// table at each commit: the fewer the better.
func (t *Tool) CommitChains() int {
	if t.backend == Legacy {
		return math.MaxInt
	}
	return 150
}

// Restore commits a script of iptables-restore(8) without flushing what it does
// not name. Each COMMIT in it is atomic and stands even if a later one fails. A
// script that the tool or the kernel refuses gives a *RestoreError; any other error
// leaves open what was applied.
func (t *Tool) Restore(ctx context.Context, script []byte) error {
	if t.backend == Legacy {
		if t.poll == nil {
			return t.restoreLegacy(ctx, script)
		}
		return t.poll.write(ctx, func() error { return t.restoreLegacy(ctx, script) })
	}
	return t.ledger.write(ctx, len(script), func(started func(pid int)) (int, error) {
		err := t.runRestore(ctx, script, started, "--noflush")
		return commitsOf(script, err), err
	})
}

// commitsOf returns how many of the commits of a script stand. See countCommits.
func commitsOf(script []byte, err error) int {
	var refused *RestoreError
	switch {
	case err == nil:
		return countCommits(script)
	case errors.As(err, &refused) && refused.Line > 0:
		lines := bytes.SplitAfterN(script, []byte("\n"), refused.Line)
		return countCommits(bytes.Join(lines[:len(lines)-1], nil))
	}
	return unknownCommits
}

// Test parses a script and checks it as Restore would, without applying it. The
// kernel is not asked, only what the tool itself knows.
func (t *Tool) Test(ctx context.Context, script []byte) error {
	return t.runRestore(ctx, script, nil, "--noflush", "--test")
}

// run runs one of the binaries, which waits for the lock of x_tables if it needs it.
func (t *Tool) run(ctx context.Context, path string, args []string, stdin []byte) ([]byte, error) {
	if t.backend == Legacy && path != t.save {
		return t.runLocked(ctx, path, args, stdin)
	}
	return t.runOnce(ctx, path, args, stdin, nil)
}

// runOnce runs one of the binaries. What it complains of although it succeeds is
// logged, once until it says something else. started, unless it is nil, is called
// with the process.
func (t *Tool) runOnce(ctx context.Context, path string, args []string, stdin []byte, started func(pid int)) ([]byte, error) {
	o := t.options
	o.started = started
	out, noise, err := run(ctx, o, path, args, stdin)
	if err == nil && noise != "" {
		if before, _ := t.noise.Swap(path, noise); before != noise {
			t.options.Log.Warn("iptables succeeds and complains", "tool", path, "says", noise)
		}
	}
	return out, err
}

func (t *Tool) runRestore(ctx context.Context, script []byte, started func(pid int), args ...string) error {
	select {
	case t.busy <- struct{}{}:
		defer func() { <-t.busy }()
	case <-ctx.Done():
		return fmt.Errorf("waiting for another %s: %w", t.restore, context.Cause(ctx))
	}
	run := t.run
	if started != nil {
		run = func(ctx context.Context, path string, args []string, stdin []byte) ([]byte, error) {
			return t.runOnce(ctx, path, args, stdin, started)
		}
	}
	_, err := run(ctx, t.restore, args, script)
	var exit *exitError
	if errors.As(err, &exit) && !errors.Is(err, ErrPermission) && exit.refused() {
		return newRestoreError(script, exit)
	}
	return err
}

// Read returns a table as it stands. A table that does not exist is empty.
func (t *Tool) Read(ctx context.Context, table string) (Table, error) {
	if t.backend == Legacy { // asking for a table would make it
		if there, err := legacyTables(t.family); err == nil && !slices.Contains(there, table) {
			return parseTable(table, "")
		}
	}
	out, err := t.run(ctx, t.save, []string{"-t", table}, nil)
	if err != nil {
		return Table{}, fmt.Errorf("reading %s table %s: %w", t.family, table, err)
	}
	parsed, err := parseTable(table, string(out))
	if err != nil {
		return Table{}, fmt.Errorf("reading %s table %s: %w", t.family, table, err)
	}
	return parsed, nil
}

// ReadBase returns only the base chains of a table, at a cost that does not grow
// with the rest: iptables-save of the nft backend reads all tables for one of them.
func (t *Tool) ReadBase(ctx context.Context, table string) (Table, error) {
	return t.ReadChains(ctx, table, baseChains[table]...)
}

// fewChains is how many chains are read one by one; for more the whole table is.
const fewChains = 32

// ReadChains returns only the named chains of a table. The cost of a few does not
// grow with the rest of it, with the nft backend. A chain that does not exist is
// missing in the answer.
func (t *Tool) ReadChains(ctx context.Context, table string, names ...string) (Table, error) {
	if t.backend == Legacy || len(names) > fewChains {
		all, err := t.Read(ctx, table)
		return all.only(names), err
	}
	result := Table{Name: table, Base: map[string][]string{}, Own: map[string][]string{}}
	for _, name := range names {
		out, err := t.run(ctx, t.iptables, []string{"-t", table, "-S", name}, nil)
		var exit *exitError
		if errors.As(err, &exit) && exit.code == 1 {
			continue // "no chain by that name", which 1.8.9 calls incompatible
		}
		if err != nil {
			return Table{}, fmt.Errorf("reading %s chain %s: %w", t.family, name, err)
		}
		result.put(name, parseRules(name, string(out)))
	}
	return result, nil
}
