package netfilter

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
)

// fakeTable answers as nf_tables does for a table with two chains of ours and a base
// chain, each with as many rules as its name has letters.
type fakeTable struct {
	generation uint16
	between    int // commits of somebody else between two requests
	within     int // dumps that a commit of somebody else interrupts
	dumps      int
	asked      message
}

var fakeChains = []string{"VIPD-A", "VIPD-BC", "PREROUTING", "OTHER"}

func (f *fakeTable) Send(m []byte) error {
	f.asked = m
	f.generation += uint16(f.between)
	return nil
}

func (f *fakeTable) Answers(_ context.Context, each func([]byte) error) error {
	f.dumps++
	kind := binary.NativeEndian.Uint16(f.asked[4:]) & 0xff
	answer := func(fill func(*message)) error {
		m := nftMessage(kind, 0, IPv4)
		binary.BigEndian.PutUint16(m[unix.SizeofNlMsghdr+2:], f.generation)
		m.text(unix.NFTA_RULE_TABLE, "nat")
		fill(&m)
		return each(m[unix.SizeofNlMsghdr:])
	}
	var err error
	chain := string(untilZero(attributeOf(f.asked[unix.SizeofNlMsghdr+sizeofNfgenmsg:], unix.NFTA_RULE_CHAIN, &err)))
	for i := range chain {
		if err == nil {
			err = answer(func(m *message) {
				m.text(unix.NFTA_RULE_CHAIN, chain)
				m.attr(unix.NFTA_RULE_USERDATA, nftUdataComment, 1, byte(i))
			})
		}
	}
	for _, name := range fakeChains {
		if err == nil && chain == "" {
			err = answer(func(m *message) { m.text(unix.NFTA_CHAIN_NAME, name) })
		}
	}
	if f.within > 0 && err == nil {
		f.within--
		f.generation++
		err = linux.ErrInterrupted
	}
	return err
}

// Commits of others, tens of them a second say, make us read again what they
// interrupt, and not all of the table.
func TestListingReadsAgainOnlyWhatWasInterrupted(t *testing.T) {
	const whole = 4 // dumps: the chains, and the rules of three
	for _, c := range []struct{ between, within, dumps int }{
		{0, 0, whole},
		{1, 0, whole},
		{0, 3, whole + 3},
		{1, 1000, whole * listAttempts},
	} {
		f := &fakeTable{between: c.between, within: c.within}
		r := newTableReader(IPv4, "nat")
		if err := r.read(t.Context(), f, nil); err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(r.list.Own["VIPD-A"].Rules, r.list.Own["VIPD-BC"].Rules, len(r.list.Base["PREROUTING"]), len(r.list.Own), len(r.list.Base))
		if want := "6 7 10 2 1"; got != want || f.dumps != c.dumps {
			t.Errorf("%+v: read %s in %d dumps, want %s", c, got, f.dumps, want)
		}
	}
}
