package static

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"vipd/discovery"
	"vipd/lb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ear hears what the source says.
type ear struct {
	discovery.Sink
	sets []discovery.Set
}

func (e *ear) Publish(s discovery.Set) { e.sets = append(e.sets, s) }

func TestSourceTellsAtOnceAndAfterEachUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web := &lb.Spec{Name: "web", Key: lb.Key{Addr: netip.MustParseAddr("192.0.2.10"), Port: 80, Protocol: lb.TCP}}
		s, e := New([]*lb.Spec{web}, "1"), &ear{}
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() {
			if err := s.Run(ctx, e); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
		synctest.Wait()
		if len(e.sets) != 1 || e.sets[0].Services[0] != web || !e.sets[0].Verified || e.sets[0].Revision != "1" {
			t.Fatalf("first said %+v", e.sets)
		}
		s.Update(nil, "2")
		s.Update(nil, "3")
		synctest.Wait()
		if last := e.sets[len(e.sets)-1]; last.Revision != "3" || len(last.Services) != 0 {
			t.Errorf("after two updates it said %+v", last)
		}
		cancel()
		done.Wait()
	})
}
