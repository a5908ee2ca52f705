package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vipd/lb"
)

// fakeFlows is a flowTable that tells what was asked of it, and fails on request.
type fakeFlows struct {
	mu    sync.Mutex
	calls []string // "udp evict 1 2", "tcp sweep"
	times []time.Time
	fail  int           // so many calls from now on
	takes time.Duration // a call
	open  int
}

func (f *fakeFlows) Open() (flowTable, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open++
	return f, nil
}

func (f *fakeFlows) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open--; f.open < 0 {
		return errors.New("closed twice")
	}
	return nil
}

func (f *fakeFlows) call(ctx context.Context, what string) (Evicted, error) {
	f.mu.Lock()
	f.calls, f.times = append(f.calls, what), append(f.times, time.Now())
	fail := f.fail > 0
	f.fail--
	f.mu.Unlock()
	if !sleep(ctx, f.takes) {
		return Evicted{}, ctx.Err()
	}
	if fail {
		return Evicted{}, errors.New("no")
	}
	return Evicted{Seen: 1, Deleted: 1}, nil
}

func (f *fakeFlows) Evict(ctx context.Context, evictions ...Eviction) (Evicted, error) {
	var ports []int
	for _, e := range evictions {
		ports = append(ports, int(e.Key.Port))
	}
	slices.Sort(ports)
	return f.call(ctx, fmt.Sprintf("%s evict %v", evictions[0].Key.Protocol, ports))
}

func (f *fakeFlows) Sweep(ctx context.Context, proto lb.Protocol, mark uint32, keeps map[Way]Keep) (Evicted, error) {
	text := fmt.Sprintf("%s sweep %#x", proto, mark)
	for _, w := range slices.Sorted(maps.Keys(keeps)) {
		text += fmt.Sprintf(" %d:%t", w, keeps[w](lb.Key{}, backend4))
	}
	return f.call(ctx, text)
}

func (f *fakeFlows) Tell(ctx context.Context, flows []flow) (int, error) {
	_, err := f.call(ctx, fmt.Sprintf("tell %d", len(flows)))
	return len(flows), err
}

// take returns the calls so far, and forgets them.
func (f *fakeFlows) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

func withEvictor(t *testing.T, run func(t *testing.T, e *Evictor, f *fakeFlows, log *bytes.Buffer)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeFlows{}
		var log bytes.Buffer
		e := newEvictor(0x2000, slog.New(slog.NewTextHandler(&log, nil)), f.Open)
		run(t, e, f, &log)
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if f.open != 0 {
			t.Errorf("%d tables left open", f.open)
		}
	})
}

func udpEviction(port uint16) Eviction {
	return Eviction{Key: lb.Key{Addr: service4.Addr(), Port: port, Protocol: lb.UDP}, Backend: backend4}
}

func tcpEviction(port uint16) Eviction {
	return Eviction{Key: lb.Key{Addr: service4.Addr(), Port: port, Protocol: lb.TCP}, Backend: backend4}
}

func wantCalls(t *testing.T, f *fakeFlows, want ...string) {
	t.Helper()
	synctest.Wait()
	got := f.take()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}
}

func TestEvictorGathersWhatComesMeanwhile(t *testing.T) {
	withEvictor(t, func(t *testing.T, e *Evictor, f *fakeFlows, _ *bytes.Buffer) {
		f.takes = time.Second
		e.Evict(udpEviction(1))
		wantCalls(t, f, "udp evict [1]")
		for range 3 {
			e.Evict(udpEviction(3), udpEviction(2))
			e.Evict(udpEviction(4))
		}
		e.Sweep(func(lb.Key, netip.AddrPort) bool { return false })
		wantCalls(t, f, "tcp sweep 0x2000 0:false", "sctp sweep 0x2000 0:false") // are not held up by UDP
		e.Sweep(func(lb.Key, netip.AddrPort) bool { return true })               // takes the place of the one for UDP
		e.Evict(tcpEviction(9))
		time.Sleep(2500 * time.Millisecond)
		wantCalls(t, f, "udp evict [2 3 4]", "udp sweep 0x2000 0:true", "tcp evict [9]", "tcp sweep 0x2000 0:true", "sctp sweep 0x2000 0:true")
	})
}

func TestModesShareAnEvictor(t *testing.T) {
	withEvictor(t, func(t *testing.T, e *Evictor, f *fakeFlows, _ *bytes.Buffer) {
		keep := func(answer bool) Keep { return func(lb.Key, netip.AddrPort) bool { return answer } }
		f.takes = time.Second
		e.Evict(udpEviction(1), tcpEviction(1))
		synctest.Wait() // what follows waits for these
		e.Of(ByNAT).Sweep(keep(true))
		e.Of(ByIPVS).Sweep(keep(false))
		e.Of(ByNAT).Sweep(keep(false))
		e.Of(ByNAT).Evict(udpEviction(2))
		e.Of(ByIPVS).Evict(udpEviction(2), udpEviction(3))
		e.Of(ByNAT).Cancel(udpEviction(3), udpEviction(2))
		time.Sleep(2500 * time.Millisecond)
		wantCalls(t, f, "udp evict [1]", "tcp evict [1]", "udp evict [2 3]",
			"udp sweep 0x2000 1:false 2:false", "tcp sweep 0x2000 1:false 2:false", "sctp sweep 0x2000 1:false 2:false")
	})
}

func TestWhoJudgesAFlow(t *testing.T) {
	vip, b := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("10.0.0.1:80")
	sent := func(status uint32, backend netip.AddrPort) *flow {
		return &flow{orig: tuple{dst: vip}, reply: tuple{src: backend}, status: status}
	}
	translated, scheduled, nobody := sent(statusConfirmed|statusDstNAT, b), sent(statusConfirmed, b), sent(statusConfirmed, vip)
	refuse := func(lb.Key, netip.AddrPort) bool { return false }
	for _, tt := range []struct {
		f    *flow
		by   Way
		want bool
	}{
		{translated, ByAny, true}, {translated, ByNAT, true}, {translated, ByIPVS, false},
		{scheduled, ByAny, true}, {scheduled, ByNAT, false}, {scheduled, ByIPVS, true},
		{nobody, ByAny, true}, {nobody, ByNAT, true}, {nobody, ByIPVS, true},
	} {
		if got := refused(tt.f, map[Way]Keep{tt.by: refuse}); got != tt.want {
			t.Errorf("status %#x to %s judged by %d: refused is %t", tt.f.status, tt.f.backend(), tt.by, got)
		}
	}
}

// What is gone from conntrack by the time that its eviction is asked for is told all
// the same, unless its backend serves again, but not before the kernel forgot it.
func TestEvictorTellsWhatWasNoted(t *testing.T) {
	withEvictor(t, func(t *testing.T, e *Evictor, f *fakeFlows, _ *bytes.Buffer) {
		note := func(ports ...uint16) {
			for _, p := range ports {
				e.lanes[lb.TCP].note(map[Eviction][]flow{tcpEviction(p): make([]flow, p)})
			}
		}
		note(1, 2, 4)
		e.Evict(tcpEviction(1), tcpEviction(4))
		e.Cancel(tcpEviction(2))
		wantCalls(t, f)
		time.Sleep(forgetTime)
		wantCalls(t, f, "tcp evict [1 4]", "tell 5")
		e.Evict(tcpEviction(1), tcpEviction(2))
		wantCalls(t, f, "tcp evict [1 2]")
		if n := len(e.lanes[lb.TCP].noted); n > 0 {
			t.Errorf("%d notes are left", n)
		}
	})
}

func TestEvictorHasNothingToDo(t *testing.T) {
	withEvictor(t, func(t *testing.T, e *Evictor, f *fakeFlows, _ *bytes.Buffer) {
		e.Evict()
		e.Evict(Eviction{Key: lb.Key{Protocol: 1}}) // no lane
		if err := e.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		wantCalls(t, f)
	})
}

func TestEvictorTriesAgain(t *testing.T) {
	withEvictor(t, func(t *testing.T, e *Evictor, f *fakeFlows, log *bytes.Buffer) {
		f.fail = 3
		start := time.Now()
		e.Evict(udpEviction(1))
		wantCalls(t, f, "udp evict [1]")
		e.Evict(udpEviction(2)) // waits for the retry
		wantCalls(t, f)
		if err := e.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		wantCalls(t, f, "udp evict [1 2]", "udp evict [1 2]", "udp evict [1 2]")
		if took := time.Since(start); took != 7*time.Second { // 1 + 2 + 4
			t.Errorf("took %s", took)
		}
		if n := strings.Count(log.String(), "trying again"); n != 1 {
			t.Errorf("the log says it %d times: %s", n, log)
		}
		f.fail = 1
		start = time.Now()
		e.Evict(udpEviction(3))
		if err := e.Wait(t.Context()); err != nil || time.Since(start) != time.Second {
			t.Errorf("the pause after a success is %s, want 1s: %v", time.Since(start), err)
		}
	})
}

func TestEvictorGivesUp(t *testing.T) {
	withEvictor(t, func(t *testing.T, e *Evictor, f *fakeFlows, log *bytes.Buffer) {
		f.fail = 1000
		start := time.Now()
		e.Evict(udpEviction(1))
		if err := e.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		if n := len(f.take()); n != evictAttempts {
			t.Errorf("%d attempts", n)
		}
		if took := time.Since(start); took < time.Minute || took > 3*time.Minute {
			t.Errorf("gave up after %s", took)
		}
		if !strings.Contains(log.String(), "level=ERROR") {
			t.Errorf("log: %s", log)
		}
		time.Sleep(time.Hour)
		wantCalls(t, f)
	})
}

func TestEvictorCancel(t *testing.T) {
	withEvictor(t, func(t *testing.T, e *Evictor, f *fakeFlows, _ *bytes.Buffer) {
		f.fail, f.takes = 1, time.Millisecond
		e.Evict(udpEviction(1), udpEviction(2))
		synctest.Wait()
		e.Evict(udpEviction(3), udpEviction(4))
		e.Cancel(udpEviction(2), udpEviction(4), udpEviction(5), tcpEviction(1)) // under way, waiting, unknown
		if err := e.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		wantCalls(t, f, "udp evict [1 2]", "udp evict [1 3]")
	})
}

// Close ends a call that is under way, and lets go of those who wait.
func TestEvictorClose(t *testing.T) {
	withEvictor(t, func(t *testing.T, e *Evictor, f *fakeFlows, log *bytes.Buffer) {
		f.takes = time.Hour
		start := time.Now()
		e.Evict(udpEviction(1))
		waited := make(chan error, 1)
		go func() { waited <- e.Wait(context.Background()) }()
		synctest.Wait()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if err := <-waited; err != nil || time.Since(start) != 0 {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		if log.Len() != 0 {
			t.Errorf("log: %s", log)
		}
	})
}

func TestEvictorWaitHearsItsContext(t *testing.T) {
	withEvictor(t, func(t *testing.T, e *Evictor, f *fakeFlows, _ *bytes.Buffer) {
		f.takes = time.Hour
		e.Evict(udpEviction(1))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := e.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// A table that cannot be opened is opened again.
func TestEvictorOpensAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeFlows{}
		attempts := 0
		e := newEvictor(1, slog.New(slog.DiscardHandler), func() (flowTable, error) {
			if attempts++; attempts == 1 {
				return nil, errors.New("no")
			}
			return f.Open()
		})
		e.Evict(tcpEviction(1))
		if err := e.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		wantCalls(t, f, "tcp evict [1]")
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
}
