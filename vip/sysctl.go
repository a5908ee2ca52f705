package vip

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

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

// procSysctls is the settings of the network namespace of the calling thread.
type procSysctls struct{ root string }

func (p procSysctls) Get(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join(p.root, key))
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (p procSysctls) Set(key, value string) error {
	if err := os.WriteFile(filepath.Join(p.root, key), []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl %s = %s: %w", key, value, err)
	}
	return nil
}

func (p procSysctls) Devices(family string) ([]string, error) {
	entries, err := fs.ReadDir(os.DirFS(p.root), "net/"+family+"/conf")
	if err != nil {
		return nil, fmt.Errorf("sysctls of devices: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "all" && e.Name() != "default" {
			names = append(names, e.Name())
		}
	}
	return names, nil
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
		object := "sysctl " + dotted(s.key)
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
		return fmt.Errorf("IPv6 is disabled on the device %s (%s is %s); set it to 0, or take the IPv6 VIPs out", p.d.device, dotted(key), disabled)
	}
	return nil
}
