package ipvs

import (
	"context"

	vs "vipd/internal/ipvs"
	"vipd/proxier"
)

// rehearsal is a Kernel that only writes down what it is to do.
type rehearsal struct {
	Kernel
	changes []proxier.Change
}

// Do implements Kernel. What is changed in place shows as added.
func (r *rehearsal) Do(_ context.Context, commands []vs.Command) []error {
	for _, c := range commands {
		op := proxier.Add
		if c.Op == vs.DeleteServer || c.Op == vs.DeleteDestination {
			op = proxier.Remove
		}
		r.changes = append(r.changes, proxier.Change{Op: op, Object: "service " + c.Server.Key.String(), Detail: c.String()})
	}
	return nil
}
