package netfilter

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
)

// Removal over netlink, for tables and chains with rules that only nft can show:
// iptables neither reads those nor finds a rule among them. The kernel knows rules by
// their handles.

// removeMessages is how many messages one transaction of a removal has at most: they
// have to fit in the buffer of the socket.
const removeMessages = 500

// maxNamed is how many rules of others a removal names in the log.
const maxNamed = 5

// Apply makes a repair. Chains that cannot be removed by the script, for rules lead to
// them that it does not name, go over netlink with the nft backend. With the legacy one
// they stay, empty and without our jumps, and the error is that of the script.
func (t *Tool) Apply(ctx context.Context, r Repair) error {
	if len(r.Script) > 0 {
		err := t.Restore(ctx, r.Script)
		var refused *RestoreError
		if len(r.gone) == 0 || !errors.As(err, &refused) {
			return err
		}
		if t.backend == Legacy {
			return cmp.Or(t.Restore(ctx, withoutRemoval(r.Script)), err)
		}
	}
	return t.removeChains(ctx, r.table, func(chain string) bool { return slices.Contains(r.gone, chain) })
}

// withoutRemoval returns a script that keeps the chains it would remove.
func withoutRemoval(script []byte) []byte {
	var kept []byte
	for line := range bytes.Lines(script) {
		if !bytes.HasPrefix(line, []byte("-X ")) {
			kept = append(kept, line...)
		}
	}
	return kept
}

// RemoveOwn removes all chains of ours from a table, and the rules that lead to them,
// where iptables cannot: it shows not all of them (ErrIncompatible). The rules that
// somebody made with nft, or that lead to them, go with them and are named in the log. With the legacy
// backend there is no other way than iptables: errors.ErrUnsupported.
func (t *Tool) RemoveOwn(ctx context.Context, table string) error {
	if t.backend == Legacy {
		return errors.ErrUnsupported
	}
	return t.removeChains(ctx, table, isOwn)
}

// removeChains removes chains of ours, what is in them, and the rules of other
// people's chains that lead to them. In one transaction, if it is not too large.
func (t *Tool) removeChains(ctx context.Context, table string, goes func(chain string) bool) error {
	r, err := onSocket(func(s *nfSocket) (r *remover, err error) {
		for range listAttempts {
			r = &remover{table: table, family: t.family, goes: goes, chains: map[string]bool{}, filled: map[string]bool{}}
			if err = r.read(ctx, s); !errors.Is(err, linux.ErrInterrupted) {
				break
			}
		}
		return r, err
	})
	if err == nil {
		for part := range slices.Chunk(r.messages(), removeMessages) {
			if err = writeNFT(ctx, t.ledger, part); err != nil {
				break
			}
		}
	}
	if errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("%w; something still leads to a chain with %s, find it by \"nft list table\"", err, ChainPrefix)
	}
	if err != nil {
		return fmt.Errorf("removing from %s table %s over netlink: %w", t.family, table, err)
	}
	if len(r.foreign) > 0 {
		t.options.Log.Warn("chains of vipd were removed, and with them rules of somebody else in them, or that led to them",
			"family", t.family, "table", table, "rules", strings.Join(r.foreign[:min(maxNamed, len(r.foreign))], "; "), "count", len(r.foreign))
	}
	return nil
}

// remover finds out what has to be removed from a table.
type remover struct {
	family  Family
	table   string
	goes    func(chain string) bool
	chains  map[string]bool // of the table, and whether they go
	filled  map[string]bool // those that go and hold rules
	jumps   []message       // the removal of the rules that lead to what goes
	foreign []string        // rules of others that go
}

func (r *remover) read(ctx context.Context, s *nfSocket) error {
	err := s.list(ctx, r.message(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, "", 0), func(c object) {
		if c.text(unix.NFTA_CHAIN_TABLE) == r.table {
			name := c.text(unix.NFTA_CHAIN_NAME)
			r.chains[name] = isOwn(name) && r.goes(name)
		}
	})
	for _, name := range slices.Sorted(maps.Keys(r.chains)) {
		if err == nil && (r.chains[name] || !isOwn(name)) {
			err = r.readRules(ctx, s, name)
		}
	}
	return err
}

// readRules looks for rules that go, and which of them were made with nft.
func (r *remover) readRules(ctx context.Context, s *nfSocket, chain string) error {
	var bad error
	err := s.list(ctx, r.message(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, chain, 0), func(o object) {
		var rule nftRule
		var reader ruleReader
		if err := reader.read(o[unix.NFTA_RULE_EXPRESSIONS], &rule); err != nil {
			bad = err
			return
		}
		handle := o[unix.NFTA_RULE_HANDLE]
		if len(handle) != 8 || o.text(unix.NFTA_RULE_CHAIN) != chain {
			return
		}
		id := binary.BigEndian.Uint64(handle)
		if r.filled[chain] = r.chains[chain]; !r.chains[chain] {
			if !r.chains[string(rule.target)] {
				return
			}
			r.jumps = append(r.jumps, r.message(unix.NFT_MSG_DELRULE, 0, chain, id))
		}
		jump := !r.chains[chain] // into what goes; ours has a checksum
		if madeWithNFT(o[unix.NFTA_RULE_EXPRESSIONS]) || jump && rule.mark().Sum == "" {
			r.foreign = append(r.foreign, fmt.Sprintf("chain %s handle %d", chain, id))
		}
	})
	return errors.Join(err, bad)
}

// messages removes the ways in, then all rules, then the chains, which by then refer
// to nothing.
func (r *remover) messages() []message {
	all := slices.Clone(r.jumps)
	for _, kind := range []uint16{unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELCHAIN} {
		for _, name := range slices.Sorted(maps.Keys(r.chains)) {
			if r.chains[name] && (kind == unix.NFT_MSG_DELCHAIN || r.filled[name]) {
				all = append(all, r.message(kind, 0, name, 0))
			}
		}
	}
	return all
}

// message names the table, and a chain or a rule of it. Attributes of rules and of
// chains bear other numbers but for the table.
func (r *remover) message(kind, flags uint16, chain string, handle uint64) message {
	m := nftMessage(kind, flags, r.family)
	m.text(unix.NFTA_RULE_TABLE, r.table)
	switch {
	case chain == "":
	case kind == unix.NFT_MSG_DELCHAIN:
		m.text(unix.NFTA_CHAIN_NAME, chain)
	default:
		m.text(unix.NFTA_RULE_CHAIN, chain)
	}
	if handle != 0 {
		m.attr(unix.NFTA_RULE_HANDLE, binary.BigEndian.AppendUint64(nil, handle)...)
	}
	return m
}

// iptablesExpressions are those of which iptables-nft makes its rules.
var iptablesExpressions = []string{"match", "target", "payload", "meta", "cmp", "bitwise", "counter", "immediate", "lookup", "range", "limit", "log"}

// madeWithNFT reports whether a rule has an expression that iptables has no word for.
func madeWithNFT(expressions []byte) bool {
	var err error
	for _, element := range linux.Attributes(expressions, &err) {
		name := string(untilZero(attributeOf(element, unix.NFTA_EXPR_NAME, &err)))
		if !slices.Contains(iptablesExpressions, name) {
			return true
		}
	}
	return false
}
