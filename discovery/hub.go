package discovery

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"vipd/internal/latest"
	"vipd/lb"
)

// View is what the Hub accepts at one moment: one entry a source, in the order
// of precedence. It is immutable.
type View struct {
	Seq     uint64 // grows with each View
	Sources []SourceView
}

// Spoken reports whether every source has given an answer since the start.
func (v *View) Spoken() bool {
	for _, s := range v.Sources {
		if !s.Spoken {
			return false
		}
	}
	return true
}

// Source returns the view of one source.
func (v *View) Source(name string) (SourceView, bool) {
	for _, s := range v.Sources {
		if s.Name == name {
			return s, true
		}
	}
	return SourceView{}, false
}

// SourceView is the accepted set of one source and what is known of its health.
type SourceView struct {
	Name     string
	Services []*lb.Spec      // accepted, sorted by Key; the same slice as before if nothing changed
	Held     map[lb.Key]Hold // the services of it that the source no longer states
	Rejected []Rejection
	Spoken   bool // gave an answer since the start; until then Services come from state/
	Class    Class
	Err      error
	Revision string
	Answered time.Time // when the last trusted answer came
}

// Registration makes a source known to the Hub.
type Registration struct {
	Name   string
	Source Source
	Policy Policy
	Seed   []*lb.Spec // the accepted set of a former run
}

// Hub runs the sources and keeps the accepted set of each. Its View is the only
// thing that others see of discovery.
type Hub struct {
	log   *slog.Logger
	view  *latest.Cell[*View]
	inbox *latest.Cell[struct{}] // signals that some member has news

	mu      sync.Mutex // guards the news of the members, which their sources write
	members []*member
}

// member is one source in the Hub.
type member struct {
	name   string
	source Source
	hub    *Hub

	// Guarded by hub.mu.
	policy  Policy
	rejudge bool    // the policy changed
	set     *Set    // published, not yet judged
	report  *Report // reported, not yet taken

	// Owned by the goroutine of Hub.Run.
	ledger *ledger
	last   Set // the set judged last
	view   SourceView
}

// NewHub returns a Hub of these sources, in the order of their precedence.
func NewHub(log *slog.Logger, sources ...Registration) *Hub {
	h := &Hub{log: log, inbox: latest.New(struct{}{})}
	for _, r := range sources {
		m := &member{name: r.Name, source: r.Source, policy: r.Policy, hub: h, ledger: &ledger{}}
		m.ledger.services = m.ledger.intern(r.Seed)
		m.view = SourceView{Name: r.Name, Services: m.ledger.services}
		h.members = append(h.members, m)
	}
	h.view = latest.New(h.snapshot(0))
	return h
}

// View returns the cell that holds the newest View.
func (h *Hub) View() *latest.Cell[*View] { return h.view }

// SetPolicy changes the policy of a source; the last answer is judged again.
func (h *Hub) SetPolicy(source string, p Policy) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.members {
		if m.name == source && m.policy != p {
			m.policy, m.rejudge = p, true
		}
	}
	h.inbox.Set(struct{}{})
}

// Run runs the sources until ctx ends, and returns when they all have returned.
func (h *Hub) Run(ctx context.Context) {
	var sources sync.WaitGroup
	for _, m := range h.members {
		sources.Go(func() { m.supervise(ctx) })
	}
	defer sources.Wait()

	seq := uint64(0)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(h.wait(time.Now()))
		select {
		case <-ctx.Done():
			return
		case <-h.inbox.Changed():
		case <-timer.C:
		}
		if h.judge(time.Now()) {
			seq++
			h.view.Set(h.snapshot(seq))
		}
	}
}

// wait returns how long nothing can happen by itself. A drip takes a second.
func (h *Hub) wait(now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	wait := time.Hour
	for _, m := range h.members {
		if due := m.ledger.due(m.policy); !due.IsZero() {
			wait = min(wait, max(due.Sub(now), time.Second))
		}
	}
	return wait
}

// judge takes the news of every source and reports whether a view changed.
func (h *Hub) judge(now time.Time) bool {
	changed := false
	for _, m := range h.members {
		h.mu.Lock()
		set, report, policy, rejudge := m.set, m.report, m.policy, m.rejudge
		m.set, m.report, m.rejudge = nil, nil, false
		h.mu.Unlock()
		due := m.ledger.due(policy)
		switch {
		case set != nil:
			m.last = *set
			m.take(*set, policy, now, h.rival(m))
			changed = true
		case m.view.Spoken && (rejudge || !due.IsZero() && !due.After(now)):
			again := m.last
			again.Verified = again.Verified && rejudge
			m.take(again, policy, now, h.rival(m))
			changed = true
		}
		if report != nil {
			changed = m.hear(*report, now) || changed
		}
	}
	return changed
}

// rival returns whether a source other than m claims a Key with a live entry.
func (h *Hub) rival(m *member) func(lb.Key) bool {
	return func(k lb.Key) bool {
		for _, o := range h.members {
			if o == m || o.ledger.get(k) == nil {
				continue
			}
			if _, held := o.ledger.held[k]; !held {
				return true
			}
		}
		return false
	}
}

// take judges a set.
func (m *member) take(set Set, p Policy, now time.Time, rival func(lb.Key) bool) {
	next, class := m.ledger.accept(set, p, now, rival)
	if class != m.view.Class {
		m.hub.log.Info("source answered", "source", m.name, "class", class,
			"services", len(next.services), "held", len(next.held), "rejected", len(set.Rejected))
	}
	m.ledger = next
	m.view.Services, m.view.Held, m.view.Rejected = next.services, next.held, set.Rejected
	m.view.Spoken, m.view.Class, m.view.Err = true, class, nil
	m.view.Revision, m.view.Answered = set.Revision, now
}

// hear takes a report and returns whether it says something new.
func (m *member) hear(r Report, now time.Time) bool {
	if r.Class != Error && r.Class != Untrusted {
		m.view.Answered = now
		if r.Revision != "" {
			m.view.Revision = r.Revision
		}
		if m.view.Err == nil {
			return false
		}
		m.hub.log.Info("source answers again", "source", m.name)
		m.view.Err = nil
		m.view.Class = r.Class
		return true
	}
	if m.view.Class != r.Class {
		m.hub.log.Warn("source gives no answer to rely on; its last good set stands",
			"source", m.name, "class", r.Class, "error", r.Err)
	}
	m.view.Class, m.view.Err = r.Class, r.Err
	return true
}

func (h *Hub) snapshot(seq uint64) *View {
	v := &View{Seq: seq, Sources: make([]SourceView, len(h.members))}
	for i, m := range h.members {
		v.Sources[i] = m.view
	}
	return v
}

// Publish implements Sink.
func (m *member) Publish(set Set) {
	m.hub.mu.Lock()
	m.set = &set
	m.hub.mu.Unlock()
	m.hub.inbox.Set(struct{}{})
}

// Report implements Sink.
func (m *member) Report(report Report) {
	m.hub.mu.Lock()
	m.report = &report
	m.hub.mu.Unlock()
	m.hub.inbox.Set(struct{}{})
}

var _ Sink = (*member)(nil)

// With returns the View as it would be after a source answered with set under
// policy p. It is pure: Plan asks it what a new configuration would lead to.
func (v *View) With(source string, set Set, p Policy, now time.Time) *View {
	next := &View{Seq: v.Seq, Sources: slices.Clone(v.Sources)}
	for i, s := range next.Sources {
		if s.Name != source {
			continue
		}
		l := &ledger{services: s.Services, held: s.Held}
		l, class := l.accept(set, p, now, v.rival(source))
		next.Sources[i] = SourceView{
			Name: s.Name, Services: l.services, Held: l.held, Rejected: set.Rejected,
			Spoken: true, Class: class, Revision: set.Revision, Answered: now,
		}
	}
	return next
}

// rival returns whether another source than this one claims a Key with a live entry.
func (v *View) rival(source string) func(lb.Key) bool {
	return func(k lb.Key) bool {
		for _, s := range v.Sources {
			if _, held := s.Held[k]; s.Name != source && !held && (&ledger{services: s.Services}).get(k) != nil {
				return true
			}
		}
		return false
	}
}
