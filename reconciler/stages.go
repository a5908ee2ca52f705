package reconciler

import (
	"time"

	"vipd/desired"
	"vipd/lb"
)

// doorStage is the name of the door among the stages.
const doorStage lb.Mode = ""

// stages hold what each stage of a pass has accepted and rejected.
type stages map[lb.Mode]*quarantine

// clone returns stages that can be changed apart from s.
func (s stages) clone() stages {
	c := make(stages, len(s))
	for name, q := range s {
		c[name] = q.clone()
	}
	return c
}

// admit returns what a mode is to be asked for. Services that the door refused
// are not served either, but what stands stays. A service that moves to another
// mode stays as it is until the door leads to that one.
func (s stages) admit(d desired.Result, mode lb.Mode, refused map[lb.Key]error, now time.Time) lb.Snapshot {
	q, want := s[mode], d.Place[mode]
	editor := want.Edit()
	for _, k := range s.staying(d, mode) {
		q.substitute(editor, k)
	}
	for k := range refused {
		if want.Get(k) != nil {
			q.substitute(editor, k)
		}
	}
	return q.admit(editor.Snapshot(), now)
}

// staying lists what is to leave a mode, or to drain there, and to which the door does
// not yet lead in the mode to which it moves. So at any time one of the two takes new
// connections: the door opens the new mode's way only after that mode has the service.
func (s stages) staying(d desired.Result, mode lb.Mode) []lb.Key {
	var keys []lb.Key
	for is, want := range d.Place[mode].Diff(s[mode].stands()) {
		if is == nil || isFace(d, want) {
			continue
		}
		face := d.Door.Get(is.Key)
		if face == nil || face.Mode == mode || s[face.Mode] == nil {
			continue
		}
		if opened := s[doorStage].applied.Get(is.Key); opened == nil || opened.Mode != face.Mode {
			keys = append(keys, is.Key)
		}
	}
	return keys
}

// stayers returns how many services stay so, in all modes.
func (s stages) stayers(d desired.Result) (n int) {
	for mode := range s {
		if mode != doorStage {
			n += len(s.staying(d, mode))
		}
	}
	return n
}

// isFace reports whether a service, as placed in one mode, is what the outside is
// to see. A Key can be in several modes while it moves; its face in d.Door is that
// of the mode to which it moves, and its Mode tells which one that is. A face that
// stages put in place of it (see faces) has the Mode of the one that still serves.
func isFace(d desired.Result, svc *lb.Service) bool {
	if svc == nil {
		return false
	}
	face := d.Door.Get(svc.Key)
	return face != nil && face.Mode == svc.Mode
}

// toShut returns what the door is to expect in this pass: every service as its
// mode is going to be asked for it. So what the door keeps for a service (who is
// masqueraded) fits the version that stands, and a service that is not even tried
// causes no writes.
func (s stages) toShut(d desired.Result, now time.Time) lb.Snapshot {
	actual := map[lb.Mode]lb.Snapshot{}
	for mode := range s {
		if mode != doorStage {
			actual[mode] = s.admit(d, mode, nil, now)
		}
	}
	return s.faces(d, actual).Snapshot()
}

// toOpen returns what the door is to open after the modes have done their part:
// every service as it stands, without those that do not stand in any version, and
// those whose VIP was refused.
func (s stages) toOpen(d desired.Result, refused map[lb.Key]error) lb.Snapshot {
	actual := map[lb.Mode]lb.Snapshot{}
	for mode, q := range s {
		if mode != doorStage {
			actual[mode] = q.applied
		}
	}
	open := s.faces(d, actual)
	for k := range refused {
		s[doorStage].substitute(open, k)
	}
	return open.Snapshot()
}

// faces returns the services as the outside sees them when each mode serves
// actual in place of what was decided for it. A service that its mode does not
// serve is still what the mode it comes from makes of it.
func (s stages) faces(d desired.Result, actual map[lb.Mode]lb.Snapshot) *lb.Editor {
	faces := d.Door.Edit()
	for mode, snapshot := range actual {
		for is, want := range d.Place[mode].Diff(snapshot) {
			if !isFace(d, want) { // it goes, or another mode is its face
				continue
			}
			for other, q := range s {
				if is == nil && other != doorStage && other != mode {
					is = q.applied.Get(want.Key)
				}
			}
			if is == nil {
				faces.Delete(want.Key)
			} else {
				faces.Put(is)
			}
		}
	}
	return faces
}
