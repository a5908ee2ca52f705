package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
)

// The tables of the nft backend as the kernel dumps them, over netlink: the text
// that iptables-save makes of them costs twenty times as much, and a process.

// listAttempts is how often a dump that somebody's commit interrupted is made again
// before it is taken as it is. What it may lack is then written once more.
//
// Only what lies in one dump is of one moment. Chains of different moments do no
// harm: who reads asks the Ledger first, and hears of what others did meanwhile.
const listAttempts = 5

// List returns what a table holds, or only the named chains of it; then the cost
// does not grow with the rest. A table or chain that does not exist is missing in
// the answer. It runs no tool with the nft backend.
func (t *Tool) List(ctx context.Context, table string, chains ...string) (Listing, error) {
	if t.backend == Legacy {
		return t.listText(ctx, table, chains)
	}
	return listChains(ctx, t.family, table, chains...)
}

// listChains is List with the nft backend.
func listChains(ctx context.Context, f Family, table string, chains ...string) (Listing, error) {
	l, err := onSocket(func(s *nfSocket) (Listing, error) {
		r := newTableReader(f, table)
		err := r.read(ctx, s, chains)
		return r.list, err
	})
	if err != nil {
		return Listing{}, fmt.Errorf("reading %s table %s: %w", f, table, err)
	}
	return l, nil
}

// Survey lists a table and returns the text of some of its chains beside: with the
// legacy backend, which has to read the text of all, at the cost of one of the two.
func (t *Tool) Survey(ctx context.Context, table string, spelt ...string) (Listing, Table, error) {
	if t.backend == Legacy {
		all, err := t.Read(ctx, table)
		return all.Listing(), all.only(spelt), err
	}
	list, err := t.List(ctx, table)
	if err != nil {
		return Listing{}, Table{}, err
	}
	text, err := t.ReadChains(ctx, table, spelt...)
	return list, text, err
}

// listText lists by way of the text.
func (t *Tool) listText(ctx context.Context, table string, chains []string) (Listing, error) {
	read := func() (Table, error) { return t.Read(ctx, table) }
	if len(chains) > 0 {
		read = func() (Table, error) { return t.ReadChains(ctx, table, chains...) }
	}
	have, err := read()
	return have.Listing(), err
}

// tableReader puts a Listing together.
type tableReader struct {
	family Family
	table  string
	list   Listing

	chain  string     // to which the rules that come belong
	own    Listed     // what is known of it, if it is one of ours
	ofBase bool       // it is a base chain
	rules  ruleReader // of its rules
}

func newTableReader(f Family, table string) *tableReader {
	return &tableReader{family: f, table: table, list: Listing{Own: map[string]Listed{}, Base: map[string][]Mark{}}}
}

// asker is an nfSocket.
type asker interface {
	Send(m []byte) error
	Answers(ctx context.Context, each func(body []byte) error) error
}

// read reads the named chains, or all. The rules are asked for chain by chain: one
// dump of them all is quadratic in the kernel, which begins at the first rule again
// for every 32 KB that it hands out.
func (r *tableReader) read(ctx context.Context, s asker, chains []string) error {
	var err error
	if len(chains) == 0 {
		err = r.dump(ctx, s, r.request(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, ""), r.clear, r.putChain)
	}
	for _, name := range chains {
		if e := r.ask(ctx, s, r.request(unix.NFT_MSG_GETCHAIN, unix.NLM_F_ACK, name), r.putChain); !errors.Is(e, unix.ENOENT) {
			err = errors.Join(err, e)
		}
	}
	for _, names := range []iter.Seq[string]{maps.Keys(r.list.Own), maps.Keys(r.list.Base)} {
		for name := range names {
			if err == nil {
				empty := func() { r.putName(name) }
				err = r.dump(ctx, s, r.request(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, name), empty, r.putRule)
			}
		}
	}
	return err
}

// request asks for the chains or rules of the table. The attributes that name the
// table and the chain bear the same numbers for rules; a chain has its handle
// between them.
func (r *tableReader) request(kind, flags uint16, chain string) message {
	m := nftMessage(kind, flags, r.family)
	m.text(unix.NFTA_RULE_TABLE, r.table)
	switch {
	case chain == "":
	case kind == unix.NFT_MSG_GETCHAIN:
		m.text(unix.NFTA_CHAIN_NAME, chain)
	default:
		m.text(unix.NFTA_RULE_CHAIN, chain)
	}
	return m
}

// dump asks, and again if somebody's commit interrupted the answer. begin forgets
// what came of the last attempt.
func (r *tableReader) dump(ctx context.Context, s asker, m message, begin func(), put func(attrs []byte) error) error {
	for range listAttempts {
		begin()
		if err := r.ask(ctx, s, m, put); !errors.Is(err, linux.ErrInterrupted) {
			return err
		}
	}
	return nil
}

// ask makes a request and hands on the attributes of each answer.
func (r *tableReader) ask(ctx context.Context, s asker, m message, put func(attrs []byte) error) error {
	if err := s.Send(m); err != nil {
		return err
	}
	err := s.Answers(ctx, func(body []byte) error {
		if len(body) < sizeofNfgenmsg {
			return errors.New("short netlink message")
		}
		return put(body[sizeofNfgenmsg:])
	})
	r.flush()
	return err
}

// clear forgets all chains.
func (r *tableReader) clear() {
	clear(r.list.Own)
	clear(r.list.Base)
}

// putChain takes a chain of which nothing else is known yet.
func (r *tableReader) putChain(attrs []byte) error {
	table, chain, err := chainHeader(attrs)
	if string(table) == r.table {
		r.putName(string(chain))
	}
	return err
}

// putName takes a chain by its name: so far it has no rules.
func (r *tableReader) putName(name string) {
	switch {
	case isOwn(name):
		r.list.Own[name] = Listed{}
	case slices.Contains(baseChains[r.table], name):
		r.list.Base[name] = nil
	}
}

// putRule takes a rule. Those of one chain come one after the other.
func (r *tableReader) putRule(attrs []byte) error {
	rule, expressions, err := ruleHeader(attrs)
	if err != nil || string(rule.table) != r.table {
		return err
	}
	if string(rule.chain) != r.chain {
		r.flush()
		r.chain = string(rule.chain)
		_, r.ofBase = r.list.Base[r.chain]
		r.rules.reset()
	}
	if !r.ofBase && !isOwn(r.chain) {
		return nil
	}
	if err := r.rules.read(expressions, &rule); err != nil {
		return err
	}
	if r.ofBase {
		r.list.Base[r.chain] = append(r.list.Base[r.chain], rule.mark())
		return nil
	}
	r.own.Rules++
	r.own.Mark = Mark{} // that of a rule to a backend is nothing
	if len(rule.comment) > 0 || bytes.HasPrefix(rule.target, []byte(ChainPrefix)) {
		r.own.Mark = rule.mark()
	}
	if isOwn(r.own.Target) {
		r.own.To = append(r.own.To, r.own.Target)
	}
	return nil
}

// flush ends a chain.
func (r *tableReader) flush() {
	if r.own.Rules > 0 {
		r.own.Print = r.rules.print()
		r.list.Own[r.chain] = r.own
	}
	r.chain, r.own, r.ofBase = "", Listed{}, false
}
