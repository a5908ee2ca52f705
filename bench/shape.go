package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
)

// A ruleset is table nat of IPv4 as iptables-save shows it, read for one question:
// how many rules does the first packet of a connection pass on its way to the chain
// of its service? It is simulated over what the kernel has, not over what vipd or
// the benchmark meant to write.
type ruleset struct {
	chains map[string][]rule
	rules  int
}

// rule is the part of a rule that decides where a packet of a client goes.
type rule struct {
	dst    netip.Prefix // invalid: any
	port   uint16       // 0: any
	proto  string       // "": any
	target string       // "": none that leads on
	jump   bool         // -j to a chain, which comes back; else -g
	ends   bool         // it chooses a backend or translates: the packet has arrived
	other  bool         // it matches on what a new packet of a client does not have
}

// readRules reads the output of iptables-save -t nat.
func readRules(text io.Reader) (ruleset, error) {
	set := ruleset{chains: map[string][]rule{}}
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) > 1 && strings.HasPrefix(words[0], ":"):
			if _, found := set.chains[words[0][1:]]; !found {
				set.chains[words[0][1:]] = nil
			}
		case len(words) > 2 && words[0] == "-A":
			r, err := readRule(words[2:])
			if err != nil {
				return set, fmt.Errorf("%q: %w", lines.Text(), err)
			}
			set.chains[words[1]] = append(set.chains[words[1]], r)
			set.rules++
		}
	}
	return set, lines.Err()
}

func readRule(words []string) (r rule, err error) {
	negated := false
	for i := 0; i+1 < len(words); i++ {
		value := words[i+1]
		switch words[i] {
		case "!":
			negated = true
			continue
		case "-d":
			if !strings.Contains(value, "/") {
				value += "/32"
			}
			r.dst, err = netip.ParsePrefix(value)
		case "-p":
			r.proto = value
		case "--dport":
			var port uint64
			port, err = strconv.ParseUint(value, 10, 16)
			r.port = uint16(port)
		case "--tcp-flags":
			r.other = r.other || negated
		case "--probability", "--every", "--to-destination":
			r.ends = true
		case "-j", "-g":
			r.target, r.jump = value, words[i] == "-j"
		}
		if err != nil {
			return r, err
		}
		negated = false
	}
	return r, nil
}

func (r rule) takes(to netip.AddrPort) bool {
	return !r.other && (!r.dst.IsValid() || r.dst.Contains(to.Addr())) && (r.port == 0 || r.port == to.Port()) && (r.proto == "" || r.proto == "tcp")
}

// way returns how many rules a packet passes from the beginning of a chain until
// it is led to a chain that chooses a backend, and in how many chains they stand.
func (s ruleset) way(chain string, to netip.AddrPort) (rules, chains int, err error) {
	for chains = 1; chains < 100; chains++ {
		next := ""
		for _, r := range s.chains[chain] {
			rules++
			if _, ours := s.chains[r.target]; ours && r.takes(to) {
				next = r.target
				break
			}
		}
		if next == "" {
			return rules, chains, fmt.Errorf("nothing in chain %s leads to %s", chain, to)
		}
		if s.arrives(next) {
			return rules, chains, nil
		}
		chain = next
	}
	return rules, chains, errors.New("the chains go round in a circle")
}

// arrives tells whether a chain is that of a service.
func (s ruleset) arrives(chain string) bool {
	for _, r := range s.chains[chain] {
		if r.ends {
			return true
		}
	}
	return false
}

// leads returns the chain to which the last rule of a chain goes, if it goes to one:
// the root of a dispatch, where rules begin to depend on the service.
func (s ruleset) leads(chain string) string {
	rules := s.chains[chain]
	if n := len(rules); n > 0 && !rules[n-1].jump && !rules[n-1].dst.IsValid() {
		if _, ours := s.chains[rules[n-1].target]; ours {
			return rules[n-1].target
		}
	}
	return chain
}

// shape tells what the table is like: its chains and rules, and the way of the
// first packet to each VIP of the benchmark, from the dispatch that the named chain
// leads to on.
func shape(ctx context.Context, backend, chain string, vips int) (answer reply, err error) {
	cmd := exec.CommandContext(ctx, "iptables-"+backend+"-save", "-t", "nat")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return answer, err
	}
	if err := cmd.Start(); err != nil {
		return answer, err
	}
	set, err := readRules(out)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return answer, err
	}
	chain = set.leads(chain)
	answer.add("chains", float64(len(set.chains)))
	answer.add("rules", float64(set.rules))
	for i := range vips {
		rules, chains, err := set.way(chain, netip.AddrPortFrom(vipOf(i), servicePort))
		if err != nil {
			return answer, err
		}
		answer.add("way", float64(rules))
		answer.add("depth", float64(chains))
	}
	return answer, nil
}
