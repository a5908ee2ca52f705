package config

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// leadingZero finds what inet_aton would read as octal.
var leadingZero = regexp.MustCompile(`^(\d+\.)*0\d`)

// parseAddr reads an IP address strictly. The second result says what is wrong.
func parseAddr(s string) (netip.Addr, string) {
	a, err := netip.ParseAddr(s)
	switch {
	case err == nil && a.Zone() != "":
		return a, "has a zone; write the address without %"
	case err == nil && a.Is4In6():
		return a, "is an IPv4 address in IPv6 form; write " + a.Unmap().String()
	case err == nil:
		return a, ""
	case strings.Contains(s, "/"):
		return a, "is no address; write one without a prefix length"
	case leadingZero.MatchString(s):
		return a, "has leading zeros; write the address in decimal without them"
	}
	return a, "is not an IP address; write one like 192.0.2.10 or 2001:db8::10 (names are not resolved)"
}

// unusable lists what is no address of one host for others to reach.
var unusable = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), `an address of "this network" (0.0.0.0/8)`},
	{netip.MustParsePrefix("127.0.0.0/8"), "a loopback address"},
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address"},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address"},
	{netip.MustParsePrefix("255.255.255.255/32"), "the broadcast address"},
	{netip.MustParsePrefix("240.0.0.0/4"), "a reserved address (240.0.0.0/4)"},
	{netip.MustParsePrefix("::/128"), "the unspecified address"},
	{netip.MustParsePrefix("::1/128"), "the loopback address"},
	{netip.MustParsePrefix("fe80::/10"), "a link-local address"},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address"},
}

// whyUnusable says what kind of address it is that can be neither a VIP nor a
// backend, or nothing.
func whyUnusable(a netip.Addr) string {
	for _, u := range unusable {
		if u.prefix.Contains(a) {
			return u.what
		}
	}
	return ""
}

// readVIP reads the address of a service.
func (p *parser) readVIP(n node) (netip.Addr, bool) {
	s, ok := n.text()
	if !ok {
		return netip.Addr{}, false
	}
	a, wrong := parseAddr(s)
	if wrong != "" {
		n.fail("VIP %s %s", quote(s), wrong)
		return a, false
	}
	if what := whyUnusable(a); what != "" {
		n.fail("VIP %s is %s; use an address that clients can reach", a, what)
		return a, false
	}
	if !p.inAllowed(a) {
		n.fail("VIP %s is outside vip.allowed; use another one, or add its prefix there", a)
		return a, false
	}
	return a, true
}

// readPrefixes reads vip.allowed.
func readPrefixes(n node) ([]netip.Prefix, bool) {
	list, ok := readList(n)
	if ok && len(list) == 0 {
		n.fail(`vip.allowed is empty; name the prefixes that VIPs may be in, like ["192.0.2.0/24"]`)
	}
	prefixes := values(list)
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return prefixes, ok
}

func parsePrefix(s string) (netip.Prefix, string) {
	prefix, err := netip.ParsePrefix(s)
	switch {
	case err == nil && prefix.Addr().Is4In6():
		return prefix, "is an IPv4 prefix in IPv6 form; write it as IPv4"
	case err == nil && prefix != prefix.Masked():
		return prefix, "has bits set behind its length; write " + prefix.Masked().String()
	case err == nil:
		return prefix, ""
	case !strings.Contains(s, "/"):
		return prefix, "has no length; write one like 192.0.2.0/24 or 2001:db8::/64"
	}
	return prefix, "is not a prefix; write one like 192.0.2.0/24 or 2001:db8::/64"
}
