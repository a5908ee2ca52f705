package main

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"vipd/lb"
	"vipd/state"
)

// What a journal holds is what the next start finds, whatever was taken out.
func TestTheJournalOutlivesTheProcess(t *testing.T) {
	key := func(port uint16) lb.Key {
		return lb.Key{Addr: netip.MustParseAddr("2001:db8::10"), Port: port, Protocol: lb.SCTP}
	}
	dir := t.TempDir()
	store, _, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	j := newJournal(store, []lb.Key{key(1)})
	for _, err := range []error{
		j.Own([]lb.Key{key(2), key(3)}), j.Own([]lb.Key{key(2)}), j.Disown([]lb.Key{key(3), key(4)}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got, want := owned(j), []lb.Key{key(1), key(2)}; !slices.Equal(got, want) {
		t.Errorf("owned: %v, want %v", got, want)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	entries, err := state.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	past, err := recall(entries, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := owned(newJournal(nil, past.servers)), []lb.Key{key(2)}; !slices.Equal(got, want) {
		t.Errorf("after a restart: %v, want %v (what was known before is not written again)", got, want)
	}
}

// owned returns what a journal holds, in order.
func owned(j *journal) []lb.Key { return slices.SortedFunc(j.Owned(), lb.Key.Compare) }
