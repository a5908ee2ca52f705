package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vipd/admin"
	"vipd/config"
)

func newRun(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Serve, in the foreground, until SIGTERM; SIGHUP reloads",
		Long: `Serve, in the foreground, until SIGTERM; SIGHUP reloads.

Stopping vipd leaves what it put in place: connections and new ones go on. A
start adopts it. To take it away, stop vipd and run "vipd cleanup".`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), o) },
	}
}

// serve runs the daemon until ctx ends.
func serve(ctx context.Context, o *options) error {
	hups := make(chan os.Signal, 1)
	signal.Notify(hups, unix.SIGHUP) // before anything else: a reload during the start must not end it
	defer signal.Stop(hups)

	thrift()
	cfg, err := config.Load(ctx, o.config, modes())
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 && !hasNetAdmin() {
		return errors.New("no permission to change the kernel's rules and addresses; run vipd as root or with CAP_NET_ADMIN and CAP_NET_RAW")
	}
	level := &slog.LevelVar{}
	level.Set(cfg.Daemon.LogLevel)
	log := newLogger(os.Stderr, cfg.Daemon.LogFormat, level)
	for _, w := range cfg.Warnings {
		log.Warn(w)
	}
	guard, err := single()
	if err != nil {
		return err
	}
	defer func() { _ = guard.Close() }()

	d, err := newDaemon(ctx, o.config, cfg, log, level)
	if err != nil {
		return err
	}
	server, err := admin.Listen(socketOf(o, cfg), d, log)
	if err != nil {
		return errors.Join(err, d.close())
	}
	log.Info("vipd starts", "version", version, "config", o.config, "mode", d.host.choice.inForce, "services", len(cfg.Services))

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() {
		err := server.Serve(ctx)
		stop() // without its socket a daemon cannot be asked: end, and be restarted
		served <- err
	}()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hups:
				d.reloads.Set(struct{}{})
			}
		}
	}()
	d.run(ctx)
	stop()
	err = <-served
	log.Info("vipd stops; what it put in place goes on serving")
	return errors.Join(err, d.close())
}

func newLogger(w *os.File, format string, level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if format == config.LogJSON {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// socketOf returns the path of the admin socket: the flag, or what the
// configuration says.
func socketOf(o *options, cfg *config.Config) string {
	if o.socket != "" {
		return o.socket
	}
	return cfg.Daemon.AdminSocket
}

// hasNetAdmin reports whether this process may change the network namespace.
func hasNetAdmin() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}

// client returns a client for the daemon of this configuration. A configuration
// that is broken still has a daemon: the one that is to refuse it.
func client(ctx context.Context, o *options) *admin.Client {
	if o.socket != "" {
		return admin.NewClient(o.socket)
	}
	places, _ := config.FindPlaces(ctx, o.config) // what is guessed is tried
	return admin.NewClient(places.AdminSocket)
}

func newReload(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Have the daemon read its configuration again; returns when it is served (0) or refused (1)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := client(cmd.Context(), o)
			if err := c.Reload(cmd.Context()); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "reloaded")
			if s, asked := c.Status(cmd.Context()); asked == nil {
				printTrouble(cmd.ErrOrStderr(), s)
			}
			return err
		},
	}
}
