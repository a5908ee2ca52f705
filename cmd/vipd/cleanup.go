package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"vipd/config"
	"vipd/internal/netfilter"
	"vipd/state"
	"vipd/vip"
)

func newCleanup(o *options) *cobra.Command {
	var said config.Places
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Take away everything vipd put in the kernel, and its state; vipd must not be running",
		Long: `Take away everything vipd put in the kernel: addresses, device, rules of both
backends of iptables, sets; and the state it kept. Nothing that is not vipd's is touched. It needs no readable
configuration, may be repeated, and goes on after an error.

Of the configuration it needs vip.device and daemon.state_dir, even if the rest is wrong. Where it cannot find them
out it says so and cleans the default ones, unless --device and --state-dir name others.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			guard, err := single()
			if err != nil {
				return err
			}
			defer func() { _ = guard.Close() }()
			if err := cleanup(cmd.Context(), o.config, said, cmd.ErrOrStderr()); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "what is vipd's alone is gone")
			return err
		},
	}
	cmd.Flags().StringVar(&said.Device, "device", "", "`NAME` of the device with the VIPs (default: vip.device of the configuration)")
	cmd.Flags().StringVar(&said.StateDir, "state-dir", "", "`DIR`ectory with the state (default: daemon.state_dir of the configuration)")
	return cmd
}

// cleanup removes by name, whatever mode or version made it.
func cleanup(ctx context.Context, file string, said config.Places, warnings io.Writer) error {
	if os.Geteuid() != 0 && !hasNetAdmin() {
		return errors.New("no permission to change the kernel's rules and addresses; run it as root")
	}
	places, err := toClean(ctx, file, said, warnings)
	if err != nil {
		return err
	}
	cfg := config.Default()
	cfg.VIP.Device, cfg.Daemon.StateDir = places.Device, places.StateDir
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	tools, err := netfilter.AllTools(ctx, toolOptions(cfg, log))
	return errors.Join(err, vip.Cleanup(ctx, doorOptions(cfg, log), tools...), state.Remove(cfg.Daemon.StateDir))
}

// toClean returns where to look for what does not bear vipd's name: at what was said
// on the command line, else what the file says, else the default, which is told.
func toClean(ctx context.Context, file string, said config.Places, warnings io.Writer) (config.Places, error) {
	if said.StateDir != "" {
		if _, err := os.Stat(said.StateDir); err != nil {
			return said, fmt.Errorf("--state-dir: %w; nothing was cleaned", err)
		}
	}
	places, guessed := config.FindPlaces(ctx, file)
	if guessed != nil && (said.Device == "" || said.StateDir == "") {
		defer func() {
			_, _ = fmt.Fprintf(warnings, "vipd: %v\nvipd: so this cleans the device %s and the state in %s; if vipd had others, repeat it with --device and --state-dir\n",
				guessed, places.Device, places.StateDir)
		}()
	}
	if said.Device != "" {
		places.Device = said.Device
	}
	if said.StateDir != "" {
		places.StateDir = said.StateDir
	}
	return places, nil
}
