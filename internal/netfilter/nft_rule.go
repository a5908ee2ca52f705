package netfilter

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
)

// Names that golang.org/x/sys/unix lacks, from linux/netfilter/nf_tables_compat.h.
const (
	nftaMatchName  = 1
	nftaMatchInfo  = 3
	nftaTargetName = 1
)

// verdicts are the targets that are no chains, by their code.
var verdicts = map[int32][]byte{0: []byte("DROP"), 1: []byte("ACCEPT"), unix.NFT_RETURN: []byte("RETURN")}

// nftRule is what matters of a rule. The bytes are those of the datagram.
type nftRule struct {
	table, chain []byte
	comment      []byte
	target       []byte
}

// mark returns what is known of the rule once the datagram is gone.
func (r nftRule) mark() Mark {
	m := Mark{Target: string(r.target)}
	m.Sum, m.Note = parseComment(string(r.comment))
	return m
}

// chainHeader reads where a chain is and what it is called.
func chainHeader(attrs []byte) (table, chain []byte, err error) {
	for kind, b := range linux.Attributes(attrs, &err) {
		switch kind {
		case unix.NFTA_CHAIN_TABLE:
			table = untilZero(b)
		case unix.NFTA_CHAIN_NAME:
			chain = untilZero(b)
		}
	}
	return table, chain, err
}

// ruleHeader reads the attributes of a rule, but not its expressions, which it
// returns.
func ruleHeader(attrs []byte) (rule nftRule, expressions []byte, err error) {
	for kind, b := range linux.Attributes(attrs, &err) {
		switch kind {
		case unix.NFTA_RULE_TABLE:
			rule.table = untilZero(b)
		case unix.NFTA_RULE_CHAIN:
			rule.chain = untilZero(b)
		case unix.NFTA_RULE_EXPRESSIONS:
			expressions = b
		case unix.NFTA_RULE_USERDATA:
			rule.comment = userComment(b)
		}
	}
	return rule, expressions, err
}

// ruleReader reads the expressions of rules, and makes one fingerprint of all of
// them until it is reset. Counters are no part of it.
type ruleReader struct{ hash maphash.Hash }

func (r *ruleReader) reset() { r.hash.SetSeed(printSeed) }

func (r *ruleReader) print() Fingerprint { return Fingerprint(r.hash.Sum64()) }

// read reads the expressions of the next rule.
func (r *ruleReader) read(expressions []byte, rule *nftRule) (err error) {
	_ = r.hash.WriteByte('\n')
	for _, element := range linux.Attributes(expressions, &err) {
		var name, data []byte
		for kind, b := range linux.Attributes(element, &err) {
			switch kind {
			case unix.NFTA_EXPR_NAME:
				name = untilZero(b)
			case unix.NFTA_EXPR_DATA:
				data = b
			}
		}
		if string(name) == "counter" {
			continue
		}
		_, _ = r.hash.Write(name)
		_, _ = r.hash.Write(data)
		switch string(name) {
		case "match":
			rule.readMatch(data, &err)
		case "target":
			rule.target = untilZero(attributeOf(data, nftaTargetName, &err))
		case "immediate":
			rule.readVerdict(data, &err)
		}
	}
	return err
}

// readMatch takes over the comment, which iptables writes as a match of x_tables.
func (r *nftRule) readMatch(data []byte, err *error) {
	if string(untilZero(attributeOf(data, nftaMatchName, err))) == "comment" {
		r.comment = untilZero(attributeOf(data, nftaMatchInfo, err))
	}
}

// readVerdict takes over where a rule leads to.
func (r *nftRule) readVerdict(data []byte, err *error) {
	verdict := attributeOf(attributeOf(data, unix.NFTA_IMMEDIATE_DATA, err), unix.NFTA_DATA_VERDICT, err)
	if r.target = untilZero(attributeOf(verdict, unix.NFTA_VERDICT_CHAIN, err)); r.target != nil {
		return
	}
	if code := attributeOf(verdict, unix.NFTA_VERDICT_CODE, err); len(code) == 4 {
		r.target = verdicts[int32(binary.BigEndian.Uint32(code))]
	}
}

// attributeOf returns the attribute of that kind, or nil.
func attributeOf(b []byte, kind uint16, err *error) []byte {
	for k, value := range linux.Attributes(b, err) {
		if k == kind {
			return value
		}
	}
	return nil
}

// userComment returns the comment in the user data of a rule, as libnftnl lays it
// out: type, length, value.
func userComment(b []byte) []byte {
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		if b[0] == nftUdataComment {
			return untilZero(b[2 : 2+int(b[1])])
		}
		b = b[2+int(b[1]):]
	}
	return nil
}

// untilZero returns what comes before the first zero byte.
func untilZero(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}
