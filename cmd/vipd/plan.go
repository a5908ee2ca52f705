package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"vipd/admin"
	"vipd/config"
	"vipd/discovery"
	"vipd/discovery/static"
	"vipd/reconciler"
	"vipd/state"
)

func newPlan(o *options) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Print what this configuration would change in the kernel (0: nothing, 2: changes, 1: error)",
		Long: `Print what this configuration would change in the kernel, like a diff.

A running vipd is asked, which makes the very pass with "plan" in place of "do".
Without one the answer comes from the file, the state of the last run and the
kernel. Nothing is changed in either case.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			p, alone, err := plan(cmd.Context(), o, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if alone {
				_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "vipd is not running; planned from the file, the state of the last run and the kernel")
			}
			if output == outputJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(p)
			} else {
				err = printPlan(cmd.OutOrStdout(), p)
			}
			if err == nil && len(p.Changes) > 0 {
				err = exitStatus(2)
			}
			return err
		},
	}
	addOutput(cmd, &output)
	return cmd
}

// plan asks the daemon, or plans alone if there is none.
func plan(ctx context.Context, o *options, warnings io.Writer) (p admin.Plan, alone bool, err error) {
	files, err := config.Read(ctx, o.config)
	if err != nil {
		return p, false, err
	}
	cfg, err := config.Parse(files, modes())
	if err != nil {
		return p, false, err
	}
	p, err = admin.NewClient(socketOf(o, cfg)).Plan(ctx, files)
	if !errors.Is(err, admin.ErrNotRunning) {
		return p, false, err
	}
	p, err = planAlone(ctx, cfg, func(what string, err error) { _, _ = fmt.Fprintf(warnings, "%s: %v\n", what, err) })
	return p, true, err
}

// planAlone believes of the last run what a start would believe.
func planAlone(ctx context.Context, cfg *config.Config, warn func(string, error)) (p admin.Plan, err error) {
	log := slog.New(slog.DiscardHandler)
	entries, err := state.Load(cfg.Daemon.StateDir)
	if errors.Is(err, fs.ErrPermission) {
		return p, fmt.Errorf("state of the last run: %w", err)
	} else if err != nil {
		warn("the state of the last run is not used, nor will a start use it", err)
	}
	past, err := recall(entries, time.Now())
	if err != nil {
		warn("some of the last run's state is not used", err)
	}
	host, err := newHost(ctx, cfg, newJournal(nil, past.servers), log)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	hub := discovery.NewHub(log, discovery.Registration{Name: static.Name, Seed: past.accepted[static.Name]})
	views := hub.View()
	views.Set(views.Get().With(static.Name, staticSet(cfg, ""), staticPolicy(cfg), time.Now()))
	planned, err := reconciler.PlanOnce(ctx, reconciler.Options{
		Settings: settings(cfg), Views: views, Memo: past.memo, Door: host.door, Proxiers: host.proxiers,
		Modes: abilities(), Lacks: host.choice.lacks, Log: log,
	})
	return admin.NewPlan(planned), err
}

// printPlan prints changes like a diff: an object, then its lines.
func printPlan(w io.Writer, p admin.Plan) error {
	for k, reason := range p.Rejected {
		if _, err := fmt.Fprintf(w, "# %s would be quarantined: %s\n", k, reason); err != nil {
			return err
		}
	}
	if len(p.Changes) == 0 {
		_, err := fmt.Fprintln(w, "nothing to do")
		return err
	}
	object := ""
	for _, c := range p.Changes {
		if c.Object != object {
			object = c.Object
			if _, err := fmt.Fprintf(w, "@@ %s @@\n", object); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(w, "%c %s\n", c.Op, c.Detail); err != nil {
			return err
		}
	}
	return nil
}
