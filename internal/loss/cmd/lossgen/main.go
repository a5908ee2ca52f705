// Command lossgen makes traffic with an account of every connection and datagram
// of it, for use in a shell. Run it inside the network namespace it is for:
//
//	ip netns exec b1 lossgen serve -name b1 -listen 10.2.0.11:8080
//	ip netns exec client lossgen run -target 192.0.2.10:80 -rate 200 -for 10s
//
// run exits with 0 if nothing was lost, 1 if something was, and 2 if it could not
// run at all.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"vipd/internal/loss"
)

const usage = `usage: lossgen serve -name NAME -listen ADDR:PORT[,...] [-protocol tcp,udp]
       lossgen run -target VIP:PORT [-rate N] [-hold N] [-flows N] [-every D] [-for D] [-o text|json]
       lossgen ask -target VIP:PORT [-protocol tcp|udp]`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	lost, err := command(ctx, os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "lossgen:", err)
		os.Exit(2)
	case lost:
		os.Exit(1)
	}
}

// command runs one subcommand and tells whether traffic was lost.
func command(ctx context.Context, args []string) (lost bool, err error) {
	if len(args) > 0 {
		switch args[0] {
		case "serve":
			return false, serve(ctx, args[1:])
		case "run":
			return run(ctx, args[1:])
		case "ask":
			return ask(ctx, args[1:])
		}
	}
	return false, errors.New(usage)
}

// addrPorts is a flag of addresses with commas in between.
type addrPorts []netip.AddrPort

func (a *addrPorts) String() string { return fmt.Sprint([]netip.AddrPort(*a)) }

func (a *addrPorts) Set(s string) error {
	for word := range strings.SplitSeq(s, ",") {
		addr, err := netip.ParseAddrPort(word)
		if err != nil {
			return err
		}
		*a = append(*a, addr)
	}
	return nil
}

func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	name := flags.String("name", "", "what this backend calls itself")
	protocol := flags.String("protocol", "tcp,udp", "which protocols it answers to")
	var listen addrPorts
	flags.Var(&listen, "listen", "where it listens: ADDR:PORT, several with commas")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if len(listen) == 0 {
		return errors.New("-listen ADDR:PORT is missing")
	}
	o := loss.ServerOptions{Name: *name}
	for word := range strings.SplitSeq(*protocol, ",") {
		switch word {
		case "tcp":
			o.TCP = listen
		case "udp":
			o.UDP = listen
		default:
			return fmt.Errorf("-protocol %s: use tcp, udp or tcp,udp", word)
		}
	}
	s, err := loss.Serve(ctx, o)
	if err != nil {
		return err
	}
	fmt.Println("ready") // so that a script can wait for it
	<-ctx.Done()
	s.Close()
	return nil
}

func run(ctx context.Context, args []string) (lost bool, err error) {
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	rate := flags.Int("rate", 0, "new TCP connections a second")
	hold := flags.Int("hold", 0, "TCP connections that stay open and ask every -every")
	flows := flags.Int("flows", 0, "UDP flows with a fixed source port that ask every -every")
	every := flags.Duration("every", 50*time.Millisecond, "pause between two requests of a held connection or a flow")
	length := flags.Duration("for", 5*time.Second, "how long")
	deadline := flags.Duration("deadline", loss.DefaultDeadline, "how long an answer may take")
	output := flags.String("o", "text", "text or json")
	var targets addrPorts
	flags.Var(&targets, "target", "VIP:PORT, several with commas")
	if err := flags.Parse(args); err != nil {
		return false, err
	}
	switch {
	case len(targets) == 0:
		return false, errors.New("-target VIP:PORT is missing")
	case *rate <= 0 && *hold <= 0 && *flows <= 0:
		return false, errors.New("nothing to do: give -rate, -hold or -flows")
	case *output != "text" && *output != "json":
		return false, fmt.Errorf("-o %s: use text or json", *output)
	}
	// A signal ends it as the time does: what is in flight is still counted.
	l := loss.Start(context.WithoutCancel(ctx), loss.Options{Deadline: *deadline})
	for _, target := range targets {
		if *rate > 0 {
			l.Connect(loss.Connections{Target: target, Rate: *rate})
		}
		if *flows > 0 {
			l.Send(loss.Flows{Target: target, Count: *flows, Every: *every})
		}
		if *hold > 0 {
			l.Hold(loss.Hold{Target: target, Count: *hold, Every: *every})
		}
	}
	select {
	case <-time.After(*length):
	case <-ctx.Done():
	}
	return show(l.Stop(), *output)
}

func show(r loss.Report, output string) (lost bool, err error) {
	if output == "json" {
		err = json.NewEncoder(os.Stdout).Encode(r)
	} else {
		err = r.Write(os.Stdout)
	}
	return r.Lost() > 0, err
}

// ask asks once and prints who answered.
func ask(ctx context.Context, args []string) (lost bool, err error) {
	flags := flag.NewFlagSet("ask", flag.ContinueOnError)
	protocol := flags.String("protocol", "tcp", "tcp or udp")
	deadline := flags.Duration("deadline", loss.DefaultDeadline, "how long an answer may take")
	var targets addrPorts
	flags.Var(&targets, "target", "VIP:PORT, several with commas")
	if err := flags.Parse(args); err != nil {
		return false, err
	}
	if *protocol != "tcp" && *protocol != "udp" {
		return false, fmt.Errorf("-protocol %s: use tcp or udp", *protocol)
	}
	if len(targets) == 0 {
		return false, errors.New("-target VIP:PORT is missing")
	}
	for _, target := range targets {
		answer, err := loss.Request{Network: *protocol, Target: target, Deadline: *deadline}.Ask(ctx)
		if err != nil {
			fmt.Println(err)
			lost = true
			continue
		}
		fmt.Printf("%s/%s answered by %s, which sees the client as %s\n", target, *protocol, answer.Backend, answer.Client)
	}
	return lost, nil
}
