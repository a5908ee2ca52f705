package main

import (
	"encoding/json"
	"iter"
	"maps"

	"vipd/lb"
	"vipd/state"
)

// journal remembers in the state log which virtual servers of IPVS are vipd's. It is
// a proxier/ipvs.Journal, for one goroutine.
type journal struct {
	store *state.Store // nil: nothing is written
	owned map[lb.Key]struct{}
}

// newJournal returns the journal that the last run left.
func newJournal(store *state.Store, keys []lb.Key) *journal {
	j := &journal{store: store, owned: make(map[lb.Key]struct{}, len(keys))}
	for _, k := range keys {
		j.owned[k] = struct{}{}
	}
	return j
}

// Owned implements ipvs.Journal.
func (j *journal) Owned() iter.Seq[lb.Key] { return maps.Keys(j.owned) }

// Own implements ipvs.Journal. What cannot be written is remembered all the same, and
// written with what comes next.
func (j *journal) Own(keys []lb.Key) error {
	changes := make([]state.Change, 0, len(keys))
	for _, k := range keys {
		if _, is := j.owned[k]; !is {
			j.owned[k] = struct{}{}
			changes = append(changes, state.Change{Bucket: bucketServer, Key: k.String(), Value: json.RawMessage("{}")})
		}
	}
	return j.write(changes)
}

// Disown implements ipvs.Journal.
func (j *journal) Disown(keys []lb.Key) error {
	changes := make([]state.Change, 0, len(keys))
	for _, k := range keys {
		if _, is := j.owned[k]; is {
			delete(j.owned, k)
			changes = append(changes, state.Change{Bucket: bucketServer, Key: k.String()})
		}
	}
	return j.write(changes)
}

func (j *journal) write(changes []state.Change) error {
	if j.store == nil || len(changes) == 0 {
		return nil
	}
	return j.store.Append(changes...)
}
