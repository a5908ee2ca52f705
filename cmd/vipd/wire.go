package main

import (
	"context"
	"errors"
	"log/slog"

	"vipd/config"
	"vipd/desired"
	"vipd/discovery"
	"vipd/discovery/static"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/iptables"
	"vipd/reconciler"
	"vipd/vip"
)

// This file is the one list of modes and sources. A new one is a folder, a config
// struct and a line here.

// modes lists what each mode can do by nature, best first. What this host can do
// is found out by the proxier itself.
func modes() map[lb.Mode]config.Capability {
	return map[lb.Mode]config.Capability{
		lb.IPTables: {Schedulers: []lb.Scheduler{lb.WRR, lb.RR}, Protocols: []lb.Protocol{lb.TCP, lb.UDP, lb.SCTP}, Forwards: []lb.Forward{lb.ForwardNAT}, Affinity: true, Clients: true},
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

// inForce returns the mode that serves the services that name none.
func inForce(cfg *config.Config) lb.Mode {
	if cfg.Proxy.Mode == config.Auto {
		return lb.IPTables
	}
	return cfg.Proxy.Mode
}

// host is all that changes the kernel: the door, a proxier for each mode, and
// what they share.
type host struct {
	tools    *netfilter.Tools
	door     *vip.Door
	proxiers map[lb.Mode]proxier.Proxier
	evictor  *netfilter.Evictor
}

// newHost makes the parts for this host. Nothing is changed yet.
func newHost(ctx context.Context, cfg *config.Config, log *slog.Logger) (*host, error) {
	tools, err := netfilter.FindTools(ctx, toolOptions(cfg, log))
	if err != nil {
		return nil, err
	}
	if err := probe(ctx, tools, log); err != nil {
		return nil, err
	}
	if err := tools.Probe(ctx); err != nil {
		return nil, err
	}
	evictor := netfilter.NewEvictor(cfg.Proxy.Mark, log.With("part", "conntrack"))
	tables, err := iptables.New(iptables.Options{Tools: tools, Mark: cfg.Proxy.Mark, Evict: evictor.Of(netfilter.ByNAT), Log: log.With("mode", lb.IPTables)})
	if err != nil {
		return nil, errors.Join(err, evictor.Close())
	}
	options := doorOptions(cfg, log)
	options.Tools, options.Evict = tools, evictor
	door, err := vip.New(options)
	if err != nil {
		return nil, errors.Join(err, tables.Close(), evictor.Close())
	}
	log.Info("iptables found", "backend", tools.Backend(), "version", tools.Version())
	return &host{tools, door, map[lb.Mode]proxier.Proxier{lb.IPTables: tables}, evictor}, nil
}

// probe finds out whether what stands on this host forbids to change it.
func probe(ctx context.Context, tools *netfilter.Tools, log *slog.Logger) error {
	var mixed *netfilter.MixedError
	_, err := tools.CheckOther(ctx)
	if errors.As(err, &mixed) || ctx.Err() != nil {
		return err
	}
	if err != nil {
		log.Info("it cannot be found out what stands in the other backend of iptables", "error", err)
	}
	return nil
}

// iptables tells which tools are in use.
func (h *host) iptables() reconciler.IPTablesStatus {
	s := reconciler.IPTablesStatus{Backend: string(h.tools.Backend()), Version: h.tools.Version()}
	count, wait := h.tools.LockWaits()
	s.LockWaits = count
	if wait != nil {
		s.Waiting = wait.Holder
	}
	return s
}

// Close frees the parts, and last what they share. The kernel goes on serving.
func (h *host) Close() error {
	errs := []error{h.door.Close()}
	for _, p := range h.proxiers {
		errs = append(errs, p.Close())
	}
	return errors.Join(append(errs, h.evictor.Close())...)
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
