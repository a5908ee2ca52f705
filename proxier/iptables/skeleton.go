package iptables

import (
	"fmt"

	"vipd/internal/netfilter"
)

// skeletonOf is the way into our chains. The sets belong to package vip, which
// makes them before it is written.
//
//   - What does not begin a TCP connection is let alone: a packet in the middle of
//     a connection that conntrack has lost is never sent to another backend.
//   - The connection gets the connmark by which package vip knows what a VIP took.
//   - Then it is marked for masquerade, always or for clients next to a backend.
func skeletonOf(f netfilter.Family, mark uint32) netfilter.Skeleton {
	set := func(name, how string) string {
		return "-m set --match-set " + netfilter.SetName(name, f) + " " + how
	}
	bit := fmt.Sprintf("--set-xmark %#x/%#x", mark, mark)
	enter := ruleOf(set(netfilter.SetVIP, "dst"), jumpTo(chainService))
	return netfilter.Skeleton{
		Table: table,
		Chains: []netfilter.Chain{{Name: chainService, Rules: []string{
			"-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN",
			"-j CONNMARK " + bit,
			ruleOf(set(netfilter.SetMasq, "dst,dst"), "-j MARK", bit),
			ruleOf(set(netfilter.SetAuto, "dst,dst,src"), "-j MARK", bit),
			goTo(chainDispatch),
		}}},
		Jumps: []netfilter.Jump{{Base: "PREROUTING", Rule: enter}, {Base: "OUTPUT", Rule: enter}},
	}
}
