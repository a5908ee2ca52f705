package vip

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"vipd/internal/linux"
	"vipd/internal/netfilter"
	"vipd/proxier"
)

// sysctls is the settings of the kernel, by their path below /proc/sys, as in
// "net/ipv4/ip_forward".
type sysctls interface {
	// Get returns a value; fs.ErrNotExist if this kernel has no such setting.
	Get(key string) (string, error)
	// Set writes a value.
	Set(key, value string) error
	// Devices returns the devices with settings in a family ("ipv4", "ipv6"),
	// without "all" and "default".
	Devices(family string) ([]string, error)
}

// arpSettings is what ARP "ignore" asks of the kernel: a value among good, or
// else want is written (kernel Documentation/networking/ip-sysctl.rst). The
// effective value of a device is the greater one of "all" and its own.
var arpSettings = []struct {
	key  string
	want string
	good []string // 4 to 7 of arp_ignore are reserved and mean 0
}{
	{"net/ipv4/conf/all/arp_ignore", "1", []string{"1", "2", "3", "8"}},
	{"net/ipv4/conf/all/arp_announce", "2", []string{"2"}},
}

// arp brings the settings of ARP "ignore" into force.
func (p *pass) arp(ctx context.Context, f *family) error {
	if p.d.arp != ARPIgnore || f.Family != netfilter.IPv4 {
		return nil
	}
	for _, s := range arpSettings {
		have, err := p.d.kernel.sysctls.Get(s.key)
		if err != nil {
			return err
		}
		if slices.Contains(s.good, have) {
			continue
		}
		object := "sysctl " + linux.Dotted(s.key)
		err = p.do(ctx, func() []proxier.Change {
			return []proxier.Change{{Op: proxier.Remove, Object: object, Detail: have}, {Op: proxier.Add, Object: object, Detail: s.want}}
		}, func() error { return p.d.kernel.sysctls.Set(s.key, s.want) })
		if err != nil {
			return err
		}
		if p.plan == nil {
			p.d.log.Info("sysctl changed", "key", s.key, "from", have, "to", s.want)
		}
	}
	return nil
}

// checkIPv6 says why the device takes no IPv6 addresses, if it does not. A device
// that is yet to be made has the settings of "default".
func (p *pass) checkIPv6(f *family) error {
	if f.Family != netfilter.IPv6 {
		return nil
	}
	key := "net/ipv6/conf/" + p.d.device + "/disable_ipv6"
	disabled, err := p.d.kernel.sysctls.Get(key)
	if errors.Is(err, fs.ErrNotExist) {
		key = "net/ipv6/conf/default/disable_ipv6"
		disabled, err = p.d.kernel.sysctls.Get(key)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("the kernel runs without IPv6; boot it with IPv6, or take the IPv6 VIPs out")
	case err != nil:
		return err
	case disabled != "0":
		return fmt.Errorf("IPv6 is disabled on the device %s (%s is %s); set it to 0, or take the IPv6 VIPs out", p.d.device, linux.Dotted(key), disabled)
	}
	return nil
}
