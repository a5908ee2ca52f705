package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"vipd/config"
	vs "vipd/internal/ipvs"
	"vipd/internal/linux"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/iptables"
	"vipd/proxier/ipvs"
	"vipd/reconciler"
	"vipd/vip"
)

// host is all that changes the kernel: the door, a proxier for each mode that the
// kernel has, and what they share.
type host struct {
	choice   choice
	tools    *netfilter.Tools
	door     *vip.Door
	proxiers map[lb.Mode]proxier.Proxier
	evictor  *netfilter.Evictor
	ipvs     vs.Support
	line     *vs.Handle   // nil: no IPVS
	settings *vs.Settings // of IPVS; nil: no IPVS
	late     atomic.Bool  // the kernel has got IPVS since the start
}

// newHost makes the parts for this host. Nothing is changed yet, but that the module
// of IPVS is loaded if there is one.
func newHost(ctx context.Context, cfg *config.Config, j *journal, log *slog.Logger) (_ *host, err error) {
	h := &host{proxiers: map[lb.Mode]proxier.Proxier{}}
	if err := h.findModes(ctx, cfg, log); err != nil {
		return nil, err
	}
	if err := h.findTools(ctx, cfg, log); err != nil {
		return nil, err
	}
	h.evictor = netfilter.NewEvictor(cfg.Proxy.Mark, log.With("part", "conntrack"))
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	tables, err := iptables.New(iptables.Options{
		Tools: h.tools, Mark: cfg.Proxy.Mark, Evict: h.evictor.Of(netfilter.ByNAT), Log: log.With("mode", lb.IPTables),
	})
	if err != nil {
		return nil, err
	}
	h.proxiers[lb.IPTables] = tables
	if h.ipvs.Yes {
		if err := h.openIPVS(ctx, cfg, j, h.evictor.Of(netfilter.ByIPVS), log.With("mode", lb.IPVS)); err != nil {
			return nil, err
		}
	}
	options := doorOptions(cfg, log)
	options.Tools, options.Evict, options.Input = h.tools, h.evictor, h.ipvs.Yes
	if h.door, err = vip.New(options); err != nil {
		return nil, err
	}
	return h, nil
}

// findModes finds out which modes the kernel has, and which one is in force.
func (h *host) findModes(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	support, unknown := vs.Probe(ctx)
	if err := ctx.Err(); err != nil {
		return err
	}
	var err error
	if h.choice, err = choose(cfg, support, unknown); err != nil {
		return err
	}
	h.ipvs = support
	args := []any{"mode", h.choice.inForce, "reason", h.choice.reason}
	if h.choice.inForce != asked(cfg) && cfg.Proxy.Mode != config.Auto {
		log.Warn("another mode is in force than the one that is asked for", args...)
	} else {
		log.Info("mode in force", args...)
	}
	return nil
}

// probe finds out, before another configuration comes into force, whether the host is
// still what it was at the start. IPVS that came since is told of: to use it takes a
// restart. IPVS that went is an error of the plan, which reads it.
func (h *host) probe(ctx context.Context, log *slog.Logger) error {
	if !h.ipvs.Yes {
		found, err := vs.Probe(ctx)
		if late := err == nil && found.Yes; late != h.late.Swap(late) && late {
			log.Info(ipvsCame)
		}
	}
	return probe(ctx, h.tools, log)
}

const ipvsCame = "The kernel has IPVS by now, which it lacked when vipd started; restart vipd to use it (connections live on)."

// findTools finds the tools of iptables, and tries them out.
func (h *host) findTools(ctx context.Context, cfg *config.Config, log *slog.Logger) (err error) {
	if h.tools, err = netfilter.FindTools(ctx, toolOptions(cfg, log)); err != nil {
		return err
	}
	if err := probe(ctx, h.tools, log); err != nil {
		return err
	}
	if err := h.tools.Probe(ctx); err != nil {
		return err
	}
	log.Info("iptables found", "backend", h.tools.Backend(), "version", h.tools.Version())
	return nil
}

// openIPVS makes the parts of mode ipvs.
func (h *host) openIPVS(ctx context.Context, cfg *config.Config, j *journal, evict ipvs.Evictor, log *slog.Logger) (err error) {
	witness, err := readWitness(ctx, j)
	if err != nil {
		return err
	}
	if h.line, err = vs.Open(ctx); err != nil {
		return err
	}
	h.settings = vs.NewSettings(vs.SettingsOptions{
		Sysctls: linux.ProcSys(), Release: vs.Release(), Manage: cfg.Proxy.ManageSysctls, Estimation: cfg.IPVS.Estimation, Log: log,
	})
	h.proxiers[lb.IPVS] = ipvs.New(ipvs.Options{
		Kernel: h.line, Journal: j, Witness: witness, Evict: evict, Settings: h.settings, NoGUE: !h.ipvs.GUE, Log: log,
	})
	log.Info("IPVS found", "version", h.ipvs.Version)
	return nil
}

// readWitness returns what the sets of open VIP:ports tell of virtual servers of ours
// that the journal does not know. It reads them now: a pass shuts what is not wanted
// before it looks at virtual servers.
func readWitness(ctx context.Context, j *journal) (func(context.Context) (map[lb.Key]bool, error), error) {
	open := map[lb.Key]bool{}
	for _, f := range netfilter.Families {
		set := netfilter.Set{Name: netfilter.SetName(netfilter.SetOpen, f), Type: netfilter.HashIPPort, Family: f}
		err := netfilter.KernelSets{}.Entries(ctx, set, func(e netfilter.Entry) {
			k := lb.Key{Addr: e.Addr, Port: e.Port, Protocol: e.Protocol}
			if _, known := j.owned[k]; !known {
				open[k] = true
			}
		})
		if err != nil && !errors.Is(err, netfilter.ErrNoSet) && !errors.Is(err, netfilter.ErrNoIPSet) {
			return nil, fmt.Errorf("which virtual servers are vipd's: %w", err)
		}
	}
	return func(context.Context) (map[lb.Key]bool, error) { return open, nil }, nil
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

// describe tells in a status which modes there are, and by what they work.
func (h *host) describe(ctx context.Context, s *reconciler.Status) {
	s.ModeReason, s.IPTables, s.IPVS = h.choice.reason, h.iptablesStatus(), h.ipvsStatus()
	s.Ready = s.Ready && s.IPTables.Waiting == "" // a pass is held up
	s.Findings = append(s.Findings, h.door.Findings(ctx)...)
	s.Findings = append(s.Findings, h.tools.Findings(ctx)...)
	if h.settings != nil {
		s.Findings = append(s.Findings, h.settings.Findings()...)
	}
	if h.late.Load() {
		s.Findings = append(s.Findings, ipvsCame)
	}
}

// iptablesStatus tells which tools are in use.
func (h *host) iptablesStatus() reconciler.IPTablesStatus {
	s := reconciler.IPTablesStatus{Backend: string(h.tools.Backend()), Version: h.tools.Version()}
	count, wait := h.tools.LockWaits()
	s.LockWaits = count
	if wait != nil {
		s.Waiting = wait.Holder
	}
	return s
}

// ipvsStatus tells whether the kernel has IPVS, and how it is set.
func (h *host) ipvsStatus() reconciler.IPVSStatus {
	s := reconciler.IPVSStatus{Available: h.ipvs.Yes, Reason: h.ipvs.Reason, Version: h.ipvs.Version, Sysctls: []reconciler.SysctlStatus{}}
	if lack, is := h.choice.lacks[lb.IPVS]; is {
		s.Reason = lack.Reason
	}
	if h.settings != nil {
		for _, e := range h.settings.All() {
			s.Sysctls = append(s.Sysctls, reconciler.SysctlStatus(e))
		}
	}
	return s
}

// Close frees the parts, and last what they share. The kernel goes on serving.
func (h *host) Close() error {
	var errs []error
	if h.door != nil {
		errs = append(errs, h.door.Close())
	}
	for _, p := range h.proxiers {
		errs = append(errs, p.Close())
	}
	if h.line != nil {
		errs = append(errs, h.line.Close())
	}
	return errors.Join(append(errs, h.evictor.Close())...)
}
