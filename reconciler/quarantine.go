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
}

// admit returns want with every service that is in quarantine replaced by its
// last applied version, or left out if it never had one.
func (q *quarantine) admit(want lb.Snapshot, now time.Time, retry bool) lb.Snapshot {
	var editor *lb.Editor
	for k, s := range q.suspects {
		svc := want.Get(k)
		if svc == nil {
			delete(q.suspects, k)
			continue
		}
		if !svc.Equal(s.service) || retry || !now.Before(s.until) {
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

// substitute puts the last applied version of k into a snapshot.
func (q *quarantine) substitute(e *lb.Editor, k lb.Key) {
	if old := q.applied.Get(k); old != nil {
		e.Put(old)
	} else {
		e.Delete(k)
	}
}

// settle notes what came of tried, in which rejected failed, and returns what
// stands now.
func (q *quarantine) settle(want, tried lb.Snapshot, rejected map[lb.Key]error, now time.Time) lb.Snapshot {
	for k := range q.suspects {
		_, again := rejected[k]
		if svc := tried.Get(k); !again && svc != nil && svc.Equal(want.Get(k)) {
			delete(q.suspects, k)
		}
	}
	if len(rejected) == 0 {
		q.applied = tried
		return tried
	}
	editor := tried.Edit()
	for k, err := range rejected {
		svc := tried.Get(k)
		if svc == nil { // it was to be removed: the stage tries that again by itself
			continue
		}
		delay := firstProbation
		if s, again := q.suspects[k]; again && s.service.Equal(svc) {
			delay = min(2*s.delay, lastProbation)
		}
		if q.suspects == nil {
			q.suspects = map[lb.Key]suspect{}
		}
		q.suspects[k] = suspect{err: err, service: svc, delay: delay, until: now.Add(delay)}
		q.substitute(editor, k)
	}
	q.applied = editor.Snapshot()
	return q.applied
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

// errors returns the reasons, for Status.
func (q *quarantine) errors() map[lb.Key]error {
	reasons := make(map[lb.Key]error, len(q.suspects))
	for k, s := range q.suspects {
		reasons[k] = s.err
	}
	return reasons
}

func (q *quarantine) clone() *quarantine {
	return &quarantine{suspects: maps.Clone(q.suspects), applied: q.applied}
}
