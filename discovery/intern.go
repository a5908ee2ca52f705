package discovery

import (
	"fmt"
	"slices"
	"strings"

	"vipd/lb"
)

// Specs that did not change keep their pointers, in a source that can do that and
// at the latest here. So an answer is compared with the accepted set by pointers,
// and only what differs is looked at: that costs nothing to speak of at 50,000
// services.

// intern returns the specs sorted, one a Key, with the pointer of the accepted
// version where the value did not change. Of several with one Key the one that
// is accepted under its name stays, or else the first by name: a source may
// shuffle its answers. The others are returned as rejections. What is returned may
// be specs itself.
func (l *ledger) intern(specs []*lb.Spec) ([]*lb.Spec, []Rejection) {
	if kept, inOrder := intern(l.services, specs); inOrder {
		return kept, nil
	}
	sorted, doubles := l.sort(specs)
	return Intern(l.services, sorted), doubles
}

// Intern returns now with the pointers of old where the values are the same, so
// that one of them is enough in memory. Both have to be sorted by Key, no Key twice;
// a now that is not is returned as it is.
func Intern(old, now []*lb.Spec) []*lb.Spec {
	if kept, inOrder := intern(old, now); inOrder {
		return kept
	}
	return now
}

func intern(old, now []*lb.Spec) (kept []*lb.Spec, inOrder bool) {
	kept, own := now, false
	inOrder = compare(old, now, func(at int, before, after *lb.Spec) {
		if before == nil || after == nil || !before.Equal(after) {
			return
		}
		if !own {
			kept, own = slices.Clone(now), true
		}
		kept[at] = before
	})
	return kept, inOrder
}

// sort returns the specs in order, without those that have no place there.
func (l *ledger) sort(specs []*lb.Spec) ([]*lb.Spec, []Rejection) {
	sorted := slices.DeleteFunc(slices.Clone(specs), func(s *lb.Spec) bool { return s == nil })
	slices.SortStableFunc(sorted, l.order)
	var doubles []Rejection
	kept := sorted[:0]
	for _, s := range sorted {
		n := len(kept)
		if n == 0 || kept[n-1].Key != s.Key {
			kept = append(kept, s)
		} else if !kept[n-1].Equal(s) {
			doubles = append(doubles, Rejection{
				Entry:  s.Name,
				Reason: fmt.Sprintf("%s belongs to service %s of the same source; use another VIP or port", s.Key, kept[n-1].Name),
			})
		}
	}
	return kept, doubles
}

// order sorts specs by Key, and those of one Key by who is to have it.
func (l *ledger) order(a, b *lb.Spec) int {
	if c := a.Key.Compare(b.Key); c != 0 || a == b {
		return c
	}
	if old := l.get(a.Key); old != nil && a.Name != b.Name {
		switch old.Name {
		case a.Name:
			return -1
		case b.Name:
			return 1
		}
	}
	return strings.Compare(a.Name, b.Name)
}

// losses returns what l has and now has not, and where in now a service is without
// backends that had some in l.
func (l *ledger) losses(now []*lb.Spec) (missing []*lb.Spec, emptied []int) {
	compare(l.services, now, func(at int, before, after *lb.Spec) {
		switch {
		case after == nil:
			missing = append(missing, before)
		case before != nil && len(before.Backends) > 0 && len(after.Backends) == 0:
			emptied = append(emptied, at)
		}
	})
	return missing, emptied
}

// compare tells note of every place at which two lists differ, in order: of a Key
// that only one of them has, the other spec is nil. old is in order; as soon as now
// turns out not to be, one a Key, compare returns false.
func compare(old, now []*lb.Spec, note func(at int, before, after *lb.Spec)) bool {
	var last *lb.Spec
	follows := func(s *lb.Spec) bool { return s != nil && (last == nil || last.Key.Compare(s.Key) < 0) }
	for at := 0; ; {
		same := 0 // nearly all of them, unread
		for same < len(old) && at+same < len(now) && old[same] == now[at+same] {
			same++
		}
		if same > 0 {
			if !follows(now[at]) {
				return false
			}
			old, at = old[same:], at+same
			last = now[at-1]
		}
		switch {
		case at == len(now) && len(old) == 0:
			return true
		case at == len(now) || len(old) > 0 && now[at] != nil && old[0].Key.Compare(now[at].Key) < 0:
			note(at, old[0], nil)
			old = old[1:]
			continue
		case !follows(now[at]):
			return false
		case len(old) == 0 || now[at].Key.Compare(old[0].Key) < 0:
			note(at, nil, now[at])
		default:
			note(at, old[0], now[at])
			old = old[1:]
		}
		last = now[at]
		at++
	}
}
