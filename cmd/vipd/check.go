package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vipd/config"
	vs "vipd/internal/ipvs"
	"vipd/lb"
)

func newCheck(o *options) *cobra.Command {
	var show bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and print every error; needs no root (0: good, 1: not)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(cmd.Context(), o.config, modes())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if show {
				_, err = fmt.Fprint(out, cfg.TOML())
				return err
			}
			for _, w := range cfg.Warnings {
				_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
			}
			mode, err := modeHere(cmd.Context(), cfg)
			if err != nil {
				return fmt.Errorf("%s is good, but vipd would not start on this host: %w", o.config, err)
			}
			_, err = fmt.Fprintf(out, "%s: good; %d services on %d VIPs, mode %s\n", o.config, len(cfg.Services), countVIPs(cfg), mode)
			return err
		},
	}
	cmd.Flags().BoolVar(&show, "show", false, "print the configuration in its canonical spelling, defaults filled in")
	return cmd
}

// modeHere says which mode would be in force on this host, and why. Without the
// permission to find out it tells what the mode depends on.
func modeHere(ctx context.Context, cfg *config.Config) (string, error) {
	if asked(cfg) != lb.IPVS || !hasNetAdmin() {
		return byNature(cfg), nil
	}
	support, unknown := vs.Probe(ctx)
	if unknown != nil {
		return fmt.Sprintf("%s (%v)", byNature(cfg), unknown), nil
	}
	c, err := choose(cfg, support, nil)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s (%s)", c.inForce, c.reason), nil
}

func countVIPs(cfg *config.Config) int {
	n := 0
	for i, s := range cfg.Services { // sorted by VIP
		if i == 0 || cfg.Services[i-1].Key.Addr != s.Key.Addr {
			n++
		}
	}
	return n
}
