package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vipd/config"
	"vipd/desired"
	"vipd/lb"
	"vipd/reconciler"
)

const (
	outputText = "text"
	outputJSON = "json"
)

func addOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", outputText, "`FORMAT` of the output: text or json")
}

func checkOutput(output string) error {
	if output != outputText && output != outputJSON {
		return fmt.Errorf("output %q is unknown; use text or json", output)
	}
	return nil
}

// writeJSON prints a value for programs, and for those who read it all the same.
func writeJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

func newStatus(o *options) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status [SERVICE]",
		Short: "Print what the daemon serves, and what is wrong; SERVICE is a name or a VIP:PORT/PROTO",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			s, err := client(cmd.Context(), o).Status(cmd.Context())
			if err != nil {
				return err
			}
			if len(args) == 1 {
				if s.Services = only(s.Services, args[0]); len(s.Services) == 0 {
					return fmt.Errorf("no service %q; names and addresses stand in \"vipd status\"", args[0])
				}
			}
			if output == outputJSON {
				return writeJSON(cmd.OutOrStdout(), s)
			}
			var text bytes.Buffer
			if err := printStatus(&text, s, len(args) == 1); err != nil {
				return err
			}
			_, err = text.WriteTo(cmd.OutOrStdout()) // at once: a "grep -q" may close the pipe after its line
			return err
		},
	}
	addOutput(cmd, &output)
	return cmd
}

// only returns the services of that name or address.
func only(services []reconciler.ServiceStatus, want string) []reconciler.ServiceStatus {
	return slices.DeleteFunc(services, func(s reconciler.ServiceStatus) bool {
		return s.Name != want && s.Key.String() != want && s.Key.AddrPort().String() != want
	})
}

// printStatus prints a status for people; whole says to leave nothing out for
// brevity.
func printStatus(w io.Writer, s reconciler.Status, whole bool) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				_, _ = fmt.Fprint(t, "\t")
			}
			_, _ = fmt.Fprint(t, c)
		}
		_, _ = fmt.Fprintln(t)
	}
	line("SERVICE", "VIP", "MODE", "STATE", "AFFINITY", "CLIENTS", "BACKEND", "WEIGHT", "STATE")
	for _, svc := range s.Services {
		printService(line, svc)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if whole {
		printRanges(w, s)
	}
	printNotes(w, s)
	return nil
}

func printService(line func(...any), svc reconciler.ServiceStatus) {
	head := []any{svc.Name, svc.Key, svc.Mode, svc.State, affinity(svc.Affinity), clients(svc.Clients)}
	if len(svc.Backends) == 0 {
		line(append(head, "-", "", "")...)
	}
	for i, b := range svc.Backends {
		if i > 0 {
			head = []any{"", "", "", "", "", ""}
		}
		line(append(head, b.Addr, b.Weight, backendState(b))...)
	}
}

func affinity(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return config.FormatDuration(d)
}

// clients tells who may connect, in one word.
func clients(ranges []netip.Prefix) string {
	switch len(ranges) {
	case 0:
		return "all"
	case 1:
		return ranges[0].String()
	}
	return fmt.Sprintf("%d ranges", len(ranges))
}

// printRanges prints the client ranges of which the table has only the number.
func printRanges(w io.Writer, s reconciler.Status) {
	for _, svc := range s.Services {
		if len(svc.Clients) < 2 {
			continue
		}
		_, _ = fmt.Fprintf(w, "\nclients of %s %s:\n", svc.Name, svc.Key)
		for _, r := range svc.Clients {
			_, _ = fmt.Fprintf(w, "  %s\n", r)
		}
	}
}

func backendState(b desired.Backend) string {
	state := b.State
	if state == "draining" && b.Left > 0 {
		state += fmt.Sprintf(", %s left", b.Left.Round(time.Second))
	}
	if c := b.Connections; c != nil {
		state += fmt.Sprintf(", %d active, %d inactive", c.Active, c.Inactive)
	}
	return state
}

// printNotes prints what is not about one backend.
func printNotes(w io.Writer, s reconciler.Status) {
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	say("")
	for _, src := range s.Sources {
		state := string(src.Class)
		if !src.Spoken {
			state = "has not spoken yet"
		}
		say("source %s: %s, %d services", src.Name, state, src.Services)
		if src.Error != "" {
			say("  %s; its last good set stands", src.Error)
		}
		for _, r := range src.Rejected {
			say("  rejected: %s: %s", r.Entry, r.Reason)
		}
	}
	say("mode %s: %s", s.Mode, s.ModeReason)
	printSysctls(w, s.IPVS)
	say("iptables: %s, %s backend", s.IPTables.Version, s.IPTables.Backend)
	if s.IPTables.Waiting != "" {
		say("  waits for the xtables lock, held by %s", s.IPTables.Waiting)
	}
	p := s.Pass
	say("last pass: %s ago, took %s, %d so far, next within %s", since(p.Started), p.Duration.Round(time.Microsecond), p.Count, max(0, time.Until(p.Next)).Round(time.Second))
	if p.Pending {
		say("  a change is waiting for the next pass")
	}
	if !p.Prune {
		say("  nothing is removed before every source has spoken")
	}
	for _, e := range []string{p.Error, p.StateError, s.Config.Error} {
		if e != "" {
			say("error: %s", e)
		}
	}
	printTrouble(w, s)
	for _, f := range s.Findings {
		say("finding: %s", f)
	}
}

// printSysctls prints what vipd has set, and what is not as it should be.
func printSysctls(w io.Writer, s reconciler.IPVSStatus) {
	for _, e := range s.Sysctls {
		switch {
		case e.Set:
			_, _ = fmt.Fprintf(w, "  %s: set to %s, was %s\n", e.Key, e.Want, e.Found)
		case e.Problem != "":
			_, _ = fmt.Fprintf(w, "  %s: %s\n", e.Key, e.Problem)
		}
	}
}

// printTrouble prints what is not served as its source states it, and why.
func printTrouble(w io.Writer, s reconciler.Status) {
	for _, src := range s.Sources {
		for _, k := range slices.SortedFunc(maps.Keys(src.Held), lb.Key.Compare) {
			_, _ = fmt.Fprintf(w, "held: the removal of %s, which source %s does not state any more (%s)\n", k, src.Name, src.Held[k])
		}
	}
	for _, svc := range s.Services {
		if svc.Error != "" {
			_, _ = fmt.Fprintf(w, "quarantined: %s %s: %s\n", svc.Name, svc.Key, svc.Error)
		}
		if svc.Note != "" {
			_, _ = fmt.Fprintf(w, "degraded: %s %s: %s\n", svc.Name, svc.Key, svc.Note)
		}
	}
	for _, p := range s.Problems {
		_, _ = fmt.Fprintf(w, "not served: %s %s of source %s: %s\n", p.Name, p.Key, p.Source, p.Reason)
	}
}

func since(t time.Time) time.Duration { return time.Since(t).Round(time.Second) }
