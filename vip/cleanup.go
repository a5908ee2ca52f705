package vip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"vipd/internal/netfilter"
)

// Cleanup removes everything that bears vipd's name, whatever version made it:
// the VIPs first, then the rules of every mode, then the sets. Of o it needs only
// Device and Tools; others are the tools of further backends to clean. What is gone
// already is no error. After a failure it goes on; the error joins all of them.
func Cleanup(ctx context.Context, o Options, others ...*netfilter.Tools) error {
	d, err := New(o)
	if err != nil {
		return err
	}
	errs := []error{d.cleanDevices(ctx)}
	for _, f := range netfilter.Families {
		find := []func(netfilter.Family) (tables, error){d.kernel.tables}
		for _, t := range others {
			find = append(find, tablesOf(t))
		}
		for _, tables := range find {
			if err := d.cleanTables(ctx, f, tables); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", f, err))
			}
		}
		errs = append(errs, d.kernel.anchors.Remove(ctx, f))
	}
	return errors.Join(append(errs, d.cleanSets(ctx))...)
}

// cleanDevices removes the devices of ours and what stands on them. A device that
// somebody else made, or uses as well, loses only our addresses.
func (d *Door) cleanDevices(ctx context.Context) error {
	h, err := d.kernel.links.Read(ctx)
	if err != nil {
		return fmt.Errorf("reading the devices of this host: %w", err)
	}
	var errs []error
	for _, l := range h.links {
		if !l.ours() && (l.Name != d.device || l.fits() != nil) {
			continue
		}
		var vips []netip.Addr
		for a := range h.on(l.Index) {
			if a.shaped() {
				vips = append(vips, a.Prefix.Addr())
			}
		}
		if err := d.kernel.links.Delete(ctx, l.Index, vips); err != nil {
			errs = append(errs, fmt.Errorf("taking VIPs off %s: %w", l.Name, err))
			continue
		}
		foreign, shared := h.foreignOn(l.Index)
		switch {
		case !l.ours():
			d.log.Info("the device stays, for vipd did not make it", "device", l.Name)
		case shared:
			d.log.Warn("the device stays, for an address on it is not vipd's", "device", l.Name, "address", foreign.Prefix)
		default:
			if err := d.kernel.links.Remove(ctx, l.Index); err != nil {
				errs = append(errs, fmt.Errorf("removing the device %s: %w", l.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// cleanTables removes all chains of ours and the rules that lead to them.
func (d *Door) cleanTables(ctx context.Context, f netfilter.Family, find func(netfilter.Family) (tables, error)) error {
	t, err := find(f)
	if errors.Is(err, netfilter.ErrNotInstalled) {
		return nil // without the tool no rules of ours were made
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, table := range []string{"filter", "nat", "mangle", "raw"} {
		have, err := t.Read(ctx, table)
		if errors.Is(err, netfilter.ErrIncompatible) {
			errs = append(errs, t.RemoveOwn(ctx, table))
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := cleanTable(ctx, t, have); err != nil {
			errs = append(errs, fmt.Errorf("table %s: %w", table, err))
		}
	}
	return errors.Join(errs...)
}

// cleanTable removes our chains from a table that was read. If they cannot go because
// somebody's rules lead to them, those go as well.
func cleanTable(ctx context.Context, t tables, have netfilter.Table) error {
	for _, script := range cleanScripts(have, t.CommitChains()) {
		err := t.Restore(ctx, script)
		var refused *netfilter.RestoreError
		if errors.As(err, &refused) {
			if t.RemoveOwn(ctx, have.Name) == nil {
				return nil
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// cleanScripts returns the commits that empty a table of what is ours: the ways
// in, then all rules, then the chains, which by then refer to nothing. A commit names
// at most limit chains.
func cleanScripts(have netfilter.Table, limit int) (scripts [][]byte) {
	names := slices.Sorted(maps.Keys(have.Own))
	all := netfilter.Skeleton{Table: have.Name}
	for _, name := range names {
		all.Chains = append(all.Chains, netfilter.Chain{Name: name})
	}
	if jumps := all.Removal(netfilter.Table{Name: have.Name, Base: have.Base}); !jumps.Empty() {
		scripts = append(scripts, jumps.Script)
	}
	for _, op := range []string{"-F ", "-X "} {
		for chunk := range slices.Chunk(names, limit) {
			var b bytes.Buffer
			fmt.Fprintf(&b, "*%s\n", have.Name)
			for _, name := range chunk {
				b.WriteString(op + name + "\n")
			}
			b.WriteString("COMMIT\n")
			scripts = append(scripts, b.Bytes())
		}
	}
	return scripts
}

// cleanSets removes all sets of ours.
func (d *Door) cleanSets(ctx context.Context) error {
	sets, err := d.kernel.sets.List(ctx)
	if errors.Is(err, netfilter.ErrNoIPSet) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, set := range sets {
		if err := d.kernel.sets.Destroy(ctx, set.Name); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
