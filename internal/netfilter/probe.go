package netfilter

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"vipd/internal/linux"
)

// feature is a match or a target that rules of vipd rest on.
type feature struct {
	name    string
	modules string // of the kernel, which may also be built in
	table   string
	rule    string        // SET and BACKEND stand for what differs by family
	without func(t *Tool) // what is done without it; nil: nothing can be
}

// features are what the rules of package vip and of iptables mode have in them.
var features = []feature{
	{name: "table filter", modules: "nft_compat, or iptable_filter and ip6table_filter", table: "filter", rule: "-j RETURN"},
	{name: "table nat", modules: "nft_chain_nat, or iptable_nat and ip6table_nat", table: "nat", rule: "-j RETURN"},
	{name: "table mangle", modules: "nft_compat, or iptable_mangle and ip6table_mangle", table: "mangle", rule: "-j RETURN"},
	{name: "match comment", modules: "xt_comment", table: "filter", rule: "-m comment --comment vipd -j RETURN"},
	{name: "match conntrack", modules: "xt_conntrack", table: "filter", rule: "-m conntrack --ctstate INVALID -j DROP"},
	{name: "match mark", modules: "xt_mark", table: "nat", rule: "-m mark --mark 0x1/0x1 -j RETURN"},
	{name: "target MARK", modules: "xt_mark", table: "nat", rule: "-j MARK --set-xmark 0x1/0x1"},
	{name: "match connmark", modules: "xt_connmark", table: "filter", rule: "-m connmark --mark 0x1/0x1 -j ACCEPT"},
	{name: "target CONNMARK", modules: "xt_connmark", table: "nat", rule: "-j CONNMARK --set-xmark 0x1/0x1"},
	{name: "match set", modules: "xt_set", table: "mangle", rule: "-m set --match-set SET dst -j DROP"},
	{name: "target SET", modules: "xt_set", table: "mangle", rule: "-j SET --add-set SET src --exist"},
	{name: "match statistic", modules: "xt_statistic", table: "nat", rule: "-m statistic --mode random --probability 0.5 -j RETURN"},
	{name: "target DNAT", modules: "xt_nat", table: "nat", rule: "-p tcp -j DNAT --to-destination BACKEND"},
	{name: "target MASQUERADE", modules: "xt_MASQUERADE", table: "nat", rule: "-j MASQUERADE"},
	{name: "option --random-fully of MASQUERADE", modules: "nf_nat", table: "nat", rule: "-j MASQUERADE --random-fully",
		without: func(t *Tool) { t.plainMasquerade.Store(true) }},
	{name: "target REJECT", modules: "ipt_REJECT, ip6t_REJECT", table: "filter", rule: "-p tcp -j REJECT --reject-with tcp-reset"},
}

// setTypes are the types of the sets of ours, with their modules. The first one
// stands for SET in features.
var setTypes = []struct {
	kind    SetType
	modules string
}{
	{HashIP, "ip_set_hash_ip"}, {HashIPPort, "ip_set_hash_ipport"},
	{HashIPPortNet, "ip_set_hash_ipportnet"}, {HashIPPortIP, "ip_set_hash_ipportip"},
}

func probeSet(i int, f Family) Set {
	return Set{Name: SetName(fmt.Sprintf("probe%d-", i), f), Type: setTypes[i].kind, Family: f}
}

// MissingError says that the kernel, or iptables, lacks what vipd cannot do without.
type MissingError struct {
	Family  Family
	Feature string // "match statistic"
	Modules string // of the kernel: "xt_statistic"
	Says    error  // what the tool says
}

// Error names what is missing, and what to do.
func (e *MissingError) Error() string {
	return fmt.Sprintf("%s rules lack the %s, without which vipd cannot serve: load the kernel module %s (modprobe), "+
		"or install a kernel and an iptables that have it, and start vipd again (%v)", e.Family, e.Feature, e.Modules, e.Says)
}

// Unwrap returns what the tool says.
func (e *MissingError) Unwrap() error { return e.Says }

// Probe has the kernel take one rule of each kind that vipd writes, in a network
// namespace that is made for that and goes with it: nothing of the host changes. A
// family that lacks something has no tool any more: its services are told why. The
// error is a *MissingError if no family is left. It is no error that nothing can be
// found out, because no namespace may be made, say; then the first pass will show.
// It comes before the first call of Tool.
func (t *Tools) Probe(ctx context.Context) error {
	err := linux.InScratch(func() error {
		for i, tool := range t.found {
			if tool == nil {
				continue
			}
			err := tool.probe(ctx)
			var missing *MissingError
			if errors.As(err, &missing) {
				t.options.Log.Error("services of a family cannot be served", "family", tool.family, "error", err)
				t.found[i], t.missing[i] = nil, err
			} else if err != nil {
				return err
			}
		}
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		t.options.Log.Warn("it cannot be found out in advance what the kernel lacks for our rules; the first pass will show", "error", err)
	case t.found[0] == nil && t.found[1] == nil:
		return errors.Join(t.missing[:]...)
	}
	return nil
}

// probe tries all features at once, and if that fails each alone.
func (t *Tool) probe(ctx context.Context) error {
	for i, s := range setTypes {
		err := KernelSets{}.Create(ctx, probeSet(i, t.family))
		if errors.Is(err, ErrNoIPSet) {
			return &MissingError{t.family, "ipset type " + string(s.kind), "ip_set, " + s.modules, err}
		}
		if err != nil {
			return err
		}
	}
	err := t.try(ctx, features...)
	if !lacks(err) {
		return err
	}
	for _, f := range features {
		err := t.try(ctx, f)
		switch {
		case !lacks(err):
			if err != nil {
				return err
			}
		case f.without != nil:
			t.options.Log.Warn("the rules do without something", "family", t.family, "without", f.name, "error", err)
			f.without(t)
		default:
			return &MissingError{t.family, f.name, f.modules, err}
		}
	}
	return nil
}

// lacks reports whether a tool failed for what the script says, or for its table.
func lacks(err error) bool {
	var exit *exitError
	return errors.As(err, &exit) && !errors.Is(err, ErrPermission) && (exit.refused() || exit.noTable())
}

// try commits rules to a chain that nothing leads to.
func (t *Tool) try(ctx context.Context, all ...feature) error {
	backend := "192.0.2.1:80"
	if t.family == IPv6 {
		backend = "[2001:db8::1]:80"
	}
	fill := strings.NewReplacer("SET src", probeSet(0, t.family).Name+" src", "SET dst", probeSet(0, t.family).Name+" dst", "BACKEND", backend)
	var script strings.Builder
	for _, table := range []string{"filter", "nat", "mangle"} {
		var rules strings.Builder
		for _, f := range all {
			if f.table == table {
				rules.WriteString("-A " + ChainPrefix + "PROBE " + fill.Replace(f.rule) + "\n")
			}
		}
		if rules.Len() > 0 {
			fmt.Fprintf(&script, "*%s\n:%sPROBE - [0:0]\n%sCOMMIT\n", table, ChainPrefix, rules.String())
		}
	}
	args := []string{"--noflush"}
	if t.backend == Legacy { // a start does not wait long for the lock
		args = append(args, "-w", strconv.Itoa(int(lockStep/time.Second)))
	}
	_, err := t.runOnce(ctx, t.restore, args, []byte(script.String()), nil)
	return err
}
