package netfilter

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink/nl"
)

func TestB68_AnInterruptedDumpOfTheChainsIsMadeAgain(t *testing.T) {
	gone := errors.New("gone")
	for _, tc := range []struct {
		name    string
		answers []error // one a dump; the last one stays
		dumps   int
		err     error
	}{
		{"at once", []error{nil}, 1, nil},
		{"interrupted", []error{nl.ErrDumpInterrupted, nl.ErrDumpInterrupted, nil}, 3, nil},
		{"interrupted all the time", []error{nl.ErrDumpInterrupted}, listAttempts, nil},
		{"failed", []error{nl.ErrDumpInterrupted, gone}, 2, gone},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dumps := 0
			got, err := dumpAgain(func() ([][]byte, error) {
				err := tc.answers[min(dumps, len(tc.answers)-1)]
				dumps++
				return [][]byte{{byte(dumps)}}, err
			})
			if !errors.Is(err, tc.err) || dumps != tc.dumps || err == nil && got[0][0] != byte(tc.dumps) {
				t.Errorf("%d dumps, %v, %v", dumps, got, err)
			}
		})
	}
}
