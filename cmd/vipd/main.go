// Command vipd is an L4 load balancer daemon for Linux hosts: it owns virtual IPs
// and spreads their connections over backends.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vipd/config"
)

// version is set by the build (Makefile, -ldflags -X).
var version = "development" //nolint:gochecknoglobals // the linker needs a variable

// defaultConfig is read when no -c is given.
const defaultConfig = "/etc/vipd/vipd.toml"

// exitStatus is an error that says with which status to end, and nothing more.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	os.Exit(run(os.Args[1:]))
}

// run executes the command line and returns the exit status.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	report(os.Stderr, err)
	return 1
}

// report prints an error; of a broken configuration every line stands by itself,
// as file:line:column: message.
func report(w *os.File, err error) {
	var problems config.Errors
	if errors.As(err, &problems) {
		for _, p := range problems {
			_, _ = fmt.Fprintln(w, p)
		}
		return
	}
	_, _ = fmt.Fprintln(w, "vipd:", err)
}

// options are the flags that every subcommand has.
type options struct {
	config string
	socket string
}

func newRoot() *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:           "vipd",
		Short:         "L4 load balancer for Linux hosts: virtual IPs spread over backends",
		SilenceUsage:  true,
		SilenceErrors: true,
		// No Args: with one, cobra answers a misspelt subcommand with the help and exit 0.
	}
	root.PersistentFlags().StringVarP(&o.config, "config", "c", defaultConfig, "configuration `FILE`; conf.d/*.toml beside it is read too")
	root.PersistentFlags().StringVar(&o.socket, "socket", "", "admin socket `PATH` of the daemon (default: daemon.admin_socket of the configuration)")
	root.AddCommand(
		newRun(&o), newCheck(&o), newPlan(&o), newStatus(&o), newExplain(&o), newReload(&o), newCleanup(&o), newVersion(),
	)
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "vipd", version)
			return err
		},
	}
}
