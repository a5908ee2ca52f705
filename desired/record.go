package desired

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"vipd/lb"
)

// record is the lasting form of an entry. Deadlines are written as the time that
// is left and the wall clock of the writing, so that a clock that jumps can end a
// drain early, but never leave it more than it had when it was written.
type record struct {
	Owner   string                   `json:"owner"`
	Name    string                   `json:"name"`
	Wanted  bool                     `json:"wanted"` // false: it is on its way out
	Mode    lb.Mode                  `json:"mode,omitempty"`
	Timeout time.Duration            `json:"drain_timeout_ns"`
	Saved   time.Time                `json:"saved"`
	Served  map[lb.Mode]placedRecord `json:"served"`
	Stands  map[lb.Mode]*lb.Service  `json:"stands,omitempty"` // see Memo.Stand; null: nothing
}

type placedRecord struct {
	Service  *lb.Service                      `json:"service"`
	Drains   map[netip.AddrPort]time.Duration `json:"drains_left_ns,omitempty"`
	Leaving  bool                             `json:"leaving,omitempty"`
	Refusing bool                             `json:"refusing,omitempty"`
}

// Record returns the lasting form of what was decided for k, or nil if there is
// nothing to remember.
func (m *Memo) Record(k lb.Key, now time.Time) ([]byte, error) {
	e := m.entries[k]
	if e == nil {
		return nil, nil
	}
	r := record{Owner: e.owner, Name: e.name, Wanted: e.spec != nil, Mode: e.mode, Timeout: e.timeout, Saved: now, Served: map[lb.Mode]placedRecord{}}
	for _, p := range e.served {
		pr := placedRecord{Service: p.Service, Leaving: p.Leaving, Refusing: p.Refusing}
		for b, until := range p.Drains {
			if pr.Drains == nil {
				pr.Drains = map[netip.AddrPort]time.Duration{}
			}
			pr.Drains[b] = until.Sub(now)
		}
		r.Served[p.mode] = pr
	}
	for mode, there := range m.stands {
		if svc, other := there[k]; other {
			if r.Stands == nil {
				r.Stands = map[lb.Mode]*lb.Service{}
			}
			r.Stands[mode] = svc
		}
	}
	return json.Marshal(r)
}

// Restore returns the Memo of a former run from its records and the accepted
// sets it had. An entry that cannot be read, or whose owner has no accepted set
// to back it, is left out and named in the error: what the kernel has of it stays
// until its source has spoken.
func Restore(records map[lb.Key][]byte, accepted []Source, now time.Time) (*Memo, error) {
	m := NewMemo()
	m.facts.Sources = accepted
	edits := m.edit()
	var errs []error
	for k, raw := range records {
		e, err := m.restoreEntry(k, raw, now)
		if err != nil {
			errs = append(errs, fmt.Errorf("record of %s: %w", k, err))
			continue
		}
		m.remember(k, e)
		edits.put(k, nil, e, nil)
	}
	edits.finish()
	return m, errors.Join(errs...)
}

func (m *Memo) restoreEntry(k lb.Key, raw []byte, now time.Time) (*entry, error) {
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, err
	}
	e := &entry{owner: r.Owner, name: r.Name, mode: r.Mode, timeout: r.Timeout}
	if r.Wanted {
		if e.spec = m.facts.source(r.Owner).get(k); e.spec == nil {
			return nil, fmt.Errorf("source %s has no accepted service of that name to back it", r.Owner)
		}
	}
	gone := max(0, now.Round(0).Sub(r.Saved))
	for mode, pr := range r.Served {
		if pr.Service == nil || pr.Service.Key != k {
			return nil, errors.New("the recorded service is missing or of another VIP:port")
		}
		pr.Service.Backends = slices.Clone(pr.Service.Backends) // the decoder leaves room for more, for good
		pr.Service.Mode = mode                                  // records once had it here only
		p := &placed{Service: pr.Service, Leaving: pr.Leaving, Refusing: pr.Refusing}
		for b, left := range pr.Drains {
			p.drain(nil, b, now.Add(left-gone), Facts{})
		}
		e.place(mode, p)
		e.wakeFor(p, now)
	}
	if e.empty() {
		return nil, errors.New("it serves nothing")
	}
	for mode, svc := range r.Stands {
		if svc != nil && svc.Key != k {
			continue
		}
		if svc != nil {
			svc.Mode = mode
		}
		m.there(mode)[k] = svc
	}
	return e, nil
}
