// Command rows prints every behaviour and failure with what the last test lanes said
// about it. It runs from the root of the repository and reads .cache/results.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"vipd/internal/rows"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "rows:", err)
		os.Exit(1)
	}
}

func run() error {
	files, err := filepath.Glob(".cache/results/*.json")
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errors.New("no results yet; run `make test` or one of its lanes first")
	}
	all, err := rows.Load()
	if err != nil {
		return err
	}
	tests, err := rows.ReadResults(files)
	if err != nil {
		return err
	}
	table := rows.Judge(all, tests)
	if err := table.Write(os.Stdout); err != nil {
		return err
	}
	return table.Err()
}
