package netfilter

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vipd/internal/linux"
	"vipd/lb"
)

// ipsetBatch is how many entries go into one message: below 48 KB of the 64 KB
// that an attribute can hold.
const ipsetBatch = 500

// Entries calls each for what the set holds.
func (KernelSets) Entries(ctx context.Context, set Set, each func(Entry)) error {
	err := ipsetTalk(func(s *nfSocket) error {
		m := ipsetMessage(nl.IPSET_CMD_LIST, unix.NLM_F_DUMP, set)
		if err := s.Send(m); err != nil {
			return err
		}
		return s.Answers(ctx, func(body []byte) error { return set.readEntries(body, each) })
	})
	if err != nil {
		return fmt.Errorf("list ipset %s: %w", set.Name, err)
	}
	return nil
}

// Add adds the entries that the set does not hold.
func (KernelSets) Add(ctx context.Context, set Set, entries []Entry) error {
	return ipsetChange(ctx, nl.IPSET_CMD_ADD, "add to", set, entries)
}

// Delete removes the entries that the set holds.
func (KernelSets) Delete(ctx context.Context, set Set, entries []Entry) error {
	return ipsetChange(ctx, nl.IPSET_CMD_DEL, "delete from", set, entries)
}

// ipsetChange sends the entries in batches. Without NLM_F_EXCL the kernel takes
// an entry that is there already, or is gone already, as done.
func ipsetChange(ctx context.Context, cmd uint16, verb string, set Set, entries []Entry) error {
	for _, e := range entries {
		if err := set.check(e); err != nil {
			return err
		}
	}
	return ipsetTalk(func(s *nfSocket) error {
		for batch := range slices.Chunk(entries, ipsetBatch) {
			m := ipsetMessage(cmd, unix.NLM_F_ACK, set)
			m.uint32(nl.IPSET_ATTR_LINENO|ipsetAttrNetOrder, 0) // the kernel wants one with ADT
			m.tree(nl.IPSET_ATTR_ADT, func() {
				for i, e := range batch {
					m.setEntry(e, uint32(i))
				}
			})
			if err := s.request(ctx, m); err != nil {
				return fmt.Errorf("%s ipset %s (%s and %d more): %w", verb, set.Name, batch[0], len(batch)-1, ipsetError(err))
			}
		}
		return nil
	})
}

// ipsetTalk opens a socket for some requests.
func ipsetTalk(f func(*nfSocket) error) error {
	s, err := openSocket()
	if err != nil {
		return err
	}
	err = ipsetError(f(s))
	return errors.Join(err, s.Close())
}

// ipsetMessage begins a request about a set.
func ipsetMessage(cmd, flags uint16, set Set) message {
	m := newMessage(unix.NFNL_SUBSYS_IPSET<<8|cmd, flags, set.Family)
	m.attr(nl.IPSET_ATTR_PROTOCOL, nl.IPSET_PROTOCOL)
	m.attr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(set.Name)...)
	return m
}

// setEntry appends one entry as IPSET_ATTR_DATA.
func (m *message) setEntry(e Entry, line uint32) {
	m.tree(nl.IPSET_ATTR_DATA, func() {
		m.setAddr(nl.IPSET_ATTR_IP, e.Addr)
		if e.Protocol != 0 {
			m.uint16(nl.IPSET_ATTR_PORT|ipsetAttrNetOrder, e.Port)
			m.attr(nl.IPSET_ATTR_PROTO, byte(e.Protocol))
		}
		if e.Net.IsValid() {
			m.setAddr(nl.IPSET_ATTR_IP2, e.Net.Addr())
			if !e.Net.IsSingleIP() {
				m.attr(nl.IPSET_ATTR_CIDR2, byte(e.Net.Bits()))
			}
		}
		m.uint32(nl.IPSET_ATTR_CADT_LINENO|ipsetAttrNetOrder, line)
	})
}

func (m *message) setAddr(kind uint16, a netip.Addr) {
	m.tree(kind, func() {
		m.address(a, nl.IPSET_ATTR_IPADDR_IPV4|ipsetAttrNetOrder, nl.IPSET_ATTR_IPADDR_IPV6|ipsetAttrNetOrder)
	})
}

// readEntries calls each for the entries of one dumped message.
func (s Set) readEntries(body []byte, each func(Entry)) (err error) {
	if len(body) < nl.SizeofNfgenmsg {
		return errors.New("short netlink message")
	}
	for kind, value := range linux.Attributes(body[nl.SizeofNfgenmsg:], &err) {
		switch kind {
		case nl.IPSET_ATTR_TYPENAME:
			if got := nl.BytesToString(value); got != string(s.Type) {
				return fmt.Errorf("it is a %s: %w", got, ErrSetType)
			}
		case nl.IPSET_ATTR_ADT:
			for _, row := range linux.Attributes(value, &err) {
				e, err := s.readEntry(row)
				if err != nil {
					return err
				}
				each(e)
			}
		}
	}
	return err
}

func (s Set) readEntry(row []byte) (e Entry, err error) {
	var peer netip.Addr
	bits := uint8(0)
	for kind, value := range linux.Attributes(row, &err) {
		switch kind {
		case nl.IPSET_ATTR_IP:
			e.Addr, err = readSetAddr(value)
		case nl.IPSET_ATTR_IP2:
			peer, err = readSetAddr(value)
		case nl.IPSET_ATTR_CIDR2:
			bits, err = number8(value)
		case nl.IPSET_ATTR_PROTO:
			var p uint8
			p, err = number8(value)
			e.Protocol = lb.Protocol(p)
		case nl.IPSET_ATTR_PORT:
			e.Port, err = number16(value)
		}
	}
	if err != nil {
		return Entry{}, err
	}
	if peer.IsValid() {
		if bits == 0 {
			bits = uint8(peer.BitLen())
		}
		e.Net = netip.PrefixFrom(peer, int(bits))
	}
	return e, s.check(e)
}

// readSetAddr reads an address in its container.
func readSetAddr(b []byte) (a netip.Addr, err error) {
	for _, value := range linux.Attributes(b, &err) {
		var ok bool
		if a, ok = netip.AddrFromSlice(value); !ok {
			return a, fmt.Errorf("an address of %d bytes", len(value))
		}
	}
	return a, err
}
