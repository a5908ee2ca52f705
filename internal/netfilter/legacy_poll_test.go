package netfilter

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"testing"
	"testing/synctest"
)

// fakeLook are legacy tables that look as the test says.
type fakeLook struct {
	tables map[string]legacyInfo
	err    error
}

func (f *fakeLook) poll() *legacyPoll {
	p := newLegacyPoll()
	p.look = func(_ context.Context, family Family) (map[string]legacyInfo, error) {
		if f.err != nil || family == IPv6 {
			return nil, f.err
		}
		tables := map[string]legacyInfo{}
		for name, info := range f.tables {
			tables[name] = info
		}
		return tables, nil
	}
	return p
}

func (f *fakeLook) set(table string, size uint32) {
	f.tables[table] = legacyInfo{size: size}
}

func objects(t *testing.T, p *legacyPoll) (all []string) {
	t.Helper()
	drifts, err := p.poll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range drifts {
		all = append(all, d.Object)
	}
	return all
}

func TestLegacyPollTellsOfOthersOnly(t *testing.T) {
	f := &fakeLook{tables: map[string]legacyInfo{"nat": {size: 1}}}
	p := f.poll()
	if got := objects(t, p); got != nil {
		t.Errorf("the first look tells %v", got)
	}
	f.set("filter", 7)
	if err := p.write(t.Context(), func() error { f.set("nat", 2); return nil }); err != nil {
		t.Fatal(err)
	}
	if got := objects(t, p); !slices.Equal(got, []string{"IPv4 table filter"}) {
		t.Errorf("told %v", got)
	}
	f.set("raw", 3) // of no use to us
	if got := objects(t, p); got != nil {
		t.Errorf("told %v", got)
	}
}

// A vipd that is not root may write, but not list the tables.
func TestLegacyPollThatCannotLookFailsNoWrite(t *testing.T) {
	f := &fakeLook{tables: map[string]legacyInfo{}, err: fs.ErrPermission}
	p := f.poll()
	for range 2 {
		if err := p.write(t.Context(), func() error { return nil }); err != nil {
			t.Errorf("a write that succeeded: %v", err)
		}
	}
	refused := errors.New("refused")
	if err := p.write(t.Context(), func() error { return refused }); !errors.Is(err, refused) || errors.Is(err, fs.ErrPermission) {
		t.Errorf("a write that failed: %v", err)
	}
}

// What others did before a write is not known if the tables could not be looked at
// just then.
func TestLegacyPollTellsThatItMissedSomething(t *testing.T) {
	f := &fakeLook{tables: map[string]legacyInfo{}}
	p := f.poll()
	objects(t, p)
	f.err = errors.New("just now")
	if err := p.write(t.Context(), func() error { f.err = nil; f.set("nat", 2); return nil }); err != nil {
		t.Fatal(err)
	}
	if got := objects(t, p); !slices.Equal(got, []string{eventsLost}) {
		t.Errorf("told %v", got)
	}
	if got := objects(t, p); got != nil {
		t.Errorf("told again %v", got)
	}
}

// Nor what others did after it, if they could not be looked at then.
func TestLegacyPollTellsThatItSawNotWhatCameOfAWrite(t *testing.T) {
	f := &fakeLook{tables: map[string]legacyInfo{}}
	p := f.poll()
	objects(t, p)
	if err := p.write(t.Context(), func() error { f.err = errors.New("just now"); return nil }); err != nil {
		t.Fatal(err)
	}
	f.err = nil
	f.set("nat", 2) // by others, or by us
	if got := objects(t, p); !slices.Equal(got, []string{eventsLost}) {
		t.Errorf("told %v", got)
	}
	if got := objects(t, p); got != nil {
		t.Errorf("told again %v", got)
	}
}

// What was found before a look fails is told.
func TestLegacyWatchTellsBeforeItsError(t *testing.T) {
	f := &fakeLook{tables: map[string]legacyInfo{}}
	p := f.poll()
	objects(t, p)
	f.set("filter", 7)
	if err := p.write(t.Context(), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	f.err = errors.New("just now")
	var told []Drift
	if err := p.watch(t.Context(), func(d Drift) { told = append(told, d) }); !errors.Is(err, f.err) || len(told) != 1 {
		t.Errorf("told %v, then %v", told, err)
	}
}

// A watch that can never see anything does not break off again and again, and the
// other watches with it.
func TestLegacyWatchThatMayNotLookWaitsForItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLook{err: fs.ErrPermission}
		tools := &Tools{backend: Legacy, options: ToolOptions{}.withDefaults(), poll: f.poll()}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- tools.Watch(ctx, func(d Drift) { t.Errorf("told %v", d) }) }()
		synctest.Wait()
		select {
		case err := <-done:
			t.Errorf("the watch broke off: %v", err)
		default:
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		f.err = errors.New("else")
		if err := tools.Watch(t.Context(), func(Drift) {}); !errors.Is(err, f.err) {
			t.Errorf("another reason: %v", err)
		}
		cancel()
	})
}
