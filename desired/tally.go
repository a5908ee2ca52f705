package desired

import (
	"encoding/binary"
	"net/netip"
)

// tally counts addresses by a hash: what it says there is may be another one, what
// it says there is not, is not. It takes a quarter of the memory of a map of
// addresses, and of backends there are many.
type tally map[uint32]int32

func (t tally) slot(a netip.Addr) uint32 {
	b := a.As16()
	h := binary.BigEndian.Uint64(b[:8])*0xff51afd7ed558ccd ^ binary.BigEndian.Uint64(b[8:])
	return uint32(h * 0x9e3779b97f4a7c15 >> 32) //nolint:gosec // the upper half
}

func (t tally) add(a netip.Addr, n int32) {
	slot := t.slot(a)
	if t[slot] += n; t[slot] == 0 {
		delete(t, slot)
	}
}

func (t tally) mayHave(a netip.Addr) bool { return t[t.slot(a)] > 0 }
