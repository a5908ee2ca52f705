package desired

import (
	"slices"
	"strings"
	"testing"
	"time"

	"vipd/lb"
)

const lacking = "the kernel has no IPVS; run: modprobe ip_vs"

// withoutIPVS is a world whose kernel lacks IPVS, with iptables to stand in for it.
func withoutIPVS(t *testing.T) *world {
	w := newWorld(t, "static")
	w.facts.Mode = ipvs
	w.facts.Modes = map[lb.Mode]Ability{ipt: {}}
	w.facts.Lacks = map[lb.Mode]Lack{ipvs: {Reason: lacking, Fallback: ipt}}
	return w
}

// scheduled gives a spec a scheduler and its flags.
func scheduled(s *lb.Spec, by lb.Scheduler, flags lb.SchedulerFlags) *lb.Spec {
	return with(s, func(s *lb.Spec) { s.Scheduler, s.Flags = by, flags })
}

func forwarded(s *lb.Spec, by lb.Forward) *lb.Spec {
	return with(s, func(s *lb.Spec) { s.Forward = by; s.Normalize() })
}

// notes lists what is said of the services, in their order.
func (w *world) notes() []string {
	var all []string
	for s := range w.memo.Still().Services(w.facts.Now) {
		all = append(all, s.Note)
	}
	return all
}

func TestB67_WhatStandsInForAModeServesAsWellAsItCan(t *testing.T) {
	w := withoutIPVS(t).states("static",
		svc("1:80 a*1"), scheduled(svc("2:80 b*1"), lb.LC, 0), scheduled(inMode(svc("3:80 c*1"), ipvs), lb.MH, lb.FlagPort|lb.FlagFallback),
		scheduled(inMode(svc("4:80 d*1"), ipt), lb.RR, 0), scheduled(inMode(svc("5:80 d*1"), ipvs), lb.RR, 0))
	r := w.now()
	w.wants("iptables serves", r.Place[ipt], "1:80 a*1", "2:80 b*1", "3:80 c*1", "4:80 d*1", "5:80 d*1")
	w.wants("ipvs serves", r.Place[ipvs])
	var schedulers []lb.Scheduler
	for s := range r.Door.All() {
		if schedulers = append(schedulers, s.Scheduler); s.Flags != 0 {
			t.Errorf("%s has the flags %v", s.Key, s.Flags)
		}
	}
	if want := []lb.Scheduler{lb.WRR, lb.WRR, lb.WRR, lb.RR, lb.RR}; !slices.Equal(schedulers, want) {
		t.Errorf("schedulers %v, want %v", schedulers, want)
	}
	const why = ": mode ipvs is not available, iptables stands in for it"
	notes := []string{"", "scheduler lc is wrr here" + why, "scheduler mh with mh-fallback and mh-port is wrr here" + why, "", ""}
	if got := w.notes(); !slices.Equal(got, notes) {
		t.Errorf("notes %q, want %q", got, notes)
	}
	if got := w.problems(); len(got) != 0 {
		t.Errorf("problems %q", got)
	}
	w.restart(time.Second)
	if got := w.notes(); got[1] != "" {
		t.Errorf("before the first decision: %q", got[1])
	}
	if r := w.now(); len(r.Touched) != 0 || !slices.Equal(w.notes(), notes) {
		t.Errorf("a restart touches %v and notes %q", r.Touched, w.notes())
	}
	w.states("static").now()
	for i, note := range w.notes() {
		if note != "" {
			t.Errorf("of service %d, which leaves: %s", i+1, note)
		}
	}
}

func TestB67_ServicesThatNeedTheModeAreNotServedInAnotherWay(t *testing.T) {
	w := withoutIPVS(t)
	for _, f := range []lb.Forward{lb.ForwardDR, lb.ForwardTunnel} {
		w.states("static", svc("1:80 a*1"), forwarded(svc("2:80 b*1"), f))
		w.wants(f.String(), w.now().Place[ipt], "1:80 a*1")
		w.wantsProblem(f.String(), "forward "+f.String()+" needs mode ipvs", "mode iptables stands in", lacking)
	}
	w.facts.Lacks = map[lb.Mode]Lack{ipvs: {Reason: lacking}}
	w.states("static", inMode(svc("1:80 a*1"), ipt), inMode(svc("2:80 b*1"), ipvs))
	w.wants("without a fallback", w.rest().Place[ipt], "1:80 a*1")
	w.wantsProblem("without a fallback", "mode ipvs is not available on this host: "+lacking)
}

// What changes of the modes concerns every service, though its source says the same.
func TestModesThatChangeAreSeen(t *testing.T) {
	w := withoutIPVS(t).states("static", scheduled(svc("1:80 a*1"), lb.LC, 0))
	scheduler := func() lb.Scheduler { return w.now().Door.Get(svc("1:80").Key).Scheduler }
	if got := scheduler(); got != lb.WRR {
		t.Errorf("iptables serves by %s", got)
	}
	w.facts.Modes = map[lb.Mode]Ability{ipt: {Schedulers: []lb.Scheduler{lb.LC}}}
	if got := scheduler(); got != lb.LC {
		t.Errorf("a mode that has learnt lc serves by %s", got)
	}
	w.facts.Lacks = map[lb.Mode]Lack{ipvs: {Reason: lacking}}
	w.now()
	w.wantsProblem("the stand-in is gone", lacking)
}

// What a service asks for by name is not made into something else: only a mode that
// stands in for another one does that.
func TestWhatAModeCannotDoIsRefused(t *testing.T) {
	w := withoutIPVS(t)
	for _, tt := range []struct {
		what string
		spec *lb.Spec
	}{
		{"mode iptables cannot do scheduler lc", scheduled(inMode(svc("1:80 a*1"), ipt), lb.LC, 0)},
		{"mode iptables cannot do forward dr", forwarded(inMode(svc("1:80 a*1"), ipt), lb.ForwardDR)},
		{"mode userspace is not available on this host", inMode(svc("1:80 a*1"), lb.Userspace)},
	} {
		w.states("static", tt.spec)
		w.wants(tt.what, w.now().Place[ipt])
		w.wantsProblem(tt.what, tt.what)
	}
}

// A kernel that learns IPVS while vipd is down serves what was asked for: the
// services move, and nothing is said of them any more.
func TestServicesMoveToTheModeThatStandsNoLongerIn(t *testing.T) {
	w := withoutIPVS(t).states("static", scheduled(svc("1:80 a*1"), lb.LC, 0), forwarded(svc("2:80 b*1"), lb.ForwardDR))
	w.now()
	w.restart(time.Second)
	w.facts.Lacks, w.facts.Modes = nil, bothModes()
	r := w.now()
	w.wants("the old mode drains", r.Place[ipt], "1:80 a*drain")
	w.wants("the new one serves", r.Place[ipvs], "1:80 a*1", "2:80 b*1")
	if s := r.Door.Get(svc("1:80").Key); s.Scheduler != lb.LC || s.Mode != ipvs {
		t.Errorf("served by %s in mode %s", s.Scheduler, s.Mode)
	}
	if got := strings.Join(append(w.notes(), w.problems()...), ""); got != "" {
		t.Error(got)
	}
}

// A host that boots without IPVS has nothing left of what it served by it: the services
// move, and those that need the mode are refused at once.
func TestB67_AModeThatTheHostHasLostDrainsNothing(t *testing.T) {
	w := withoutIPVS(t)
	lost := w.facts
	w.facts.Lacks, w.facts.Modes = nil, bothModes()
	w.states("static", svc("1:80 a*1"), forwarded(svc("2:80 b*1"), lb.ForwardDR), svc("3:80 c*1"))
	w.wants("before", w.now().Place[ipvs], "1:80 a*1", "2:80 b*1", "3:80 c*1")
	w.restart(time.Second)
	w.facts.Lacks, w.facts.Modes = lost.Lacks, lost.Modes
	w.states("static", svc("1:80 a*1"), forwarded(svc("2:80 b*1"), lb.ForwardDR))
	r := w.now()
	w.wants("what stands in serves", r.Place[ipt], "1:80 a*1")
	w.wants("nothing drains", r.Place[ipvs])
	w.wants("the door", r.Door, "1:80 a*1")
	w.wantsProblem("the one that needs the mode", "forward dr needs mode ipvs")
}
