package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"vipd/config"
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
			_, err = fmt.Fprintf(out, "%s: good; %d services on %d VIPs, mode %s\n", o.config, len(cfg.Services), countVIPs(cfg), inForce(cfg))
			return err
		},
	}
	cmd.Flags().BoolVar(&show, "show", false, "print the configuration in its canonical spelling, defaults filled in")
	return cmd
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
