package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"vipd/config"
	"vipd/lb"
	"vipd/reconciler"
)

func newExplain(o *options) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "explain VIP:PORT[/PROTO]",
		Short: "Tell what becomes of a connection to a VIP and port (0: somebody claims it, 1: nobody)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			k, err := lb.ParseKey(args[0])
			if err != nil {
				return err
			}
			s, err := client(cmd.Context(), o).Status(cmd.Context())
			if err != nil {
				return err
			}
			vip := slices.ContainsFunc(s.Services, func(svc reconciler.ServiceStatus) bool { return svc.Key.Addr == k.Addr })
			asked := func(of lb.Key) bool {
				return of == k || of.AddrPort() == k.AddrPort() && !strings.Contains(args[0], "/")
			}
			s.Services = slices.DeleteFunc(s.Services, func(svc reconciler.ServiceStatus) bool { return !asked(svc.Key) })
			s.Problems = slices.DeleteFunc(s.Problems, func(p reconciler.ProblemStatus) bool { return !asked(p.Key) })
			if len(s.Services)+len(s.Problems) == 0 {
				return fmt.Errorf("%s: %s", args[0], unclaimed(k.Addr, vip))
			}
			if output == outputJSON {
				return writeJSON(cmd.OutOrStdout(), explanation{s.Services, s.Problems})
			}
			return explain(cmd.OutOrStdout(), explanation{s.Services, s.Problems})
		},
	}
	addOutput(cmd, &output)
	return cmd
}

// explanation is what "vipd explain -o json" prints: a part of the status.
type explanation struct {
	Services []reconciler.ServiceStatus `json:"services"`
	Problems []reconciler.ProblemStatus `json:"problems"`
}

// unclaimed says what becomes of a connection that no service wants.
func unclaimed(a netip.Addr, vip bool) string {
	if vip {
		return fmt.Sprintf("no service uses this port of VIP %s; this host refuses the connection", a)
	}
	return fmt.Sprintf("%s is no VIP of vipd on this host", a)
}

// explain prints sentences.
func explain(w io.Writer, e explanation) error {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for _, s := range e.Services {
		say("%s is service %s of source %s, in mode %s: %s", s.Key, s.Name, s.Source, s.Mode, s.State)
		if s.Error != "" {
			say("  %s; what is said here is what was decided, its last applied version stands", s.Error)
		}
		if s.Note != "" {
			say("  %s", s.Note)
		}
		say("  clients: %s", explainClients(s.Clients))
		say("  choice: %s", explainChoice(s))
		if s.Forward == lb.ForwardNAT {
			say("  source address: %s", explainMasquerade[s.Masquerade])
		} else {
			say("  forwarding: %s", explainForward(s))
		}
		if !s.Usable() {
			say("  no backend may get a new connection: it is refused")
		}
		for _, backend := range s.Backends {
			say("  backend %s: weight %d, %s", backend.Addr, backend.Weight, backendState(backend))
		}
	}
	for _, p := range e.Problems {
		say("%s of source %s claims %s and is not served: %s", p.Name, p.Source, p.Key, p.Reason)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func explainClients(ranges []netip.Prefix) string {
	if len(ranges) == 0 {
		return "everybody"
	}
	words := make([]string, len(ranges))
	for i, r := range ranges {
		words[i] = r.String()
	}
	return strings.Join(words, ", ") + "; others get no answer, but for this host itself"
}

func explainChoice(s reconciler.ServiceStatus) string {
	choice := fmt.Sprintf("%s (%s", s.Scheduler.LongName(), s.Scheduler)
	switch {
	case s.Scheduler == lb.RR:
		choice = "in turn (rr"
	case s.Scheduler == lb.WRR && s.Mode == lb.IPTables:
		choice = "at random, by weight (wrr"
	case s.Scheduler == lb.WRR:
		choice = "by weight (wrr"
	}
	for _, flag := range s.Flags.Words(string(s.Scheduler) + "-") {
		choice += ", " + flag
	}
	choice += ")"
	if s.Affinity > 0 {
		choice += "; a client comes back to the backend of its last connection for " + config.FormatDuration(s.Affinity)
	}
	return choice
}

// explainForward tells how a packet gets to a backend that has the VIP itself.
func explainForward(s reconciler.ServiceStatus) string {
	how := "over the link that this host shares with the backend (dr)"
	if s.Forward == lb.ForwardTunnel {
		how = "inside another one (tunnel, " + s.Tunnel.Type.String()
		if s.Tunnel.Port != 0 {
			how += fmt.Sprintf(" to UDP port %d", s.Tunnel.Port)
		}
		how += ")"
	}
	return "each packet as it came, " + how + "; backends have the VIP and answer the client themselves"
}

//nolint:gochecknoglobals // a table that never changes
var explainMasquerade = map[lb.Masquerade]string{
	lb.MasqueradeAlways: "backends see this host (masquerade always)",
	lb.MasqueradeNever:  "backends see the client and must answer through this host (masquerade never)",
	lb.MasqueradeAuto:   "backends see the client, or this host where the client is on their own subnet (masquerade auto)",
}
