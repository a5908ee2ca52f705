package iptables

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// tracer follows packets through rules, as they are written or read back. It
// knows nothing of how they were made.
type tracer struct {
	chains map[string][]string
	rules  map[string][]parsedRule
	visits int // rules looked at
	deep   int // most chains on the way of a packet

	// turn is the state of the statistic matches in mode nth, which makes spread
	// exact for one packet after another. nil: shares of many packets.
	turn map[string]int

	// clients remember backends in sets, as those of rules with affinity; with rng
	// what is chosen by chance is chosen, for one packet of client. nil: a client
	// that nobody knows.
	clients clientMemory
	client  string
	rng     *rand.Rand
}

// clientMemory is the sets of clients: the seconds for which an entry stays.
type clientMemory map[clientEntry]string

type clientEntry struct {
	set, client string
	service     lb.Key
}

// connect returns who gets the next connection of a client, which is remembered.
func (t *tracer) connect(k lb.Key, client string, clients clientMemory, rng *rand.Rand) (backend netip.AddrPort) {
	t.clients, t.client, t.rng = clients, client, rng
	for a := range t.to(k) {
		backend = a
	}
	t.clients, t.rng = nil, nil
	return backend
}

type parsedRule struct {
	id     string
	dst    netip.Prefix
	proto  lb.Protocol
	not    lb.Protocol
	lo, hi uint16
	share  float64 // of the packets that get here
	every  int
	never  bool // matches no first packet of a connection
	goTo   bool
	target string
	to     netip.AddrPort
	set    string // of clients, to be asked
	add    string // of clients, into which this one goes
	del    string // of clients, out of which this one goes
	stay   string
}

// newTracer takes the chains of a table.
func newTracer(chains ...map[string][]string) *tracer {
	t := &tracer{chains: map[string][]string{}, rules: map[string][]parsedRule{}}
	for _, m := range chains {
		for name, rules := range m {
			t.chains[name] = rules
		}
	}
	return t
}

// to returns who gets the first packet of a connection to a service, and with
// what share. The rest, if any, goes to nobody.
func (t *tracer) to(k lb.Key) map[netip.AddrPort]float64 {
	result := map[netip.AddrPort]float64{}
	t.walk("PREROUTING", k, 1, 0, result)
	return result
}

// walk follows part of the packets through a chain, and returns what comes out.
func (t *tracer) walk(chain string, k lb.Key, part float64, depth int, result map[netip.AddrPort]float64) (out float64) {
	t.deep = max(t.deep, depth)
	if depth > 20 {
		panic("rules run in circles")
	}
	returned := 0.0
	for _, r := range t.parse(chain) {
		if part < 1e-15 {
			break
		}
		t.visits++
		if r.never || r.dst.IsValid() && !r.dst.Contains(k.Addr) || r.proto != 0 && r.proto != k.Protocol || r.not == k.Protocol || r.hi != 0 && (k.Port < r.lo || k.Port > r.hi) {
			continue
		}
		if r.set != "" {
			if _, known := t.clients[clientEntry{r.set, t.client, k}]; !known {
				continue
			}
		}
		if t.clients != nil && r.add != "" {
			t.clients[clientEntry{r.add, t.client, k}] = r.stay
		}
		delete(t.clients, clientEntry{r.del, t.client, k})
		taken := part * t.shareOf(r)
		part -= taken
		if taken == 0 {
			continue
		}
		switch {
		case r.to.IsValid():
			result[r.to] += taken
		case r.target == "" || r.target == "MARK" || r.target == "CONNMARK" || r.target == "SET":
			part += taken
		case r.target == "RETURN":
			returned += taken
		case r.target == "ACCEPT":
		case r.goTo:
			returned += t.walk(r.target, k, taken, depth+1, result)
		default:
			part += t.walk(r.target, k, taken, depth+1, result)
		}
	}
	return part + returned
}

// shareOf returns how much of what reaches the rule matches it.
func (t *tracer) shareOf(r parsedRule) float64 {
	if t.rng != nil && r.share < 1 && (r.every == 0 || t.turn == nil) {
		if t.rng.Float64() < r.share {
			return 1
		}
		return 0
	}
	if r.every == 0 || t.turn == nil {
		return r.share
	}
	t.turn[r.id]++
	if t.turn[r.id]%r.every == 0 {
		return 1
	}
	return 0
}

func (t *tracer) parse(chain string) []parsedRule {
	if rules, found := t.rules[chain]; found {
		return rules
	}
	lines, found := t.chains[chain]
	if !found && kindOf(chain) != foreign {
		panic("no chain " + chain)
	}
	rules := make([]parsedRule, 0, len(lines))
	for i, line := range lines {
		r := parsedRule{id: fmt.Sprint(chain, i), share: 1}
		words := strings.Fields(line)
		for i := 0; i < len(words); i++ {
			i += r.word(words[i], words[i+1:])
		}
		rules = append(rules, r)
	}
	t.rules[chain] = rules
	return rules
}

// word takes in one word of a rule, and returns how many after it it took too.
func (r *parsedRule) word(w string, rest []string) int {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	var err error
	switch w {
	case "-m", "--mode", "--packet", "--comment", "--set-xmark":
	case "--exist":
		return 0
	case "!":
		if rest[0] == "-p" {
			r.not, err = lb.ParseProtocol(rest[1])
			must(err)
			return 2
		}
		r.never = true // "! --syn" is the only other one
		return 3
	case "--match-set":
		if strings.Contains(rest[0], netfilter.SetClients) {
			r.set = rest[0]
			return 2
		}
		r.never = strings.Contains(rest[0], "-masq") || strings.Contains(rest[0], "-auto") // no matter here
		return 2
	case "--add-set":
		r.add = rest[0]
		return 2
	case "--del-set":
		r.del = rest[0]
		return 2
	case "--timeout":
		r.stay = rest[0]
	case "-d":
		r.dst, err = netip.ParsePrefix(rest[0])
	case "-p":
		r.proto, err = lb.ParseProtocol(rest[0])
	case "--dport":
		lo, hi, found := strings.Cut(rest[0], ":")
		if !found {
			hi = lo
		}
		a, e1 := strconv.ParseUint("0"+lo, 10, 16)
		b, e2 := strconv.ParseUint(hi, 10, 16)
		must(e1)
		must(e2)
		r.lo, r.hi = uint16(a), uint16(b)
	case "--probability":
		var p float64
		p, err = strconv.ParseFloat(rest[0], 64)
		r.share = math.Round(p*(1<<31)) / (1 << 31) // as iptables gives it to the kernel
	case "--every":
		r.every, err = strconv.Atoi(rest[0])
		r.share = 1 / float64(r.every)
	case "-j", "-g":
		r.goTo, r.target = w == "-g", rest[0]
	case "--to-destination":
		r.to, err = netip.ParseAddrPort(rest[0])
	default:
		panic("the tracer does not know " + w)
	}
	must(err)
	return 1
}
