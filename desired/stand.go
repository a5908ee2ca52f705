package desired

import (
	"maps"

	"vipd/lb"
)

// Stand notes what stands in a mode, which may be other than what was decided:
// the mode rejected that, or nobody has asked it yet. It returns the services of
// which that is news, to be recorded.
func (m *Memo) Stand(mode lb.Mode, stands lb.Snapshot) []lb.Key {
	there, now := m.there(mode), map[lb.Key]*lb.Service{}
	for is, want := range m.place[mode].Diff(stands) {
		k := keyOf(is, want)
		if m.entries[k] != nil { // else it is gone, and so is its record
			now[k] = is
		}
	}
	var news []lb.Key
	for k := range there {
		if _, still := now[k]; !still {
			news = append(news, k)
			delete(there, k)
		}
	}
	for k, is := range now {
		if before, known := there[k]; !known || (before == nil) != (is == nil) || is != nil && !is.Equal(before) {
			news = append(news, k)
			there[k] = is
		}
	}
	return news
}

// Standing returns what stands in a mode, as Stand was told last.
func (m *Memo) Standing(mode lb.Mode) lb.Snapshot {
	e := m.place[mode].Edit()
	for k, is := range m.stands[mode] {
		if is != nil {
			e.Put(is)
		} else {
			e.Delete(k)
		}
	}
	return e.Snapshot()
}

// there returns what stands in a mode other than decided; nil: nothing.
func (m *Memo) there(mode lb.Mode) map[lb.Key]*lb.Service {
	if m.stands[mode] == nil {
		m.stands[mode] = map[lb.Key]*lb.Service{}
	}
	return m.stands[mode]
}

func (m *Memo) cloneStands() map[lb.Mode]map[lb.Key]*lb.Service {
	c := make(map[lb.Mode]map[lb.Key]*lb.Service, len(m.stands))
	for mode, there := range m.stands {
		c[mode] = maps.Clone(there)
	}
	return c
}

func keyOf(a, b *lb.Service) lb.Key {
	if a != nil {
		return a.Key
	}
	return b.Key
}
