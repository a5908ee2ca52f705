package netfilter

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
)

// The requests to nf_tables that the anchor needs. Numbers and layouts are those
// of linux/netfilter/nf_tables.h.

// Names that golang.org/x/sys/unix lacks.
const (
	nftRegister        = unix.NFT_REG_1
	nftListElement     = 1 // NFTA_LIST_ELEM
	nftUdataComment    = 0 // NFTNL_UDATA_RULE_COMMENT, of libnftnl
	nfAccept           = 1
	sizeofNfgenmsg     = 4
	ctStateEstablished = 2 // NF_CT_STATE_BIT(IP_CT_ESTABLISHED)
)

// anchorMessages makes the anchor. The first two make sure that an old one is
// gone, whether there is one or not.
func anchorMessages(f Family) []message {
	nat := anchorChain(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, f, anchorNAT)
	nat.tree(unix.NFTA_CHAIN_HOOK, func() {
		nat.uint32(unix.NFTA_HOOK_HOOKNUM, anchorHook)
		nat.uint32(unix.NFTA_HOOK_PRIORITY, anchorPriority)
	})
	nat.uint32(unix.NFTA_CHAIN_POLICY, nfAccept)
	nat.text(unix.NFTA_CHAIN_TYPE, "nat")
	return []message{
		anchorTable(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, f),
		anchorTable(unix.NFT_MSG_DELTABLE, 0, f),
		anchorTable(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, f),
		nat,
		anchorChain(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, f, anchorConntrack),
		anchorRule(f),
	}
}

func nftMessage(kind, flags uint16, f Family) message {
	return newMessage(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, f)
}

func anchorTable(kind, flags uint16, f Family) message {
	m := nftMessage(kind, flags, f)
	m.text(unix.NFTA_TABLE_NAME, AnchorTable)
	return m
}

func anchorChain(kind, flags uint16, f Family, chain string) message {
	m := nftMessage(kind, flags, f)
	m.text(unix.NFTA_CHAIN_TABLE, AnchorTable)
	m.text(unix.NFTA_CHAIN_NAME, chain)
	return m
}

// anchorRules asks for all rules of the anchor.
func anchorRules(f Family) message {
	m := nftMessage(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, f)
	m.text(unix.NFTA_RULE_TABLE, AnchorTable)
	return m
}

// anchorRule is "ct state established" with a comment, as nft(8) writes it.
func anchorRule(f Family) message {
	m := nftMessage(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, f)
	m.text(unix.NFTA_RULE_TABLE, AnchorTable)
	m.text(unix.NFTA_RULE_CHAIN, anchorConntrack)
	m.tree(unix.NFTA_RULE_EXPRESSIONS, func() {
		m.expression("ct", func() {
			m.uint32(unix.NFTA_CT_DREG, nftRegister)
			m.uint32(unix.NFTA_CT_KEY, unix.NFT_CT_STATE)
		})
		m.expression("bitwise", func() {
			m.uint32(unix.NFTA_BITWISE_SREG, nftRegister)
			m.uint32(unix.NFTA_BITWISE_DREG, nftRegister)
			m.uint32(unix.NFTA_BITWISE_LEN, 4)
			m.data(unix.NFTA_BITWISE_MASK, ctStateEstablished)
			m.data(unix.NFTA_BITWISE_XOR, 0)
		})
		m.expression("cmp", func() {
			m.uint32(unix.NFTA_CMP_SREG, nftRegister)
			m.uint32(unix.NFTA_CMP_OP, unix.NFT_CMP_NEQ)
			m.data(unix.NFTA_CMP_DATA, 0)
		})
	})
	m.attr(unix.NFTA_RULE_USERDATA, anchorUserdata()...)
	return m
}

// anchorUserdata is the comment of the rule as libnftnl stores it.
func anchorUserdata() []byte {
	return append([]byte{nftUdataComment, byte(len(anchorComment) + 1)}, anchorComment+"\x00"...)
}

// text appends a string, which ends with a zero byte.
func (m *message) text(kind uint16, s string) { m.attr(kind, append([]byte(s), 0)...) }

// expression appends an element of a rule.
func (m *message) expression(name string, inside func()) {
	m.tree(nftListElement, func() {
		m.text(unix.NFTA_EXPR_NAME, name)
		m.tree(unix.NFTA_EXPR_DATA, inside)
	})
}

// data appends a value for a register, which is in the byte order of the machine.
func (m *message) data(kind uint16, v uint32) {
	m.tree(kind, func() { m.attr(unix.NFTA_DATA_VALUE, binary.NativeEndian.AppendUint32(nil, v)...) })
}

// transaction sends messages to nf_tables that take effect together or not at all.
func (s *nfSocket) transaction(ctx context.Context, messages []message) error {
	var batch []byte
	add := func(m message) {
		binary.NativeEndian.PutUint32(m, uint32(len(m)))
		binary.NativeEndian.PutUint32(m[8:], s.Next())
		batch = append(batch, m...)
	}
	edge := func(kind uint16) message {
		m := newMessage(kind, 0, 0)
		m[unix.SizeofNlMsghdr] = unix.AF_UNSPEC
		binary.BigEndian.PutUint16(m[unix.SizeofNlMsghdr+2:], unix.NFNL_SUBSYS_NFTABLES) // res_id
		return m
	}
	add(edge(unix.NFNL_MSG_BATCH_BEGIN))
	for i, m := range messages {
		if i == len(messages)-1 { // errors come by themselves; the answer to the last one says that all went well
			binary.NativeEndian.PutUint16(m[6:], binary.NativeEndian.Uint16(m[6:])|unix.NLM_F_ACK)
		}
		add(m)
	}
	add(edge(unix.NFNL_MSG_BATCH_END))
	if err := s.SendAll(batch); err != nil {
		return err
	}
	return s.Answers(ctx, func([]byte) error { return nil })
}

// object is what the kernel says of one table, chain or rule, by attribute.
type object map[uint16][]byte

// parseObject reads attributes; from the first garbled one on they are left out.
func parseObject(b []byte) object {
	o := object{}
	var err error
	for kind, payload := range linux.Attributes(b, &err) {
		o[kind] = bytes.Clone(payload) // the buffer is used again
	}
	return o
}

// uint32 returns a number, or the greatest one if there is none.
func (o object) uint32(kind uint16) uint32 {
	if v := o[kind]; len(v) == 4 {
		return binary.BigEndian.Uint32(v)
	}
	return ^uint32(0)
}

// text returns a string without the zero byte at its end.
func (o object) text(kind uint16) string {
	v := o[kind]
	if n := len(v); n > 0 && v[n-1] == 0 {
		v = v[:n-1]
	}
	return string(v)
}

// list asks for objects of nf_tables and calls each with every one of them.
func (s *nfSocket) list(ctx context.Context, m message, each func(object)) error {
	if err := s.Send(m); err != nil {
		return err
	}
	return s.Answers(ctx, func(body []byte) error {
		if len(body) < sizeofNfgenmsg {
			return errors.New("short netlink message")
		}
		each(parseObject(body[sizeofNfgenmsg:]))
		return nil
	})
}

// one asks for one object of nf_tables.
func (s *nfSocket) one(ctx context.Context, m message) (found object, err error) {
	binary.NativeEndian.PutUint16(m[6:], binary.NativeEndian.Uint16(m[6:])|unix.NLM_F_ACK) // after the object
	err = s.list(ctx, m, func(o object) { found = o })
	return found, err
}

// onSocket runs f with a socket of its own.
func onSocket[V any](f func(*nfSocket) (V, error)) (V, error) {
	s, err := openSocket()
	if err != nil {
		var none V
		return none, err
	}
	v, err := f(s)
	return v, errors.Join(err, s.Close())
}
