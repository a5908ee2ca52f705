package main

import (
	"fmt"

	"vipd/config"
	"vipd/desired"
	vs "vipd/internal/ipvs"
	"vipd/lb"
)

// asked returns the mode that services ask for which name none. Mode auto asks for the
// best one; what is there in its place if the host lacks it is for choose to say.
func asked(cfg *config.Config) lb.Mode {
	if cfg.Proxy.Mode == config.Auto {
		return lb.IPVS
	}
	return cfg.Proxy.Mode
}

// choice says which modes this host has, and why the one in force is in force.
type choice struct {
	inForce lb.Mode // serves the services that name none
	reason  string
	lacks   map[lb.Mode]desired.Lack // modes that the host cannot have
}

// choose makes the choice from what Probe found out about IPVS, or why it could not.
// The error is that this configuration is not to be served on this host.
func choose(cfg *config.Config, ipvs vs.Support, unknown error) (choice, error) {
	c := choice{inForce: asked(cfg), reason: "[proxy] mode says so"}
	if cfg.Proxy.Mode == config.Auto {
		c.reason = "mode auto takes the best that the kernel has: IPVS " + ipvs.Version
	}
	lack := desired.Lack{Reason: ipvs.Reason}
	switch {
	case unknown != nil:
		lack.Reason = unknown.Error()
	case ipvs.Yes:
		return c, nil
	}
	if cfg.Proxy.Fallback != config.None {
		lack.Fallback = cfg.Proxy.Fallback
	}
	c.lacks = map[lb.Mode]desired.Lack{lb.IPVS: lack}
	switch {
	case c.inForce != lb.IPVS:
	case lack.Fallback == "":
		return c, fmt.Errorf("mode ipvs is not available on this host: %s; or set [proxy] fallback = %q, or another mode", lack.Reason, lb.IPTables)
	default:
		c.inForce = lack.Fallback
		c.reason = fmt.Sprintf("it stands in for mode ipvs, which is not available on this host: %s", lack.Reason)
		if cfg.Proxy.Mode == config.Auto {
			c.reason = fmt.Sprintf("mode auto takes the best that the kernel has: %s", lack.Reason)
		}
	}
	return c, nil
}

// byNature says which mode would be in force, for those who cannot find out.
func byNature(cfg *config.Config) string {
	switch {
	case asked(cfg) != lb.IPVS:
		return string(asked(cfg))
	case cfg.Proxy.Fallback == config.None:
		return "ipvs; vipd does not start where the kernel lacks it"
	}
	return fmt.Sprintf("ipvs if the kernel has it, else %s", cfg.Proxy.Fallback)
}
