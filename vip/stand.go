package vip

import (
	"context"
	"errors"
	"fmt"

	"vipd/internal/netfilter"
	"vipd/proxier"
)

// ensureRules makes the chains and jumps of the family stand. A kernel that
// refuses random ports for masqueraded connections, though the tool knows them, is
// asked for plain masquerade, until a resync: it may have refused for another reason.
func (p *pass) ensureRules(ctx context.Context, f *family) error {
	t, err := p.tables(f)
	if err != nil {
		return err
	}
	plain := &p.d.plain[index(f.Family)]
	again := p.how.Fresh && p.plan == nil
	randomly := t.HasRandomFully() && (!*plain || again)
	err = p.ensureSkeletons(ctx, f, t, randomly)
	if err == nil && randomly {
		*plain = false
	}
	var refused *netfilter.RestoreError
	if !randomly || !errors.As(err, &refused) || p.ensureSkeletons(ctx, f, t, false) != nil {
		return err
	}
	if !*plain {
		p.d.log.Warn("the kernel refuses MASQUERADE --random-fully; ports are chosen as they come", "family", f.Family, "error", err)
	}
	*plain = true
	return nil
}

func (p *pass) ensureSkeletons(ctx context.Context, f *family, t tables, randomly bool) error {
	for _, s := range p.d.skeletons(f.Family, randomly) {
		r, err := t.PlanSkeleton(ctx, s, p.d.seen[index(f.Family)])
		if err != nil {
			return err
		}
		if s.Table == tableGuard && !r.Empty() { // what came meanwhile was not dropped
			p.noteOpened(f.addrs.allHeld())
		}
		if err := p.repair(ctx, f, t, s.Table, r); err != nil {
			return err
		}
	}
	return nil
}

// tables returns the packet filter of a family.
func (p *pass) tables(f *family) (tables, error) {
	i := index(f.Family)
	if p.d.tools[i] == nil {
		t, err := p.d.kernel.tables(f.Family)
		if err != nil {
			return nil, err
		}
		p.d.tools[i] = t
	}
	return p.d.tools[i], nil
}

// removeRules takes the chains and jumps of the family away.
func (p *pass) removeRules(ctx context.Context, f *family) error {
	t, err := p.tables(f)
	if errors.Is(err, netfilter.ErrNotInstalled) {
		return nil // without the tool no rules of ours were made
	}
	if err != nil {
		return err
	}
	for _, s := range p.d.skeletons(f.Family, t.HasRandomFully()) {
		r, err := t.PlanRemoval(ctx, s)
		if err != nil {
			return err
		}
		if err := p.repair(ctx, f, t, s.Table, r); err != nil {
			return err
		}
	}
	f.standing = false
	return nil
}

func (p *pass) repair(ctx context.Context, f *family, t tables, table string, r netfilter.Repair) error {
	if r.Empty() {
		return nil
	}
	err := p.do(ctx, func() []proxier.Change {
		changes := make([]proxier.Change, len(r.Lines))
		for i, line := range r.Lines {
			changes[i] = proxier.Change{Op: proxier.Remove, Object: fmt.Sprintf("%s table %s", f.Family, table), Detail: line.Text}
			if line.Add {
				changes[i].Op = proxier.Add
			}
		}
		return changes
	}, func() error { return t.Apply(ctx, r) })
	if err != nil {
		return fmt.Errorf("table %s: %w", table, err)
	}
	if p.plan == nil {
		r.Made(p.d.seen[index(f.Family)])
		p.d.log.Info("rules of the door changed", "family", f.Family, "table", table, "lines", len(r.Lines))
	}
	return nil
}

func index(f netfilter.Family) int {
	if f == netfilter.IPv4 {
		return 0
	}
	return 1
}
