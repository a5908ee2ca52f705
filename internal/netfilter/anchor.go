package netfilter

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// AnchorTable is the name of the nftables table that keeps established
// connections alive while the rules are gone. It exists once a family.
//
// The kernel translates the packets of a connection as long as its hooks for NAT
// and connection tracking are registered in the network namespace, and it
// registers them for the sake of rules: those of NAT for the first base chain of
// type nat of a family (nf_nat_register_fn), those of connection tracking for the
// first rule that looks at it (nf_ct_netns_get). When the last of either goes,
// because somebody flushes or deletes the tables of iptables, packets of
// established connections pass untranslated and are answered with a RST. So the
// anchor has one of each:
//
//	table ip vipd-anchor {
//		chain nat { type nat hook input priority 300; policy accept; }
//		chain conntrack { ct state established comment "..." }
//	}
//
// One empty base chain at any hook keeps the hooks of the whole family, and the
// rule counts although nothing leads to its chain: no packet runs through a rule
// of the anchor, so that it decides nothing and costs nothing. iptables does not
// look at tables with other names than its own. `nft flush ruleset` takes the
// anchor as well; a table with an owner would withstand that, but then a rule set
// that somebody saved with it and loads again would be refused whole.
const AnchorTable = "vipd-anchor"

const (
	anchorNAT       = "nat"       // the empty base chain
	anchorConntrack = "conntrack" // the chain with the rule
	anchorHook      = unix.NF_INET_LOCAL_IN
	anchorPriority  = 300 // behind all others
	anchorComment   = "vipd: established connections survive a flush of the rules"
)

// AnchorState says what stands of the anchor of a family.
type AnchorState uint8

// The states of an anchor.
const (
	AnchorAbsent AnchorState = iota
	AnchorStands
	AnchorDamaged // there is a table of that name, and it is not as it should be
)

// String returns a word for the state.
func (s AnchorState) String() string {
	return [...]string{"absent", "stands", "damaged"}[s]
}

// KernelAnchors are the anchors of the network namespace of the calling thread,
// over netlink: no tool is needed. Each write is one generation of the rule set, and
// is booked as ours. The zero KernelAnchors books nothing.
type KernelAnchors struct{ ledger *Ledger }

// Anchors returns the anchors that keep their books with the tools. A nil *Tools
// has some as well.
func (t *Tools) Anchors() KernelAnchors {
	if t == nil {
		return KernelAnchors{}
	}
	return KernelAnchors{t.ledger}
}

// State reads the anchor of a family. The cost does not grow with the rule set.
func (KernelAnchors) State(ctx context.Context, f Family) (AnchorState, error) {
	state, err := onSocket(func(s *nfSocket) (AnchorState, error) { return readAnchor(ctx, s, f) })
	if err != nil {
		return AnchorAbsent, fmt.Errorf("reading the %s table %s: %w", f, AnchorTable, err)
	}
	return state, nil
}

// Put makes the anchor of a family stand, in place of whatever there is, in one
// transaction: at no moment is there none.
func (a KernelAnchors) Put(ctx context.Context, f Family) error {
	if err := a.write(ctx, anchorMessages(f)); err != nil {
		return fmt.Errorf("making the %s table %s: %w", f, AnchorTable, err)
	}
	return nil
}

// Remove takes the anchor of a family away. It is no error if there is none, nor if
// the kernel has no nftables.
func (a KernelAnchors) Remove(ctx context.Context, f Family) error {
	err := a.write(ctx, []message{anchorTable(unix.NFT_MSG_DELTABLE, 0, f)})
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("removing the %s table %s: %w", f, AnchorTable, err)
	}
	return nil
}

func (a KernelAnchors) write(ctx context.Context, messages []message) error {
	return writeNFT(ctx, a.ledger, messages)
}

// writeNFT makes one transaction that changes something, and books it.
func writeNFT(ctx context.Context, l *Ledger, messages []message) error {
	return l.write(ctx, 0, func(started func(port int)) (int, error) {
		return onSocket(func(s *nfSocket) (int, error) {
			port, err := s.Port()
			if err != nil {
				return 0, err
			}
			started(int(port))
			err = s.transaction(ctx, messages)
			var refused unix.Errno
			switch {
			case err == nil:
				return 1, nil
			case errors.As(err, &refused): // all of it
				return 0, err
			}
			return unknownCommits, err
		})
	})
}

// readAnchor compares what there is with what there should be.
func readAnchor(ctx context.Context, s *nfSocket, f Family) (AnchorState, error) {
	table, err := s.one(ctx, anchorTable(unix.NFT_MSG_GETTABLE, 0, f))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // EINVAL: no nftables
		return AnchorAbsent, nil
	}
	if err != nil {
		return AnchorAbsent, err
	}
	if table.uint32(unix.NFTA_TABLE_FLAGS) != 0 || table.uint32(unix.NFTA_TABLE_USE) != 2 {
		return AnchorDamaged, nil // asleep, or there are more or fewer chains
	}
	nat, err := s.one(ctx, anchorChain(unix.NFT_MSG_GETCHAIN, 0, f, anchorNAT))
	if errors.Is(err, unix.ENOENT) {
		return AnchorDamaged, nil
	}
	if err != nil {
		return AnchorAbsent, err
	}
	hook := parseObject(nat[unix.NFTA_CHAIN_HOOK])
	if hook.uint32(unix.NFTA_HOOK_HOOKNUM) != anchorHook || int32(hook.uint32(unix.NFTA_HOOK_PRIORITY)) != anchorPriority ||
		nat.text(unix.NFTA_CHAIN_TYPE) != "nat" || nat.uint32(unix.NFTA_CHAIN_POLICY) != nfAccept {
		return AnchorDamaged, nil
	}
	rules, right := 0, 0
	err = s.list(ctx, anchorRules(f), func(rule object) {
		rules++
		if rule.text(unix.NFTA_RULE_CHAIN) == anchorConntrack && string(rule[unix.NFTA_RULE_USERDATA]) == string(anchorUserdata()) {
			right++
		}
	})
	if err != nil {
		return AnchorAbsent, err
	}
	if rules != 1 || right != 1 {
		return AnchorDamaged, nil
	}
	return AnchorStands, nil
}
