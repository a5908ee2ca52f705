//go:build kernel

package netfilter

import (
	"errors"
	"log/slog"
	"testing"

	"vipd/internal/kerneltest"
)

// TestF79_AModuleThatCannotBeLoadedIsNamed takes a module from a real kernel.
//
//lane:vm
func TestF79_AModuleThatCannotBeLoadedIsNamed(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	for _, b := range []Backend{NFT, Legacy} { // which loads what else there is
		if err := kernelTools(t, b).Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	kerneltest.Without(t, kerneltest.Statistic())
	for _, b := range []Backend{NFT, Legacy} {
		tools, err := FindTools(t.Context(), ToolOptions{Backend: b, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		var missing *MissingError
		if err := tools.Probe(t.Context()); !errors.As(err, &missing) || missing.Feature != "match statistic" || missing.Modules != "xt_statistic" {
			t.Errorf("%s: error %v", b, err)
		}
	}
}
