package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"vipd/desired"
	"vipd/lb"
	"vipd/state"
)

// The buckets of the state log.
const (
	bucketAccepted = "accepted" // "SOURCE VIP:PORT/PROTO" -> the spec that the source stated last
	bucketEntry    = "entry"    // "VIP:PORT/PROTO" -> what was decided of it
	bucketServer   = "ipvs"     // "VIP:PORT/PROTO" -> {}: the virtual server of IPVS there is vipd's
)

// recorder writes what the reconciler wants remembered.
type recorder struct{ store *state.Store }

// Record implements reconciler.Recorder.
func (r recorder) Record(claims []desired.Claim, entries map[lb.Key][]byte) error {
	changes := make([]state.Change, 0, len(claims)+len(entries))
	for _, c := range claims {
		change := state.Change{Bucket: bucketAccepted, Key: c.Source + " " + c.Key.String()}
		if c.Spec != nil {
			raw, err := json.Marshal(c.Spec)
			if err != nil {
				return fmt.Errorf("service %s of source %s: %w", c.Key, c.Source, err)
			}
			change.Value = raw
		}
		changes = append(changes, change)
	}
	for k, raw := range entries {
		changes = append(changes, state.Change{Bucket: bucketEntry, Key: k.String(), Value: raw})
	}
	return r.store.Append(changes...)
}

// memory is what the last run left.
type memory struct {
	accepted map[string][]*lb.Spec // by source
	memo     *desired.Memo
	servers  []lb.Key // the journal of mode ipvs
}

// recall reads the entries of the state log. What cannot be read is left out and
// named in the error; the memory is usable all the same.
func recall(entries map[state.ID]json.RawMessage, now time.Time) (memory, error) {
	m := memory{accepted: map[string][]*lb.Spec{}}
	records := map[lb.Key][]byte{}
	var errs []error
	for id, raw := range entries {
		var err error
		var k lb.Key
		switch id.Bucket {
		case bucketAccepted:
			err = m.accept(id.Key, raw)
		case bucketEntry:
			if k, err = lb.ParseKey(id.Key); err == nil {
				records[k] = raw
			}
		case bucketServer:
			if k, err = lb.ParseKey(id.Key); err == nil {
				m.servers = append(m.servers, k)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("state entry %s %q: %w", id.Bucket, id.Key, err))
		}
	}
	var sources []desired.Source
	for name, specs := range m.accepted {
		lb.SortSpecs(specs)
		sources = append(sources, desired.Source{Name: name, Services: specs})
	}
	var err error
	m.memo, err = desired.Restore(records, sources, now)
	return m, errors.Join(append(errs, err)...)
}

// accept takes one accepted spec.
func (m *memory) accept(key string, raw []byte) error {
	source, text, found := strings.Cut(key, " ")
	if !found {
		return errors.New("it names no source")
	}
	k, err := lb.ParseKey(text)
	if err != nil {
		return err
	}
	spec := &lb.Spec{}
	if err := json.Unmarshal(raw, spec); err != nil {
		return err
	}
	if spec.Key != k {
		return fmt.Errorf("it holds service %s", spec.Key)
	}
	spec.Normalize()
	spec.Backends = slices.Clone(spec.Backends) // the decoder leaves room for more, for good
	spec.Clients = lb.NormalizeClients(spec.Clients)
	m.accepted[source] = append(m.accepted[source], spec)
	return nil
}
