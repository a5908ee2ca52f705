package ipvs

import (
	"context"

	vs "vipd/internal/ipvs"
	"vipd/lb"
	"vipd/proxier"
)

// enforce sees to the sysctls, before a virtual server has its first connection. A host
// that has no service here is left as it is.
func (p *Proxier) enforce(ctx context.Context, want lb.Snapshot, how proxier.How) error {
	if p.Settings == nil || want.Len() == 0 || p.settled && !how.Fresh {
		return nil
	}
	if err := p.Settings.Enforce(ctx); err != nil {
		return err
	}
	p.settled = true
	return nil
}

// settings writes down which sysctls are to be set.
func (r *rehearsal) settings(s *vs.Settings, want lb.Snapshot) {
	if s == nil || want.Len() == 0 {
		return
	}
	for _, e := range s.Pending() {
		object := "sysctl " + e.Key
		r.changes = append(r.changes, proxier.Change{Op: proxier.Remove, Object: object, Detail: e.Found},
			proxier.Change{Op: proxier.Add, Object: object, Detail: e.Want})
	}
}
