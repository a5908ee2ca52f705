//go:build kernel

//lane:vm

package main

import (
	"testing"

	"vipd/internal/kerneltest"
)

// The arms of mode ipvs are asked everything that the benchmark asks, and send as many
// messages as it tells: a message a changed object, and none else.
func TestB54_B55_ArmsOfIPVSCountMessages(t *testing.T) {
	const n = backendsPerService
	change := func(kind string) request { return request{Op: "change", Kind: kind, Count: 1} }
	for name, arm := range map[string]struct {
		serves   worker
		requests []request
		messages []float64
	}{
		armTree: {&tree{}, []request{{Op: "load"}, change(kindGrow), change(kindWeigh), change(kindReplace), change(kindNone), change(kindAdd), {Op: "resync", Count: 1}, change(kindRemove)},
			[]float64{1 + 5*(1+n), 1, 1, 2, 0, 1 + n, 1 + 6, 1}},
		armKube: {&kube{}, []request{{Op: "load"}, change(kindGrow), change(kindWeigh), change(kindReplace), change(kindNone), change(kindAdd), change(kindRemove)},
			[]float64{1 + 5*(4+n), 16 + 1, 16 + 1, 16 + 2, 16, 16 + 4 + n, 16 + 1}},
	} {
		t.Run(name, func(t *testing.T) {
			if !kerneltest.Isolate(t) {
				return
			}
			kerneltest.Need(t, kerneltest.IPVS())
			for i, r := range arm.requests {
				r.Size, r.Backend, r.Limit = 5, virtual, loadPatience
				answer, err := arm.serves.do(t.Context(), r)
				if err != nil || answer.Over {
					t.Fatalf("%s %s: %v, over: %t", r.Op, r.Kind, err, answer.Over)
				}
				if got := median(answer.Samples["messages"]); got != arm.messages[i] {
					t.Errorf("%g messages for %s %s, want %g", got, r.Op, r.Kind, arm.messages[i])
				}
				t.Logf("%s %s: %v", r.Op, r.Kind, answer.Samples)
			}
		})
	}
}
