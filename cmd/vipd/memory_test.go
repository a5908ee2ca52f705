package main

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vipd/desired"
	"vipd/lb"
	"vipd/state"
)

// former is what the version before affinity and client ranges left.
var former = map[state.ID]json.RawMessage{
	{Bucket: bucketAccepted, Key: "static 192.0.2.10:80/tcp"}: json.RawMessage(
		`{"key":"192.0.2.10:80/tcp","name":"web","scheduler":"wrr","masquerade":"always","drain_timeout_ns":30000000000,` +
			`"backends":[{"addr":"10.0.0.11:8080","weight":1,"state":"active"}]}`),
	{Bucket: bucketEntry, Key: "192.0.2.10:80/tcp"}: json.RawMessage(
		`{"owner":"static","name":"web","wanted":true,"mode":"iptables","drain_timeout_ns":30000000000,"saved":"2026-01-01T00:00:00Z",` +
			`"served":{"iptables":{"service":{"key":"192.0.2.10:80/tcp","scheduler":"wrr","masquerade":"always",` +
			`"backends":[{"addr":"10.0.0.11:8080","weight":1},{"addr":"10.0.0.12:8080","weight":0,"draining":true}]},` +
			`"drains_left_ns":{"10.0.0.12:8080":20000000000}}}}`),
}

func TestStateOfTheVersionBeforeIsUsed(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 5, 0, time.UTC)
	m, err := recall(former, now)
	if err != nil {
		t.Fatal(err)
	}
	if s := m.accepted["static"]; len(s) != 1 || s[0].Affinity != 0 || s[0].Clients != nil || len(s[0].Backends) != 1 {
		t.Errorf("accepted: %+v", s)
	}
	services := slices.Collect(m.memo.Services(now))
	if len(services) != 1 || services[0].Affinity != 0 || len(services[0].Clients) != 0 || services[0].Backends[1].Left != 15*time.Second {
		t.Errorf("served: %+v", services)
	}
}

// TestStateKeepsAffinityAndRanges: what a restart must know to serve without
// the source.
func TestStateKeepsAffinityAndRanges(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	spec := &lb.Spec{
		Key: lb.Key{Addr: netip.MustParseAddr("192.0.2.10"), Port: 80, Protocol: lb.SCTP}, Name: "web",
		Scheduler: lb.WRR, Masquerade: lb.MasqueradeAlways, Affinity: time.Hour,
		Clients:  []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.7/32")},
		Backends: []lb.BackendSpec{{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Weight: 1, State: lb.Active}},
	}
	memo := desired.NewMemo()
	r := desired.Compute(memo, desired.Facts{
		Now: now, Mode: lb.IPTables, Modes: map[lb.Mode]desired.Ability{lb.IPTables: {}}, Allowed: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		Sources: []desired.Source{{Name: "static", Services: []*lb.Spec{spec}}},
	})
	dir := t.TempDir()
	store, _, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	entry, err := memo.Record(spec.Key, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := (recorder{store}).Record(r.Claims, map[lb.Key][]byte{spec.Key: entry}); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	entries, err := state.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := recall(entries, now)
	if err != nil {
		t.Fatal(err)
	}
	if s := m.accepted["static"]; len(s) != 1 || !s[0].Equal(spec) {
		t.Errorf("accepted: %+v", s)
	}
	served := slices.Collect(m.memo.Services(now))
	if len(served) != 1 || served[0].Affinity != time.Hour || !slices.Equal(served[0].Clients, spec.Clients) {
		t.Errorf("served: %+v", served)
	}
}
