package vip

import (
	"context"
	"fmt"

	"vipd/internal/netfilter"
)

// tables is the packet filter of one family. *netfilter.Tool is one.
type tables interface {
	// PlanSkeleton reads the table and tells what the Skeleton lacks.
	PlanSkeleton(ctx context.Context, s netfilter.Skeleton, seen *netfilter.Baseline) (netfilter.Repair, error)
	// PlanRemoval reads the table and tells what of the Skeleton is to go.
	PlanRemoval(ctx context.Context, s netfilter.Skeleton) (netfilter.Repair, error)
	// Apply makes what one of the two told.
	Apply(ctx context.Context, r netfilter.Repair) error
	// RemoveOwn removes all that is ours from a table that Read cannot show
	// (netfilter.ErrIncompatible).
	RemoveOwn(ctx context.Context, table string) error
	// Read returns the whole table.
	Read(ctx context.Context, table string) (netfilter.Table, error)
	// ReadBase returns the base chains of the table alone.
	ReadBase(ctx context.Context, table string) (netfilter.Table, error)
	// Generation returns a number that changes with whatever anybody writes; an
	// error if there is none.
	Generation(ctx context.Context) (uint32, error)
	// Restore commits a script; each COMMIT is atomic.
	Restore(ctx context.Context, script []byte) error
	// CommitChains returns how many chains one commit may name.
	CommitChains() int
	// HasRandomFully reports whether MASQUERADE knows --random-fully.
	HasRandomFully() bool
}

var _ tables = (*netfilter.Tool)(nil)

// The chains of the door, and the table of the one that guards.
const (
	tableMangle  = "mangle"
	tableGuard   = "filter"
	chainPre     = netfilter.ChainPrefix + "PRE"
	chainArrival = netfilter.ChainPrefix + "LIN"
	chainSilence = netfilter.ChainPrefix + "LOUT"
	chainGuard   = netfilter.ChainPrefix + "IN"
	chainForward = netfilter.ChainPrefix + "FWD"
	chainPost    = netfilter.ChainPrefix + "POST"
	chainMasq    = netfilter.ChainPrefix + "MASQ"
)

// skeletons returns the rules of the door, of constant size, in the order in
// which they are put in place.
func (d *Door) skeletons(f netfilter.Family, randomFully bool) []netfilter.Skeleton {
	bit := fmt.Sprintf("0x%x/0x%x", d.mark, d.mark)
	masquerade := "-j MASQUERADE"
	if randomFully {
		masquerade += " --random-fully"
	}
	vip := matchSet(netfilter.SetVIP, f)
	return []netfilter.Skeleton{d.entrance(f), {
		Table: tableGuard,
		Chains: []netfilter.Chain{
			{Name: chainGuard, Rules: d.guard(f)},
			{Name: chainForward, Rules: []string{"-j ACCEPT"}},
		},
		Jumps: []netfilter.Jump{
			{Base: "INPUT", Rule: vip + " dst -j " + chainGuard},
			{Base: "FORWARD", Rule: "-m connmark --mark " + bit + " -j " + chainForward},
		},
	}, {
		Table: "nat",
		Chains: []netfilter.Chain{
			{Name: chainPost, Rules: []string{
				"-m mark --mark " + bit + " -j " + chainMasq,
				// The host that calls a VIP of its own has that VIP as its source.
				vip + " src -m connmark --mark " + bit + " " + masquerade,
				"-m connmark --mark " + bit + " " + matchSet(netfilter.SetHair, f) + " dst,dst,src " + masquerade,
			}},
			{Name: chainMasq, Rules: []string{
				fmt.Sprintf("-j MARK --set-xmark 0x0/0x%x", d.mark),
				masquerade,
			}},
		},
		Jumps: []netfilter.Jump{{Base: "POSTROUTING", Rule: "-j " + chainPost}},
	}}
}

// entrance is what happens to a packet first (chainPre). Most packets of a host
// belong to a connection that is established; for them it is one comparison.
//
//   - A client that a service does not take is dropped when it begins a connection.
//     What it has already begun goes on to its end. Calls of this host itself do not
//     come by here.
//   - A packet of a backend that conntrack finds invalid (out of window, say) would
//     go on untranslated: to a client who knows no such peer, or, if the connection
//     is masqueraded, to this host which does not either. Both would answer by a
//     RST that ends the connection at the backend.
func (d *Door) entrance(f netfilter.Family) netfilter.Skeleton {
	states := "NEW"
	rules := []string{"-m conntrack --ctstate NEW " + matchSet(netfilter.SetACL, f) + " dst,dst " +
		"-m set ! --match-set " + netfilter.SetName(netfilter.SetAllow, f) + " dst,dst,src -j DROP"}
	if d.drop {
		states = "INVALID,NEW"
		rules = append(rules, "-m conntrack --ctstate INVALID "+matchSet(netfilter.SetBE, f)+" src,src -j DROP")
	}
	s := netfilter.Skeleton{
		Table:  tableMangle,
		Chains: []netfilter.Chain{{Name: chainPre, Rules: rules}},
		Jumps:  []netfilter.Jump{{Base: "PREROUTING", Rule: "-m conntrack --ctstate " + states + " -j " + chainPre}},
	}
	if d.input {
		arrival := d.arrival(f)
		s.Chains, s.Jumps = append(s.Chains, arrival.Chains...), append(s.Jumps, arrival.Jumps...)
	}
	return s
}

// guard is the rules for what is left for the host itself on a VIP (chainGuard): a
// packet of a service has another destination by then, or its mode takes it after
// the guard (letHalf, letOpen). Ping is answered. A TCP
// packet in the middle of a connection that conntrack does not know (its entry
// was deleted when a drain ended) counts as NEW there and is answered by a RST.
//
// What begins a connection to a service that has a backend was to be translated:
// somebody flushed the rules. It is dropped, for the client tries again, and by
// then they are mended. What this host itself sends is refused all the same, as
// conntrack has it down as untranslated by then: trying again would not help.
func (d *Door) guard(f netfilter.Family) (rules []string) {
	icmp, sctpReject, reject := "icmp", "icmp-proto-unreachable", "icmp-port-unreachable"
	if f == netfilter.IPv6 {
		icmp, sctpReject, reject = "ipv6-icmp", "icmp6-adm-prohibited", "icmp6-port-unreachable"
	}
	rules = append(rules, "-p "+icmp+" -j ACCEPT")
	rules = append(rules, d.letHalf(f)...)
	if d.drop {
		rules = append(rules, "-m conntrack --ctstate INVALID -j DROP")
	}
	rules = append(rules, "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")
	rules = append(rules, d.letOpen(f)...)
	return append(rules,
		notSYN+" -j REJECT --reject-with tcp-reset",
		"! -i lo "+matchSet(netfilter.SetServed, f)+" dst,dst -j DROP",
		"-p tcp -j REJECT --reject-with tcp-reset",
		"-p sctp -j REJECT --reject-with "+sctpReject,
		"-j REJECT --reject-with "+reject,
	)
}

func matchSet(set string, f netfilter.Family) string {
	return "-m set --match-set " + netfilter.SetName(set, f)
}
