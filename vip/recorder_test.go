package vip

import (
	"context"
	"net/netip"
	"strings"

	"vipd/internal/netfilter"
)

type recordedLinks struct {
	links
	w *world
}

func (r recordedLinks) Create(ctx context.Context, name, kind string) error {
	r.w.note("create %s", name)
	return r.links.Create(ctx, name, kind)
}

func (r recordedLinks) Enable(ctx context.Context, index int) error {
	r.w.note("enable")
	return r.links.Enable(ctx, index)
}

func (r recordedLinks) Remove(ctx context.Context, index int) error {
	r.w.note("remove")
	return r.links.Remove(ctx, index)
}

func (r recordedLinks) Add(ctx context.Context, index int, addrs []netip.Addr) (map[netip.Addr]error, error) {
	r.w.note("+ address %v", addrs)
	return r.links.Add(ctx, index, addrs)
}

func (r recordedLinks) Delete(ctx context.Context, index int, addrs []netip.Addr) error {
	r.w.note("- address %v", addrs)
	return r.links.Delete(ctx, index, addrs)
}

type recordedSets struct {
	netfilter.Sets
	w *world
}

func (r recordedSets) Create(ctx context.Context, set netfilter.Set) error {
	r.w.note("create %s", set.Name)
	return r.Sets.Create(ctx, set)
}

func (r recordedSets) Replace(ctx context.Context, set netfilter.Set, entries []netfilter.Entry) error {
	r.w.note("replace %s", set.Name)
	return r.Sets.Replace(ctx, set, entries)
}

func (r recordedSets) Add(ctx context.Context, set netfilter.Set, entries []netfilter.Entry) error {
	r.w.note("+ %s %v", set.Name, entries)
	return r.Sets.Add(ctx, set, entries)
}

func (r recordedSets) Delete(ctx context.Context, set netfilter.Set, entries []netfilter.Entry) error {
	r.w.note("- %s %v", set.Name, entries)
	return r.Sets.Delete(ctx, set, entries)
}

func (r recordedSets) Destroy(ctx context.Context, name string) error {
	r.w.note("destroy %s", name)
	return r.Sets.Destroy(ctx, name)
}

type recordedTables struct {
	tables
	w *world
	f netfilter.Family
}

func (r recordedTables) Restore(ctx context.Context, script []byte) error {
	table, _, _ := strings.Cut(string(script[1:]), "\n")
	r.w.note("commit %s %s", r.f, table)
	return r.tables.Restore(ctx, script)
}

func (r recordedTables) Apply(ctx context.Context, repair netfilter.Repair) error {
	table, _, _ := strings.Cut(strings.TrimPrefix(string(repair.Script), "*"), "\n")
	r.w.note("commit %s %s", r.f, table)
	return r.tables.Apply(ctx, repair)
}

type recordedAnchors struct {
	anchors
	w *world
}

func (r recordedAnchors) Put(ctx context.Context, f netfilter.Family) error {
	r.w.note("anchor %s", f)
	return r.anchors.Put(ctx, f)
}

func (r recordedAnchors) Remove(ctx context.Context, f netfilter.Family) error {
	r.w.note("remove anchor %s", f)
	return r.anchors.Remove(ctx, f)
}

type recordedSysctls struct {
	sysctls
	w *world
}

func (r recordedSysctls) Set(key, value string) error {
	r.w.note("sysctl %s=%s", key, value)
	return r.sysctls.Set(key, value)
}
