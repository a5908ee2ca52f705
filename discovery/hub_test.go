package discovery

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vipd/lb"
)

// scripted is a source that says what the test has it say.
type scripted struct {
	mu    sync.Mutex
	runs  int
	sink  Sink
	leave chan error // what Run returns
	crash bool       // Run panics at once
}

func newScripted() *scripted { return &scripted{leave: make(chan error)} }

func (s *scripted) Run(ctx context.Context, to Sink) error {
	s.mu.Lock()
	s.runs++
	s.sink = to
	crash := s.crash
	s.mu.Unlock()
	if crash {
		panic("poisoned input")
	}
	select {
	case err := <-s.leave:
		return err
	case <-ctx.Done():
		return nil
	}
}

func (s *scripted) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs
}

func (s *scripted) says(services ...*lb.Spec) {
	s.sink.Publish(Set{Services: services, Verified: true, Revision: "r"})
	synctest.Wait()
}

// stage is a running Hub whose wake-ups are counted.
type stage struct {
	t   *testing.T
	hub *Hub
}

func run(t *testing.T, sources ...Registration) *stage {
	s := &stage{t: t, hub: NewHub(slog.New(slog.DiscardHandler), sources...)}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { s.hub.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	synctest.Wait()
	return s
}

func store(name string, s *scripted, seed ...*lb.Spec) Registration {
	return Registration{Name: name, Source: s, Policy: DefaultPolicy, Seed: seed}
}

func (s *stage) source(name string) SourceView {
	v, _ := s.hub.View().Get().Source(name)
	return v
}

// woken reports whether readers were woken since it was asked last.
func (s *stage) woken() bool {
	synctest.Wait()
	select {
	case <-s.hub.View().Changed():
		return true
	default:
		return false
	}
}

func (s *stage) wants(name string, services, held int, class Class) SourceView {
	s.t.Helper()
	synctest.Wait()
	v := s.source(name)
	if len(v.Services) != services || len(v.Held) != held || v.Class != class {
		s.t.Fatalf("%s has %d services, %d held, class %q; want %d, %d, %q", name, len(v.Services), len(v.Held), v.Class, services, held, class)
	}
	return v
}

func TestF14_SameDataHundredTimesASecondWakesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted()
		s := run(t, store("etcd", src))
		src.says(specs(1, 10)...)
		if !s.woken() {
			t.Fatal("the first answer woke nobody")
		}
		first := s.hub.View().Get()
		for range 1000 {
			time.Sleep(10 * time.Millisecond)
			src.says(specs(1, 10)...) // equal, under other pointers
			src.sink.Report(Report{Class: OK, Revision: "r"})
		}
		if s.woken() {
			t.Error("an answer that repeats the last one woke the readers")
		}
		last := s.hub.View().Get()
		if last.Seq != first.Seq || &last.Sources[0].Services[0] != &first.Sources[0].Services[0] {
			t.Error("the accepted set changed")
		}
		if got := last.Sources[0].Answered.Sub(first.Sources[0].Answered); got != 10*time.Second {
			t.Errorf("the last answer is known to be %s after the first, want 10s: silence could not be told from it", got)
		}
		src.says(specs(1, 9)...)
		if !s.woken() {
			t.Error("a change woke nobody")
		}
	})
}

func TestB76_ErrorsAndSilenceKeepTheAcceptedSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted()
		s := run(t, store("etcd", src))
		src.says(specs(1, 10)...)
		answered := s.wants("etcd", 10, 0, OK).Answered
		s.woken()
		broken := errors.New("connection refused")
		src.sink.Report(Report{Class: Error, Err: broken})
		if v := s.wants("etcd", 10, 0, Error); !errors.Is(v.Err, broken) || !v.Answered.Equal(answered) {
			t.Errorf("view %+v", v)
		}
		if !s.woken() {
			t.Error("nobody heard of the error")
		}
		for range 1000 {
			time.Sleep(time.Minute)
			src.sink.Report(Report{Class: Error, Err: errors.New("connection refused")})
		}
		if s.woken() {
			t.Error("the same error again woke the readers")
		}
		src.sink.Report(Report{Class: Untrusted, Err: errors.New("index went back")})
		s.wants("etcd", 10, 0, Untrusted)
		time.Sleep(1000 * time.Hour)
		s.wants("etcd", 10, 0, Untrusted)
		src.sink.Report(Report{Class: OK})
		if v := s.wants("etcd", 10, 0, OK); v.Err != nil {
			t.Errorf("error %v after a good answer", v.Err)
		}
	})
}

func TestB76_AnErrorDoesNotHideWhatIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted()
		s := run(t, store("etcd", src))
		src.says(specs(1, 10)...)
		src.says()
		s.wants("etcd", 10, 10, OKEmpty)
		src.sink.Report(Report{Class: Untrusted}) // without a reason
		s.wants("etcd", 10, 10, Untrusted)
		src.sink.Report(Report{Class: OK})
		s.wants("etcd", 10, 10, OKEmpty)
	})
}

func TestPublishOvertakesAnOlderReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted()
		s := run(t, store("etcd", src))
		src.sink.Report(Report{Class: Error, Err: errors.New("before")})
		src.sink.Publish(Set{Services: specs(1, 2)})
		if v := s.wants("etcd", 2, 0, OK); v.Err != nil {
			t.Errorf("an error from before the answer is shown: %v", v.Err)
		}
		src.sink.Publish(Set{Services: specs(1, 3)})
		src.sink.Report(Report{Class: Error, Err: errors.New("after")})
		s.wants("etcd", 3, 0, Error)
	})
}

func TestStartFromTheSeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, seed := newScripted(), specs(1, 10)
		slices.Reverse(seed)
		s := run(t, store("etcd", src, seed...))
		if v := s.wants("etcd", 10, 0, ""); v.Spoken || s.hub.View().Get().Spoken() {
			t.Error("a source that only has a seed has spoken")
		}
		src.sink.Report(Report{Class: Error, Err: errors.New("down")})
		if v := s.wants("etcd", 10, 0, Error); v.Spoken {
			t.Error("an error is taken for an answer")
		}
		src.says() // F5: lost its data while we were away
		if v := s.wants("etcd", 10, 10, OKEmpty); !v.Spoken {
			t.Error("it has spoken")
		}
		src.says(specs(1, 10)...)
		if v := s.wants("etcd", 10, 0, OK); v.Services[9] != seed[0] {
			t.Error("an equal service lost its pointer")
		}
	})
}

func TestF6_TheDripNeedsNoFurtherAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted()
		s := run(t, store("etcd", src))
		src.says(specs(1, 100)...)
		src.says(specs(51, 100)...)
		time.Sleep(31 * time.Second)
		s.wants("etcd", 100, 50, OKShrink)
		src.says(specs(51, 100)...)
		for _, left := range []int{40, 30, 20, 10, 0} {
			s.wants("etcd", 50+left, left, OKShrink)
			time.Sleep(time.Second)
		}
		s.woken()
		time.Sleep(time.Hour)
		if s.woken() {
			t.Error("the drip never ends")
		}
	})
}

func TestF6_TimeAndANewPolicyDoNotVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted()
		s := run(t, store("etcd", src))
		src.says(specs(1, 100)...)
		src.says(specs(51, 100)...)
		time.Sleep(time.Hour)
		p := DefaultPolicy
		p.Hold = time.Second
		s.hub.SetPolicy("etcd", p)
		time.Sleep(time.Minute)
		s.wants("etcd", 100, 50, OKShrink) // the last answer was read before the hold ended
	})
}

func TestF55_SetPolicyJudgesTheLastAnswerAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted()
		p := Policy{Trusted: true, Hold: 30 * time.Second}
		s := run(t, Registration{Name: "static", Source: src, Policy: p})
		src.says(specs(1, 10)...)
		src.says()
		s.wants("static", 10, 10, OKEmpty)
		s.woken()
		s.hub.SetPolicy("static", p)
		if s.woken() {
			t.Error("the same policy woke the readers")
		}
		p.AllowEmpty = true
		s.hub.SetPolicy("static", p)
		s.wants("static", 0, 0, OK)
	})
}

func TestF10_HandOverGoesByItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newScripted(), newScripted()
		s := run(t, store("etcd", a), store("consul", b))
		a.says(specs(1, 10)...)
		b.says(spec(1, 7))
		a.says(specs(2, 10)...)
		v := s.wants("etcd", 10, 1, OK)
		if h := v.Held[key(1)]; h.Kind != HoldHandOver {
			t.Fatalf("hold %+v", h)
		}
		time.Sleep(30*time.Second - time.Millisecond)
		s.wants("etcd", 10, 1, OK)
		time.Sleep(time.Millisecond)
		s.wants("etcd", 9, 0, OK)
		s.wants("consul", 1, 0, OK)
	})
}

func TestF20_WedgedSourceStopsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wedge := make(chan struct{})
		stuck := sourceFunc(func(context.Context, Sink) error { <-wedge; return nil }) // deaf to its context
		b := newScripted()
		s := run(t, Registration{Name: "etcd", Source: stuck, Policy: DefaultPolicy, Seed: specs(1, 3)}, store("consul", b))
		t.Cleanup(func() { close(wedge) })
		b.says(spec(50, 1))
		s.wants("consul", 1, 0, OK)
		time.Sleep(time.Hour)
		b.says(spec(50, 2))
		s.wants("consul", 1, 0, OK)
		s.wants("etcd", 3, 0, "")
		if s.hub.View().Get().Spoken() {
			t.Error("a wedged source has not spoken")
		}
	})
}

type sourceFunc func(context.Context, Sink) error

func (f sourceFunc) Run(ctx context.Context, to Sink) error { return f(ctx, to) }

func TestNilServiceIsNoPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted()
		s := run(t, store("etcd", src))
		src.says(nil, spec(1, 1), nil)
		s.wants("etcd", 1, 0, OK)
	})
}

func TestWithTellsWhatAnAnswerWouldLeadTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newScripted(), newScripted()
		s := run(t, store("etcd", a), store("consul", b))
		a.says(specs(1, 10)...)
		b.says(spec(1, 7))
		for _, set := range [][]*lb.Spec{nil, specs(1, 10), specs(2, 10), specs(9, 10), specs(1, 11)} {
			would := s.hub.View().Get().With("etcd", Set{Services: set, Verified: true, Revision: "r"}, DefaultPolicy, time.Now())
			a.says(set...)
			is := s.source("etcd")
			w, _ := would.Source("etcd")
			if len(w.Services) != len(is.Services) || len(w.Held) != len(is.Held) || w.Class != is.Class {
				t.Errorf("%d services: would be %d (%d held, %s), is %d (%d held, %s)", len(set),
					len(w.Services), len(w.Held), w.Class, len(is.Services), len(is.Held), is.Class)
			}
			a.says(specs(1, 10)...)
		}
	})
}
