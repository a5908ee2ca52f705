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
	last   Set   // the set judged last
	class  Class // how it was judged
	view   SourceView
}

// NewHub returns a Hub of these sources, in the order of their precedence.
func NewHub(log *slog.Logger, sources ...Registration) *Hub {
	h := &Hub{log: log, inbox: latest.New(struct{}{})}
	for _, r := range sources {
		m := &member{name: r.Name, source: r.Source, policy: r.Policy, hub: h, ledger: &ledger{}}
		m.ledger.services, _ = m.ledger.intern(r.Seed)
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

// Run runs the sources until ctx ends, and returns when they all have returned: a
// source that does not hear ctx holds it up.
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
		switch changed, heard := h.judge(time.Now()); {
		case changed:
			seq++
			h.view.Set(h.snapshot(seq))
		case heard:
			h.view.Refresh(h.snapshot(seq))
		}
	}
}

// wait returns how long nothing can happen by itself.
func (h *Hub) wait(now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	wait := time.Hour
	for _, m := range h.members {
		if due := m.ledger.due(m.policy); !due.IsZero() {
			if !due.After(now) { // a policy that never lets it go must not make the Hub spin
				due = now.Add(drip)
			}
			wait = min(wait, due.Sub(now))
		}
	}
	return wait
}

// judge takes the news of every source. It reports whether a view changed in what
// anybody acts on, and whether a source was heard at all.
func (h *Hub) judge(now time.Time) (changed, heard bool) {
	for _, m := range h.members {
		h.mu.Lock()
		set, report, policy, rejudge := m.set, m.report, m.policy, m.rejudge
		m.set, m.report, m.rejudge = nil, nil, false
		h.mu.Unlock()
		due := m.ledger.due(policy)
		switch {
		case set != nil:
			m.last = *set
			heard = true
			changed = m.take(*set, true, policy, now) || changed
		case m.view.Spoken && (rejudge || !due.IsZero() && !due.After(now)):
			again := m.last
			again.Verified = false // it was read before
			changed = m.take(again, false, policy, now) || changed
		}
		if report != nil {
			heard = true
			changed = m.hear(*report, now) || changed
		}
	}
	return changed, heard
}

// take judges a set and reports whether the view says something new. A set that
// is judged again is no answer: it does not end an error.
func (m *member) take(set Set, answer bool, p Policy, now time.Time) bool {
	next, class := m.ledger.accept(set, p, now, m.hub.snapshot(0).rival(m.name))
	v := m.view
	v.Services, v.Held, v.Revision = next.services, next.held, set.Revision
	v.Rejected = slices.Concat(set.Rejected, next.doubles)
	if answer || !v.Class.failed() {
		v.Class = class
	}
	if answer {
		v.Spoken, v.Err, v.Answered = true, nil, now
	}
	same := next == m.ledger && v.Spoken == m.view.Spoken && v.Class == m.view.Class &&
		v.Revision == m.view.Revision && slices.Equal(v.Rejected, m.view.Rejected)
	if v.Class != m.view.Class {
		m.hub.log.Info("source answered", "source", m.name, "class", class,
			"services", len(next.services), "held", len(next.held), "rejected", len(v.Rejected))
	}
	m.ledger, m.class, m.view = next, class, v
	return !same
}

// hear takes a report and returns whether it says something new.
func (m *member) hear(r Report, now time.Time) bool {
	before := m.view
	if r.Class.failed() {
		m.view.Class, m.view.Err = r.Class, r.Err
		if before.Class != r.Class {
			m.hub.log.Warn("source gives no answer to rely on; its last good set stands",
				"source", m.name, "class", r.Class, "error", r.Err)
		}
		return before.Class != r.Class || errorText(before.Err) != errorText(r.Err)
	}
	m.view.Answered = now
	if r.Revision != "" {
		m.view.Revision = r.Revision
	}
	if !before.Class.failed() {
		return before.Revision != m.view.Revision
	}
	m.hub.log.Info("source answers again", "source", m.name)
	m.view.Class, m.view.Err = m.class, nil
	return true
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (h *Hub) snapshot(seq uint64) *View {
	v := &View{Seq: seq, Sources: make([]SourceView, len(h.members))}
	for i, m := range h.members {
		v.Sources[i] = m.view
	}
	return v
}

// Publish implements Sink. What was reported before it is overtaken.
func (m *member) Publish(set Set) {
	m.hub.mu.Lock()
	m.set, m.report = &set, nil
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
