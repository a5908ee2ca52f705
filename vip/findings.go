package vip

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"vipd/internal/linux"
)

// summary is what Findings needs to know of the last pass.
type summary struct {
	device  link
	used    [2]bool // whether a family has services
	uplinks []string
	told    []string // what the pass found: as it is told
}

func (d *Door) summarize() *summary {
	s := d.state
	sum := &summary{device: s.device, uplinks: s.uplinks, told: slices.Concat(d.anchorFindings(), d.marks)}
	for i, f := range s.families {
		sum.used[i] = f.wanted()
	}
	return sum
}

// Findings tells what on this host hinders, or may hinder, the services of the
// last pass: a sentence each, with what to do. It reads settings of the kernel
// and changes nothing; none of these is ever written by vipd, except the ARP
// settings where ARPIgnore asks for it.
func (d *Door) Findings(ctx context.Context) []string {
	sum := d.summary.Load()
	if ctx.Err() != nil || !sum.used[0] && !sum.used[1] {
		return nil
	}
	var found []string
	if sum.device.Kind == kindBridge {
		found = append(found, fmt.Sprintf("The kernel has no dummy devices, so the bridge %s without ports holds the VIPs; "+
			"a kernel with CONFIG_DUMMY is better tested.", d.device))
	}
	if sum.device.Index != 0 && !sum.device.ours() {
		found = append(found, fmt.Sprintf("The device %s was made by somebody else; vipd uses it and will not delete it. "+
			"Nothing to do if that is meant.", d.device))
	}
	if sum.used[0] {
		found = append(found, d.forwarding("net/ipv4/ip_forward", "IPv4")...)
		found = append(found, d.strictPaths(sum.uplinks)...)
		found = append(found, d.routedLocalnet()...)
		found = append(found, d.arpDrift()...)
	}
	if sum.used[1] {
		found = append(found, d.forwarding("net/ipv6/conf/all/forwarding", "IPv6")...)
	}
	found = append(found, d.crowded()...)
	sets, err := d.crowdedSets(ctx)
	if err != nil {
		d.log.Debug("it cannot be found out how full the sets are", "error", err)
	}
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		found = append(found, sets[name])
	}
	return append(found, sum.told...)
}

// is reports whether a setting has one of the values. What cannot be read is
// told at debug level: a finding must be sure.
func (d *Door) is(key string, values ...string) bool {
	have, err := d.kernel.sysctls.Get(key)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			d.log.Debug("a setting cannot be read", "error", err)
		}
		return false
	}
	return slices.Contains(values, have)
}

func (d *Door) forwarding(key, family string) []string {
	if !d.is(key, "0") {
		return nil
	}
	return []string{fmt.Sprintf("%s is 0: %s packets are not passed on, so backends on other hosts cannot be reached; set it to 1.",
		linux.Dotted(key), family)}
}

// strictPaths tells of strict reverse path filtering (RFC 3704), which drops
// packets whose answer would leave by another device. With one uplink there is
// no other.
func (d *Door) strictPaths(uplinks []string) []string {
	if len(uplinks) < 2 {
		return nil
	}
	all, err := d.kernel.sysctls.Get("net/ipv4/conf/all/rp_filter")
	if err != nil {
		all = "0"
	}
	var strict []string
	for _, dev := range uplinks {
		key := "net/ipv4/conf/" + dev + "/rp_filter"
		if all == "1" && d.is(key, "0", "1") || all == "0" && d.is(key, "1") {
			strict = append(strict, dev)
		}
	}
	if len(strict) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("net.ipv4.conf.*.rp_filter is strict (1) on %s: packets of clients and backends whose answer "+
		"would leave by another device are dropped; set it to 2 there if routes are asymmetric.", strings.Join(strict, ", "))}
}

// routedLocalnet tells of route_localnet, which vipd neither needs nor sets.
func (d *Door) routedLocalnet() []string {
	devices, err := d.kernel.sysctls.Devices("ipv4")
	if err != nil {
		d.log.Debug("the settings of devices cannot be read", "error", err)
	}
	var open []string
	for _, dev := range append([]string{"all"}, devices...) {
		if d.is("net/ipv4/conf/"+dev+"/route_localnet", "1") {
			open = append(open, dev)
		}
	}
	if len(open) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("net.ipv4.conf.*.route_localnet is 1 on %s: neighbours can reach 127.0.0.0/8 of this host; "+
		"vipd does not need it, set it to 0 unless something else does.", strings.Join(open, ", "))}
}

// arpDrift tells of ARP settings that somebody changed since they were set.
func (d *Door) arpDrift() []string {
	if d.arp != ARPIgnore {
		return nil
	}
	var found []string
	for _, s := range arpSettings {
		have, err := d.kernel.sysctls.Get(s.key)
		if err == nil && !slices.Contains(s.good, have) {
			found = append(found, fmt.Sprintf("%s is %s although [vip] arp is %q: this host may answer ARP for its VIPs; "+
				"the next resync sets it to %s, look for what changed it.", linux.Dotted(s.key), have, ARPIgnore, s.want))
		}
	}
	return found
}
