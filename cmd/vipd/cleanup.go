package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"vipd/config"
	"vipd/internal/netfilter"
	"vipd/state"
	"vipd/vip"
)

func newCleanup(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "cleanup",
		Short: "Take away everything vipd put in the kernel, and its state; vipd must not be running",
		Long: `Take away everything vipd put in the kernel: addresses, device, rules of both
backends of iptables, sets; and the state it kept. Nothing that is not vipd's is touched. It needs no readable
configuration, may be repeated, and goes on after an error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			guard, err := single()
			if err != nil {
				return err
			}
			defer func() { _ = guard.Close() }()
			if err := cleanup(cmd.Context(), o); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "what is vipd's alone is gone")
			return err
		},
	}
}

// cleanup removes by name, whatever mode or version made it.
func cleanup(ctx context.Context, o *options) error {
	if os.Geteuid() != 0 && !hasNetAdmin() {
		return errors.New("no permission to change the kernel's rules and addresses; run it as root")
	}
	cfg, err := config.Load(ctx, o.config, modes())
	if err != nil {
		cfg = config.Default()
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	tools, err := netfilter.AllTools(ctx, toolOptions(cfg, log))
	return errors.Join(err, vip.Cleanup(ctx, doorOptions(cfg, log), tools...), state.Remove(cfg.Daemon.StateDir))
}
