package main

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A script must not take "vipd relaod" for a reload.
func TestUnknownSubcommandIsAnError(t *testing.T) {
	for _, args := range [][]string{{"relaod"}, {"reload", "now"}, {"status", "a", "b"}, {"--relaod"}} {
		if got := run(args); got != 1 {
			t.Errorf("vipd %v: exit status %d, want 1", args, got)
		}
	}
}
