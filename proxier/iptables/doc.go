// Package iptables serves services by rules of iptables in table nat. The kernel does the work; nothing stands in the way of a packet of a
// connection that has been translated once.
//
// The way of the first packet of a connection:
//
//	PREROUTING, OUTPUT -> VIPD-SVC    what goes to a VIP
//	  -> VIPD-2-DISP -> VIPD-2-T-...  a tree over the VIPs and ports (chains.go)
//	  -> VIPD-2-<service>             chooses a backend and translates (service.go)
//	  -> VIPD-2-W-...                 when there are many backends
//	  -> VIPD-2-A-..., VIPD-2-B-...   with affinity (affinity.go)
//
// VIPD-SVC lets alone what does not begin a connection, gives the connection the
// mark of vipd, and marks the packet for masquerade. The sets it matches on, the
// masquerade itself and the refusal of what no chain takes belong to package vip.
//
// Invariants:
//   - Every commit leaves a working rule set: new chains are made before anything
//     leads to them, a node of the tree is rewritten in place only if it keeps its
//     region, and what nothing leads to any more is deleted last.
//   - A commit names at most 150 chains, or those of one service: the cost in the nft backend is quadratic.
//     The legacy backend replaces the table at each commit: there it is one a pass.
//   - Chains nest at most 14 deep; the kernel refuses 16 and counts gotos.
//   - The layout is a function of the snapshot alone, so a restart finds what it
//     left, but for the slots of affinity, which the names of chains tell. A chain
//     is compared by a checksum that it carries in a comment.
//   - The names carry the generation of the layout, 2, but for VIPD-SVC: another
//     layout is built beside, and one commit of VIPD-SVC switches. Until something
//     may be removed what the new tree does not know goes on to the old one.
//   - What is remembered of the kernel advances only after the kernel said yes.
//     After an error it is forgotten and read again. Otherwise the table is read only
//     if somebody else touched what is ours, or nobody knows (netfilter.Ledger): our
//     own writes are not read back, and a chain that somebody else wrote is written
//     anew whatever it says of itself.
//
// Traps:
//   - A ":CHAIN" line of iptables-restore --noflush empties the chain, within the
//     commit; "-X" of a chain that anything still leads to fails the commit.
//   - One refused line refuses its whole commit, and earlier commits stand. The tool
//     names the line, but may lie: the service of it is tried alone before it is blamed.
//   - A rule may be refused only because somebody flushed the table: so before a
//     service is found guilty the kernel is read again.
//   - A service whose repair is refused is applied and does not stand: it is among the
//     failed of each pass, and a fresh one tries again, whoever touched what.
//   - After a restart a chain can stand whose content nobody knows, because the
//     version that is wanted now was refused, or because nothing may be removed
//     yet: the strays.
package iptables
