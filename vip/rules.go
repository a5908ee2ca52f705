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
	// Read returns the whole table.
	Read(ctx context.Context, table string) (netfilter.Table, error)
	// Restore commits a script; each COMMIT is atomic.
	Restore(ctx context.Context, script []byte) error
	// CommitChains returns how many chains one commit may name.
	CommitChains() int
	// HasRandomFully reports whether MASQUERADE knows --random-fully.
	HasRandomFully() bool
}

var _ tables = (*netfilter.Tool)(nil)

// The chains of the door.
const (
	chainGuard   = netfilter.ChainPrefix + "IN"
	chainForward = netfilter.ChainPrefix + "FWD"
	chainPost    = netfilter.ChainPrefix + "POST"
	chainMasq    = netfilter.ChainPrefix + "MASQ"
)

// skeletons returns the rules of the door, of constant size, in the order in
// which they are put in place.
//
// The guard (chainGuard) sees what is left for the host itself on a VIP, for a
// packet of a service has another destination by then. Ping is answered. A TCP
// packet in the middle of a connection that conntrack does not know (its entry
// was deleted when a drain ended) counts as NEW there and is answered by a RST.
//
// The connmark bit is set by the proxier on the connections that a VIP takes.
// FORWARD lets exactly those pass, whatever its policy is, and only those are
// masqueraded: neither a host beside the VIPs nor a backend that calls its own
// address directly is concerned.
func skeletons(f netfilter.Family, mark uint32, randomFully bool) []netfilter.Skeleton {
	bit := fmt.Sprintf("0x%x/0x%x", mark, mark)
	icmp, sctpReject, reject := "icmp", "icmp-proto-unreachable", "icmp-port-unreachable"
	if f == netfilter.IPv6 {
		icmp, sctpReject, reject = "ipv6-icmp", "icmp6-adm-prohibited", "icmp6-port-unreachable"
	}
	masquerade := "-j MASQUERADE"
	if randomFully {
		masquerade += " --random-fully"
	}
	vip := "-m set --match-set " + netfilter.SetName(netfilter.SetVIP, f)
	return []netfilter.Skeleton{{
		Table: "filter",
		Chains: []netfilter.Chain{
			{Name: chainGuard, Rules: []string{
				"-p " + icmp + " -j ACCEPT",
				"-m conntrack --ctstate INVALID -j DROP",
				"-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
				"-p tcp -j REJECT --reject-with tcp-reset",
				"-p sctp -j REJECT --reject-with " + sctpReject,
				"-j REJECT --reject-with " + reject,
			}},
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
				"-m connmark --mark " + bit + " -m set --match-set " + netfilter.SetName(netfilter.SetHair, f) + " dst,dst,src " + masquerade,
			}},
			{Name: chainMasq, Rules: []string{
				fmt.Sprintf("-j MARK --set-xmark 0x0/0x%x", mark),
				masquerade,
			}},
		},
		Jumps: []netfilter.Jump{{Base: "POSTROUTING", Rule: "-j " + chainPost}},
	}}
}
