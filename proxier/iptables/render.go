package iptables

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"vipd/lb"
)

// Rules are made of typed values by the functions of this file and nowhere else,
// in the spelling in which iptables-save 1.8 gives them back, so that a plan shows
// only true differences. No text of a user gets in: there is none in an lb.Service,
// but for the zone of an address, which validate refuses.

// ruleBytes are all bytes that a rule of ours may hold.
var ruleBytes = func() (set [256]bool) {
	for _, b := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .:,/!_-[]") {
		set[b] = true
	}
	return set
}()

// checkRule refuses a rule with any other byte, a newline above all.
func checkRule(rule string) error {
	for i := range len(rule) {
		if !ruleBytes[rule[i]] {
			return fmt.Errorf("rule %q holds a byte that no rule may hold; report this as a bug of vipd", rule)
		}
	}
	return nil
}

// ruleOf joins the words of a rule.
func ruleOf(words ...string) string {
	return strings.Join(words, " ")
}

// matchPrefix matches the packets of all services whose keys begin with the same
// bits as k.
func matchPrefix(k lb.Key, bits int) string {
	n := k.Addr.BitLen()
	if bits <= n {
		if bits == 0 {
			return ""
		}
		return "-d " + netip.PrefixFrom(k.Addr, bits).Masked().String()
	}
	proto := k.Protocol.String()
	rule := "-d " + netip.PrefixFrom(k.Addr, n).String()
	if bits < n+protocolBits {
		return rule + " ! -p " + lb.SCTP.String()
	}
	rule += " -p " + proto
	free := keyBits(k) - bits // bits of the port that may be any
	if free == portBits {
		return rule
	}
	first := k.Port >> free << free
	rule += " -m " + proto + " --dport " + strconv.Itoa(int(first))
	if free > 0 {
		rule += ":" + strconv.Itoa(int(first|(1<<free-1)))
	}
	return rule
}

// matchProtocol matches a protocol: DNAT to a port is refused without one.
func matchProtocol(p lb.Protocol) string { return "-p " + p.String() }

// statistic's unit of probability is 2^-31 (xt_statistic, IPT_STATISTIC random).
const probabilityOne = 1 << 31

// matchShare matches part of the packets that reach the rule, at random. The
// kernel counts in units of 2^-31, and that is what is written.
func matchShare(part, whole uint64) string {
	units := math.Round(float64(part) / float64(whole) * probabilityOne)
	return "-m statistic --mode random --probability " + strconv.FormatFloat(units/probabilityOne, 'f', 11, 64)
}

// matchEvery matches one packet of n that reach the rule, in turn.
func matchEvery(n uint64) string {
	return "-m statistic --mode nth --every " + strconv.FormatUint(n, 10) + " --packet 0"
}

// sendTo translates the destination.
func sendTo(a netip.AddrPort) string { return "-j DNAT --to-destination " + a.String() }

// goTo goes on in another chain and does not come back.
func goTo(chain string) string { return "-g " + chain }

// jumpTo goes on in another chain and comes back after it.
func jumpTo(chain string) string { return "-j " + chain }
