package vip

import (
	"context"
	"fmt"

	"vipd/internal/netfilter"
	"vipd/proxier"
)

// anchors are the tables by which established connections outlive a flush of the
// rules, one a family: see netfilter.AnchorTable. They stand after the rules and
// go after them.
type anchors interface {
	// State reads the anchor of a family.
	State(ctx context.Context, f netfilter.Family) (netfilter.AnchorState, error)
	// Put makes it stand, in place of whatever bears its name.
	Put(ctx context.Context, f netfilter.Family) error
	// Remove takes it away; it is no error if there is none.
	Remove(ctx context.Context, f netfilter.Family) error
}

var _ anchors = netfilter.KernelAnchors{}

// anchored reports whether rules of these tools want an anchor. Those of legacy are
// not in nftables, and vipd stays out of it there.
func anchored(tools *netfilter.Tools) bool {
	return tools != nil && tools.Backend() == netfilter.NFT
}

// ensureAnchor makes the anchor of the family stand. All works without it until
// somebody flushes the rules, so a kernel that refuses it is a finding, and the
// family serves.
func (p *pass) ensureAnchor(ctx context.Context, f *family) error {
	if !p.d.kernel.anchored {
		return nil
	}
	a := p.d.kernel.anchors
	state, err := a.State(ctx, f.Family)
	if err == nil && state != netfilter.AnchorStands {
		err = p.do(ctx, anchorChange(proxier.Add, f.Family), func() error { return a.Put(ctx, f.Family) })
		if err == nil && p.plan == nil {
			p.d.log.Info("anchor made", "family", f.Family, "table", netfilter.AnchorTable, "before", state)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if p.plan == nil {
		p.d.adrift[index(f.Family)] = err
	}
	return nil
}

// removeAnchor takes the anchor of the family away.
func (p *pass) removeAnchor(ctx context.Context, f *family) error {
	a := p.d.kernel.anchors
	state, err := a.State(ctx, f.Family)
	if err != nil || state == netfilter.AnchorAbsent {
		return err
	}
	return p.do(ctx, anchorChange(proxier.Remove, f.Family), func() error { return a.Remove(ctx, f.Family) })
}

func anchorChange(op proxier.Op, f netfilter.Family) func() []proxier.Change {
	return func() []proxier.Change {
		return []proxier.Change{{Op: op, Object: fmt.Sprintf("%s anchor", f), Detail: "table " + netfilter.AnchorTable}}
	}
}

// anchorFindings tells of the anchors that could not be made.
func (d *Door) anchorFindings() (found []string) {
	for i, f := range netfilter.Families {
		if err := d.adrift[i]; err != nil && d.state.families[i].wanted() {
			found = append(found, fmt.Sprintf("The %s table %s cannot be made (%v): when somebody flushes the rules, established connections end; "+
				"it needs nftables with NAT and conntrack in the kernel (nft_chain_nat, nft_ct).", f, netfilter.AnchorTable, err))
		}
	}
	return found
}
