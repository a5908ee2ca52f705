package vip

import (
	"context"
	"fmt"

	"vipd/internal/netfilter"
)

// notSYN matches a TCP packet that does not begin a connection.
const notSYN = "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN"

// arrival is what a connection meets whose service takes its packets at INPUT
// (chainArrival): it gets what others get in the chains of their mode, the connmark
// by which it is known and the mark for masquerade. IPVS takes what comes from
// elsewhere in INPUT, after filter, and what this host itself sends in OUTPUT, after
// mangle and before filter (ip_vs_ops4 in the kernel's net/netfilter/ipvs/ip_vs_core.c).
// What it sends on to a backend passes OUTPUT once more, then not to a VIP.
//
// A service whose backends answer past this host has no use for either mark.
//
// The skeleton has the answers of daemons as well: see silence.
func (d *Door) arrival(f netfilter.Family) netfilter.Skeleton {
	bit := fmt.Sprintf("--set-xmark 0x%[1]x/0x%[1]x", d.mark)
	enter := "-m conntrack --ctstate NEW " + matchSet(netfilter.SetOpen, f) + " dst,dst -j " + chainArrival
	answers, silenced := silence(f)
	return netfilter.Skeleton{
		Table: tableMangle,
		Chains: []netfilter.Chain{{Name: chainArrival, Rules: []string{
			matchSet(netfilter.SetDirect, f) + " dst,dst -j RETURN",
			"-j CONNMARK " + bit,
			matchSet(netfilter.SetMasq, f) + " dst,dst -j MARK " + bit,
			matchSet(netfilter.SetAuto, f) + " dst,dst,src -j MARK " + bit,
		}}, silenced},
		Jumps: append([]netfilter.Jump{{Base: "INPUT", Rule: enter}, {Base: "OUTPUT", Rule: enter}}, answers...),
	}
}

// silence is the rules by which no daemon of this host answers in the place of IPVS.
// While somebody has removed the virtual servers ("ipvsadm -C") what the guard lets
// through to them meets the daemons that listen on all addresses, and no table of
// iptables may drop a packet behind IPVS. But an answer from a VIP:port that is open is
// nobody's to give: those of backends come by FORWARD, and one that is this host bears
// its own address still, as IPVS writes the VIP behind mangle. So the handshake of TCP
// is not completed, and no datagram answered. A RST passes: it is how this host refuses
// what IPVS does not know. A backend of direct routing or a tunnel that is this host
// does answer as the VIP.
//
// A mode that answers from sockets of this host has to be excepted here.
func silence(f netfilter.Family) ([]netfilter.Jump, netfilter.Chain) {
	to := " " + matchSet(netfilter.SetOpen, f) + " src,src -j " + chainSilence
	return []netfilter.Jump{
			{Base: "OUTPUT", Rule: "-p tcp -m tcp --tcp-flags SYN,ACK SYN,ACK" + to},
			{Base: "OUTPUT", Rule: "-p udp -m conntrack --ctdir REPLY" + to},
		}, netfilter.Chain{Name: chainSilence, Rules: []string{
			matchSet(netfilter.SetDirect, f) + " src,src -j RETURN",
			"-j DROP",
		}}
}

// letHalf are the rules of the guard for connections of which this host sees one
// direction only, since their backends answer past it. To conntrack their packets
// are INVALID until it forgets the first one (120 s, nf_conntrack_tcp_timeout_syn_sent),
// and then NEW, without a SYN. What belongs to no connection is refused by IPVS and
// the host: it is looked up among connections only.
func (d *Door) letHalf(f netfilter.Family) []string {
	if !d.input {
		return nil
	}
	direct := matchSet(netfilter.SetDirect, f) + " dst,dst -j ACCEPT"
	return []string{"-m conntrack --ctstate INVALID " + direct, "-m conntrack --ctstate NEW " + notSYN + " " + direct}
}

// letOpen is the rule of the guard for what begins at a service that takes its
// packets at INPUT. A packet in the middle of a connection that conntrack does not
// know goes that way, too: IPVS may know it, and the host resets it otherwise.
func (d *Door) letOpen(f netfilter.Family) []string {
	if !d.input {
		return nil
	}
	return []string{matchSet(netfilter.SetOpen, f) + " dst,dst -j ACCEPT"}
}

// retireArrival takes away what an earlier run left for a mode that took packets at
// INPUT, if this host has none any more. The sets tell, and the guard has forgotten
// them by now.
func (p *pass) retireArrival(ctx context.Context, f *family) error {
	if p.d.input {
		return nil
	}
	if err := p.listSets(ctx); err != nil {
		return err
	}
	left := false
	for i := range f.sets {
		_, found := p.sets[f.set(i).Name]
		left = left || found && ofInput(i)
	}
	if !left {
		return nil
	}
	t, err := p.tables(f)
	if err != nil {
		return err
	}
	r, err := t.PlanRemoval(ctx, p.d.arrival(f.Family))
	if err != nil {
		return err
	}
	if err := p.repair(ctx, f, t, tableMangle, r); err != nil {
		return err
	}
	for i := range f.sets {
		if ofInput(i) {
			if err := p.destroySet(ctx, f, i); err != nil {
				return err
			}
		}
	}
	return nil
}
