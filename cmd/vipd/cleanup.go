package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"vipd/config"
	vs "vipd/internal/ipvs"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/ipvs"
	"vipd/state"
	"vipd/vip"
)

func newCleanup(o *options) *cobra.Command {
	var said config.Places
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Take away everything vipd put in the kernel, and its state; vipd must not be running",
		Long: `Take away everything vipd put in the kernel: addresses, device, rules of both
backends of iptables, sets, virtual servers of IPVS; and the state it kept. Nothing that is not vipd's is touched. It needs no readable
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
	servers := ownServers(ctx, cfg.Daemon.StateDir, log) // what tells of them is removed below
	tools, err := netfilter.AllTools(ctx, toolOptions(cfg, log))
	err = errors.Join(err, vip.Cleanup(ctx, doorOptions(cfg, log), tools...))
	if left := cleanServers(ctx, servers, log); left != nil {
		return errors.Join(err, fmt.Errorf("%w; the state in %s stays, for it tells which they are", left, cfg.Daemon.StateDir))
	}
	return errors.Join(err, state.Remove(cfg.Daemon.StateDir))
}

// ownServers returns which virtual servers of IPVS are vipd's, as far as it is known:
// by the journal, and by the sets of open VIP:ports.
func ownServers(ctx context.Context, stateDir string, log *slog.Logger) *journal {
	entries, err := state.Load(stateDir)
	if err != nil {
		log.Warn("the state of the last run cannot be read; of virtual servers only those go whose VIP:port is open", "error", err)
	}
	past, _ := recall(entries, time.Now()) // what it cannot read it cannot use
	j := newJournal(nil, past.servers)
	witness, err := readWitness(ctx, j)
	if err == nil {
		var open map[lb.Key]bool
		open, err = witness(ctx)
		_ = j.Own(slices.Collect(maps.Keys(open))) // writes nothing
	}
	if err != nil {
		log.Warn("virtual servers that the journal does not know stay", "error", err)
	}
	return j
}

// cleanServers removes the virtual servers of IPVS that are vipd's. Their VIPs are down
// by now, so that nothing gets past them to this host.
func cleanServers(ctx context.Context, j *journal, log *slog.Logger) error {
	if len(j.owned) == 0 {
		return nil
	}
	line, err := vs.Open(ctx)
	if errors.Is(err, vs.ErrUnsupported) {
		return nil // so there is none
	}
	if err != nil {
		return fmt.Errorf("removing the virtual servers of vipd: %w", err)
	}
	err = ipvs.New(ipvs.Options{Kernel: line, Journal: j, Log: log}).Sync(ctx, lb.Snapshot{}, proxier.How{Fresh: true, Prune: true})
	return errors.Join(err, line.Close())
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
