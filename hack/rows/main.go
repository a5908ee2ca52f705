// Command rows prints every behaviour and failure with what the last test lanes said
// about it. It runs from the root of the repository and reads .cache/results.
package main

import (
	"fmt"
	"os"

	"vipd/internal/rows"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "rows:", err)
		os.Exit(1)
	}
}

func run() error {
	table, err := rows.Read(rows.ResultsDir)
	if err != nil {
		return err
	}
	if err := table.Write(os.Stdout); err != nil {
		return err
	}
	return table.Err()
}
