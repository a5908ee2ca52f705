package reconciler

import (
	"iter"
	"slices"
	"time"

	"vipd/desired"
	"vipd/discovery"
	"vipd/lb"
	"vipd/proxier"
)

// Status is what can be asked of a running vipd. Its JSON form is stable and
// documented in docs/operations.md.
type Status struct {
	Started time.Time `json:"started"`
	Mode    lb.Mode   `json:"mode"` // in force: serves the services that name none
	// ModeReason says why that mode is in force.
	ModeReason string          `json:"mode_reason"`
	Ready      bool            `json:"ready"` // every source has spoken and a pass has succeeded since
	Pass       PassStatus      `json:"pass"`
	Sources    []SourceStatus  `json:"sources"`
	Services   []ServiceStatus `json:"services"`
	Problems   []ProblemStatus `json:"problems"`
	Findings   []string        `json:"findings"` // what on this host hinders service
	Config     ConfigStatus    `json:"config"`
	IPTables   IPTablesStatus  `json:"iptables"`
	IPVS       IPVSStatus      `json:"ipvs"`
}

// IPTablesStatus tells of the tools by which rules are changed.
type IPTablesStatus struct {
	Backend   string `json:"backend"` // nft or legacy
	Version   string `json:"version"`
	LockWaits uint64 `json:"lock_waits"`        // how often the xtables lock was not to be had at once
	Waiting   string `json:"waiting,omitempty"` // who holds that lock while a pass waits for it
}

// IPVSStatus tells of the IPVS of the kernel.
type IPVSStatus struct {
	Available bool           `json:"available"`
	Reason    string         `json:"reason,omitempty"` // why not; else what there is to know, if anything
	Version   string         `json:"version,omitempty"`
	Sysctls   []SysctlStatus `json:"sysctls"` // on which it depends; none before a service uses it
}

// SysctlStatus tells of one setting of the kernel.
type SysctlStatus struct {
	Key     string `json:"key"`             // "net.ipv4.vs.conntrack"
	Want    string `json:"want"`            // empty: whatever it is
	Found   string `json:"found,omitempty"` // before vipd set it; empty: this kernel has no such setting
	Set     bool   `json:"set,omitempty"`   // vipd has set it
	Reason  string `json:"reason"`          // what it is good for
	Problem string `json:"problem,omitempty"`
}

// ConfigStatus tells which configuration is in force.
type ConfigStatus struct {
	File   string    `json:"file"`
	Loaded time.Time `json:"loaded"`
	Error  string    `json:"error,omitempty"` // why the last reload was refused; the one before is in force
}

// PassStatus tells of the last pass.
type PassStatus struct {
	Count      uint64        `json:"count"`
	Started    time.Time     `json:"started"`
	Duration   time.Duration `json:"duration_ns"`
	Fresh      bool          `json:"read_kernel"` // all of the kernel was compared
	Prune      bool          `json:"may_remove"`  // false until every source has spoken
	Error      string        `json:"error,omitempty"`
	StateError string        `json:"state_error,omitempty"`
	Pending    bool          `json:"pending"` // there is something newer than this pass
	Next       time.Time     `json:"next"`    // when the next one is due at the latest
}

// SourceStatus tells of one source.
type SourceStatus struct {
	Name     string                `json:"name"`
	Class    discovery.Class       `json:"class,omitempty"`
	Spoken   bool                  `json:"spoken"` // since the start; else the set of the last run is served
	Error    string                `json:"error,omitempty"`
	Revision string                `json:"revision,omitempty"`
	Answered time.Time             `json:"answered"`
	Services int                   `json:"services"`
	Held     map[lb.Key]string     `json:"held"` // removals not believed yet, and why
	Rejected []discovery.Rejection `json:"rejected"`
}

// ServiceStatus tells of one service in one mode.
type ServiceStatus struct {
	desired.Service
	State string `json:"state"` // serving, refusing, draining, moving, quarantined, pending
	Error string `json:"error,omitempty"`
}

// ProblemStatus is an entry that is not served.
type ProblemStatus struct {
	Key    lb.Key `json:"vip"`
	Source string `json:"source"`
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Status returns a snapshot of what is known. It never waits for the kernel, and
// passes wait for it no longer than it takes to copy a map.
func (r *Reconciler) Status() Status {
	s, services := r.Report()
	s.Services = slices.AppendSeq(s.Services, services)
	return s
}

// Report returns the same with the services apart, which are made one by one: all of
// them are much more than vipd has in memory of them.
func (r *Reconciler) Report() (Status, iter.Seq[ServiceStatus]) {
	view := r.views.Get()
	s, memo, stages, last := r.known(view.Seq)
	for _, v := range view.Sources {
		s.Sources = append(s.Sources, sourceStatus(v))
	}
	for k, p := range memo.Problems() {
		s.Problems = append(s.Problems, ProblemStatus{k, p.Source, p.Name, p.Reason})
	}
	return s, func(yield func(ServiceStatus) bool) {
		for svc := range memo.Services(time.Now()) {
			if !yield(stages.status(withCounts(svc, last))) {
				return
			}
		}
	}
}

// known returns what Status has to take from between two passes.
func (r *Reconciler) known(newest uint64) (Status, *desired.Memo, stages, map[desired.Drain]counted) {
	r.mu.Lock()
	defer r.mu.Unlock()
	mode := r.settings.Mode
	if lack, is := r.lacks[mode]; is {
		mode = lack.Fallback
	}
	s := Status{
		Started: r.started, Mode: mode, Ready: r.pass.Prune && r.pass.Error == "", Pass: r.pass,
		Sources: []SourceStatus{}, Services: []ServiceStatus{}, Problems: []ProblemStatus{}, Findings: []string{},
	}
	s.Pass.Pending = newest != r.view.Seq || r.pass.Count == 0
	return s, r.memo.Still(), r.stages.clone(), r.counts.last
}

func sourceStatus(v discovery.SourceView) SourceStatus {
	s := SourceStatus{
		Name: v.Name, Class: v.Class, Spoken: v.Spoken, Revision: v.Revision, Answered: v.Answered,
		Services: len(v.Services), Held: map[lb.Key]string{}, Rejected: slices.Clone(v.Rejected),
	}
	if s.Rejected == nil {
		s.Rejected = []discovery.Rejection{}
	}
	if v.Err != nil {
		s.Error = v.Err.Error()
	}
	for k, h := range v.Held {
		s.Held[k] = string(h.Kind)
	}
	return s
}

// status tells how a service stands.
func (s stages) status(svc desired.Service) ServiceStatus {
	status := ServiceStatus{Service: svc}
	err := s[doorStage].suspects[svc.Key].err
	applied := s[svc.Mode]
	if err == nil && applied != nil {
		err = applied.suspects[svc.Key].err
	}
	switch {
	case err != nil:
		status.State, status.Error = "quarantined", err.Error()
	case applied == nil || applied.applied.Get(svc.Key) == nil:
		status.State = "pending"
	case svc.Moving:
		status.State = "moving"
	case svc.Leaving:
		status.State = "draining"
	case !svc.Usable():
		status.State = "refusing"
	default:
		status.State = "serving"
	}
	return status
}

// note records how a pass went, and logs it when that is news.
func (r *Reconciler) note(view *discovery.View, how proxier.How, o outcome, changed int, start, end time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.pass
	r.view = view
	r.pass.Count++
	r.pass.Started, r.pass.Duration, r.pass.Fresh, r.pass.Prune = start, end.Sub(start), how.Fresh, how.Prune
	r.pass.Next = r.throttle.next()
	r.pass.Error = ""
	switch {
	case o.err != nil:
		r.pass.Error = o.err.Error()
		r.log.Error("pass failed; what was in place stands", "error", o.err, "retry", r.throttle.delay)
	case changed > 0 || before.Error != "" || before.Count == 0:
		r.log.Info("in place", "services", r.memo.Len(), "changed", changed, "took", end.Sub(start).Round(time.Microsecond))
	}
	r.tellUnserved()
}

// tellUnserved logs that entries of the sources are not served, once for as long as they
// are as many. r.mu is held.
func (r *Reconciler) tellUnserved() {
	n := r.memo.Unserved()
	if n == r.unserved {
		return
	}
	r.unserved = n
	for k, p := range r.memo.Problems() {
		r.log.Warn("entries of the sources are not served; vipd status names them all",
			"count", n, "first", k, "name", p.Name, "source", p.Source, "reason", p.Reason)
		return
	}
	r.log.Info("all entries of the sources are served")
}

func (r *Reconciler) setStateError(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pass.StateError = ""
	if err != nil {
		r.pass.StateError = err.Error()
	}
}
