package kerneltest

import (
	"cmp"
	"os"
	"testing"
)

// ModeEnv names the environment variable that names the mode in which the tests that
// can be in any of them are to serve: a lane sets it for tests marked with that mode.
const ModeEnv = "VIPD_MODE"

// Mode returns the mode in which a test that can be in any is to serve.
func Mode() string { return cmp.Or(os.Getenv(ModeEnv), "iptables") }

// InMode says in the output of a test which mode it is in. The table of rows counts it
// for the rows that each mode has to show (internal/rows).
func InMode(t testing.TB, mode string) {
	t.Helper()
	t.Logf("kerneltest: in mode %s", mode)
}
