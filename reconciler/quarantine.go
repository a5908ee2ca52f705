package reconciler

import (
	"maps"
	"time"

	"vipd/lb"
)

// How a service that was rejected is tried again while nothing about it changes.
const (
	firstProbation = 5 * time.Second
	lastProbation  = 5 * time.Minute
)

// suspect is a service that the kernel or the host rejected.
type suspect struct {
	err     error
	service *lb.Service // the version that was rejected
	delay   time.Duration
	until   time.Time // when it is tried again
}

// quarantine holds the services that one stage (the door, or a mode) rejected.
// Their last applied version stands until they change or their time comes.
type quarantine struct {
	suspects map[lb.Key]suspect
	applied  lb.Snapshot // what this stage has accepted last
	former   lb.Snapshot // what stood at the end of the last run; empty once this run knows
}

// admit returns want with every service that is in quarantine replaced by its
// last applied version, or left out if it never had one.
func (q *quarantine) admit(want lb.Snapshot, now time.Time) lb.Snapshot {
	var editor *lb.Editor
	for k, s := range q.suspects {
		svc := want.Get(k)
		if svc == nil {
			delete(q.suspects, k)
			continue
		}
		if !svc.Equal(s.service) || !now.Before(s.until) {
			continue
		}
		if editor == nil {
			editor = want.Edit()
		}
		q.substitute(editor, k)
	}
	if editor == nil {
		return want
	}
	return editor.Snapshot()
}

// stands returns what this stage is known to have in place.
func (q *quarantine) stands() lb.Snapshot {
	if q.former.Len() > 0 {
		return q.former
	}
	return q.applied
}

// substitute puts the last applied version of k into a snapshot, or takes k out.
func (q *quarantine) substitute(e *lb.Editor, k lb.Key) {
	if old := q.stands().Get(k); old != nil {
		e.Put(old)
	} else {
		e.Delete(k)
	}
}

// settle notes what came of tried, in which rejected failed, and returns the keys
// that came into quarantine or left it.
func (q *quarantine) settle(want, tried lb.Snapshot, rejected map[lb.Key]error, now time.Time) []lb.Key {
	var changed []lb.Key
	for k := range q.suspects {
		_, again := rejected[k]
		wanted, svc := want.Get(k), tried.Get(k)
		if wanted == nil || !again && svc != nil && svc.Equal(wanted) {
			delete(q.suspects, k)
			changed = append(changed, k)
		}
	}
	if len(rejected) == 0 {
		q.applied, q.former = tried, lb.Snapshot{}
		return changed
	}
	editor := tried.Edit()
	for k, err := range rejected {
		svc := tried.Get(k)
		if svc == nil { // it was to be removed: the stage tries that again by itself
			continue
		}
		s, again := q.suspects[k]
		switch {
		case again && now.Before(s.until) && (svc.Equal(s.service) || !svc.Equal(want.Get(k))):
			s.err = err // tried out of its turn, or its stand-in was: its time stays
		case again && svc.Equal(s.service):
			s.err, s.delay = err, min(2*s.delay, lastProbation)
			s.until = now.Add(s.delay)
		default:
			s = suspect{err: err, service: svc, delay: firstProbation, until: now.Add(firstProbation)}
			changed = append(changed, k)
		}
		if q.suspects == nil {
			q.suspects = map[lb.Key]suspect{}
		}
		q.suspects[k] = s
		q.substitute(editor, k)
	}
	q.applied, q.former = editor.Snapshot(), lb.Snapshot{}
	return changed
}

// forget takes out what tried was to remove, when nobody knows how far it came.
func (q *quarantine) forget(tried lb.Snapshot) {
	stands := q.stands()
	editor := stands.Edit()
	for is, want := range tried.Diff(stands) {
		if want == nil {
			editor.Delete(is.Key)
		}
	}
	if q.former.Len() > 0 {
		q.former = editor.Snapshot()
	} else {
		q.applied = editor.Snapshot()
	}
}

// due returns when the next suspect is tried again, or the zero time.
func (q *quarantine) due() time.Time {
	var due time.Time
	for _, s := range q.suspects {
		if due.IsZero() || s.until.Before(due) {
			due = s.until
		}
	}
	return due
}

func (q *quarantine) clone() *quarantine {
	return &quarantine{suspects: maps.Clone(q.suspects), applied: q.applied, former: q.former}
}
