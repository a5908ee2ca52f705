package main

import (
	"log/slog"

	"vipd/config"
	"vipd/desired"
	"vipd/discovery"
	"vipd/discovery/static"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/vip"
)

// This file is the one list of modes and sources. A new one is a folder, a config
// struct and a line here.

// modes lists what each mode can do by nature. What this host can do of it is found
// out by newHost.
func modes() map[lb.Mode]config.Capability {
	protocols := []lb.Protocol{lb.TCP, lb.UDP, lb.SCTP}
	return map[lb.Mode]config.Capability{
		lb.IPTables: {
			Schedulers: []lb.Scheduler{lb.WRR, lb.RR}, Protocols: protocols,
			Forwards: []lb.Forward{lb.ForwardNAT}, Affinity: true, Clients: true,
		},
		lb.IPVS: {
			Schedulers: lb.Schedulers(), Flags: true, Protocols: protocols,
			Forwards: []lb.Forward{lb.ForwardNAT, lb.ForwardDR, lb.ForwardTunnel}, Affinity: true, Clients: true,
		},
	}
}

// abilities returns the same for the decision which mode serves what.
func abilities() map[lb.Mode]desired.Ability {
	all := map[lb.Mode]desired.Ability{}
	for mode, can := range modes() {
		all[mode] = desired.Ability{Schedulers: can.Schedulers, Forwards: can.Forwards}
	}
	return all
}

func toolOptions(cfg *config.Config, log *slog.Logger) netfilter.ToolOptions {
	return netfilter.ToolOptions{Backend: netfilter.Backend(cfg.Proxy.IPTablesBackend), Log: log.With("part", "iptables")}
}

func doorOptions(cfg *config.Config, log *slog.Logger) vip.Options {
	return vip.Options{
		Device: cfg.VIP.Device,
		Mark:   cfg.Proxy.Mark,
		ARP:    vip.ARP(cfg.VIP.ARP),
		Log:    log.With("part", "vip"),

		DropInvalid: cfg.Proxy.DropInvalid,
	}
}

// staticPolicy is what the hub believes of the configuration file: all but that
// there is nothing left.
func staticPolicy(cfg *config.Config) discovery.Policy {
	return discovery.Policy{Trusted: true, AllowEmpty: cfg.Discovery.Static.AllowEmpty, Hold: discovery.DefaultPolicy.Hold}
}

// staticSet is what the static source says for a configuration.
func staticSet(cfg *config.Config, revision string) discovery.Set {
	return static.Set(cfg.Services, revision)
}
