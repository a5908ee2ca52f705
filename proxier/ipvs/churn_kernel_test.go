//go:build kernel

//lane:vm

package ipvs

import (
	"context"
	"fmt"
	"testing"

	vs "vipd/internal/ipvs"
	"vipd/lb"
)

// While somebody else makes and deletes virtual servers of his own all the time, dumps
// are torn: some of ours are missing in them. None is taken for a stranger's, and nothing
// of ours is changed.
func TestF93_ChurnOfStrangersOnTheKernel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := realHarness(t)
	var want []*lb.Service
	for i := range 400 {
		want = append(want, svc(fmt.Sprintf("192.0.%d.%d:80 10.0.0.1:80", i/200, i%200)))
	}
	p := h.proxier()
	h.sync(t, p, prune, want)
	ctx, cancel := context.WithCancel(t.Context())
	others, ended := handle(t), make(chan struct{})
	go func() {
		defer close(ended)
		churn(ctx, others)
	}()
	torn := 0
	for range 15 {
		seen := 0
		err := h.others.Servers(t.Context(), func(s vs.Server) error {
			if s.Key.Addr.As4()[0] == 192 {
				seen++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if seen != len(want) {
			torn++
		}
		if got := h.sync(t, p, fresh, want); got != "" {
			t.Errorf("did %s", got)
		}
	}
	cancel()
	<-ended
	t.Logf("%d of 15 dumps were torn", torn) // 11, on Linux 6.1
	if len(h.journal.keys) != len(want) {
		t.Errorf("the journal has %d keys of %d", len(h.journal.keys), len(want))
	}
}

// churn makes and deletes virtual servers until ctx ends.
func churn(ctx context.Context, k Kernel) {
	for ctx.Err() == nil {
		var come, leave []vs.Command
		for i := range 50 {
			for _, c := range stranger(fmt.Sprintf("198.51.100.%d:80", i+1)) {
				come, leave = append(come, c), append(leave, vs.Command{Op: vs.DeleteServer, Server: c.Server})
			}
		}
		_ = k.Do(context.WithoutCancel(ctx), come)
		_ = k.Do(context.WithoutCancel(ctx), leave)
	}
}
