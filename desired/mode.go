package desired

import (
	"cmp"
	"fmt"
	"slices"

	"vipd/lb"
)

// Ability is what a mode can do beyond schedulers RR and WRR and ForwardNAT, which
// every mode can.
type Ability struct {
	Schedulers []lb.Scheduler
	Forwards   []lb.Forward
}

func (a Ability) schedules(s lb.Scheduler) bool {
	return s == lb.RR || s == lb.WRR || slices.Contains(a.Schedulers, s)
}

func (a Ability) forwards(f lb.Forward) bool {
	return f == lb.ForwardNAT || slices.Contains(a.Forwards, f)
}

func (a Ability) equal(o Ability) bool {
	return slices.Equal(a.Schedulers, o.Schedulers) && slices.Equal(a.Forwards, o.Forwards)
}

// Lack is a mode that this host cannot have.
type Lack struct {
	Reason   string  // and what to do about it
	Fallback lb.Mode // serves its services as well as it can; empty: nobody does
}

// assign fills in which mode serves a claim, and what becomes of its scheduler
// there, or says why no mode can. What stands in for another mode makes WRR of a
// scheduler that it does not have; it never forwards in another way than asked for,
// since then the backends would get packets, and see clients, that they do not
// expect.
func assign(f Facts, c choice) (choice, string) {
	spec := c.spec
	asked := asked(spec, f.Mode)
	lack, standIn := f.Lacks[asked]
	c.mode, c.scheduler, c.flags = asked, spec.Scheduler, spec.Flags
	if standIn {
		c.mode = lack.Fallback
	}
	can, available := f.Modes[c.mode]
	switch {
	case !available && standIn:
		return c, fmt.Sprintf("mode %s is not available on this host: %s", asked, lack.Reason)
	case !available:
		return c, fmt.Sprintf("mode %s is not available on this host", c.mode)
	case !can.forwards(spec.Forward) && standIn:
		return c, fmt.Sprintf("forward %s needs mode %s, for which mode %s stands in on this host: %s", spec.Forward, asked, c.mode, lack.Reason)
	case !can.forwards(spec.Forward):
		return c, fmt.Sprintf("mode %s cannot do forward %s; use nat, or another mode", c.mode, spec.Forward)
	case can.schedules(spec.Scheduler):
	case standIn:
		c.scheduler, c.flags = lb.WRR, 0
	default:
		return c, fmt.Sprintf("mode %s cannot do scheduler %s; use wrr or rr, or another mode", c.mode, spec.Scheduler)
	}
	return c, ""
}

// asked returns the mode that a spec wants.
func asked(spec *lb.Spec, inForce lb.Mode) lb.Mode { return cmp.Or(spec.Mode, inForce) }

// degraded says what the service lacks of what its spec asks for, or nothing.
func degraded(svc *lb.Service, spec *lb.Spec, inForce lb.Mode) string {
	mode := asked(spec, inForce)
	if svc.Scheduler == spec.Scheduler || mode == "" { // after a restart the first decision tells
		return ""
	}
	what := "scheduler " + string(spec.Scheduler)
	for i, flag := range spec.Flags.Words(string(spec.Scheduler) + "-") {
		what += [...]string{" with ", " and "}[min(i, 1)] + flag
	}
	return fmt.Sprintf("%s is %s here: mode %s is not available, %s stands in for it", what, svc.Scheduler, mode, svc.Mode)
}
