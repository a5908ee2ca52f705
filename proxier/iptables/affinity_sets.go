package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// Sets makes and removes the sets of clients. netfilter.KernelSets is one.
type Sets interface {
	List(ctx context.Context) ([]netfilter.SetInfo, error)
	CreateExpiring(ctx context.Context, set netfilter.Set, buckets uint32) error
	Destroy(ctx context.Context, name string) error
}

// listSets finds out which sets of clients stand. One of that name that is something
// else is none: who needs it is told so when it is to be made.
func (p *pass) listSets(ctx context.Context) error {
	p.memory.sets = nil
	list, err := p.sets.List(ctx)
	if err != nil && !errors.Is(err, netfilter.ErrNoIPSet) {
		return err
	}
	p.memory.sets = map[string]int{}
	for _, set := range list {
		switch {
		case !isClientSet(set.Name, p.family) || set.Set != p.clientSet(set.Name):
		case set.Odd == "":
			p.memory.sets[set.Name] = set.Buckets
		default: // somebody made it otherwise: it is made anew before it is used
			p.memory.sets[set.Name] = 0
		}
	}
	return nil
}

func (p *pass) clientSet(name string) netfilter.Set {
	return netfilter.Set{Name: name, Type: netfilter.HashIPPortIP, Family: p.family}
}

// makeSets makes the sets that a service needs and that do not stand as they should.
func (p *pass) makeSets(ctx context.Context, s *lb.Service) error {
	if s == nil || s.Affinity == 0 || len(s.Usable()) == 0 {
		return nil
	}
	m := p.memory
	for _, set := range newSticky(s, assign(s, m.slots[s.Key], nil)).sets() {
		if m.sets[set.name] >= int(set.buckets) {
			continue
		}
		if !p.dry {
			err := p.sets.CreateExpiring(ctx, p.clientSet(set.name), set.buckets)
			if err != nil {
				return fmt.Errorf("affinity: %w", err)
			}
		}
		m.sets[set.name] = int(set.buckets)
		p.setChanges = append(p.setChanges, setChange(proxier.Add, set.name))
	}
	return nil
}

// dropSets removes the sets once no service has affinity. One that a rule still
// names stays until the next pass.
func (p *pass) dropSets(ctx context.Context) error {
	m := p.memory
	if !p.how.Prune || len(m.slots) > 0 || len(m.strays) > 0 {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(m.sets)) {
		if !p.dry {
			err := p.sets.Destroy(ctx, name)
			if errors.Is(err, netfilter.ErrSetInUse) {
				continue
			}
			if err != nil {
				return err
			}
		}
		delete(m.sets, name)
		p.setChanges = append(p.setChanges, setChange(proxier.Remove, name))
	}
	return nil
}

func setChange(op proxier.Op, name string) proxier.Change {
	return proxier.Change{Op: op, Object: "set " + name, Detail: string(netfilter.HashIPPortIP) + " with a timeout"}
}

// forgetSlots drops those of services that nobody wants and that do not stand:
// none but refused versions had them.
func (p *pass) forgetSlots() {
	m := p.memory
	maps.DeleteFunc(m.slots, func(k lb.Key, _ slots) bool {
		return p.want.Get(k) == nil && m.applied.Get(k) == nil
	})
}
