package config

import (
	"net/netip"
	"slices"
	"time"

	"vipd/lb"
)

const (
	// maxAffinity is the longest that an ipset keeps an entry (2147483 s: the kernel
	// counts milliseconds in 31 bits), in whole hours.
	maxAffinity = 596 * time.Hour
	// maxRanges is how many client ranges a service may have. Each of them is an
	// entry of a set in the kernel, for every VIP and port of the service.
	maxRanges      = 10_000
	maxRangesTotal = 1_000_000
)

// readAffinity reads how long a client stays with its backend: the kernel counts
// seconds.
func readAffinity(n node) (time.Duration, bool) {
	d, ok := n.duration(0, maxAffinity)
	if ok && d%time.Second != 0 {
		n.fail("%s is not in whole seconds; round it", quote(FormatDuration(d)))
		return 0, false
	}
	return d, ok
}

// readList reads a list of prefixes, none twice.
func readList(n node) ([]placed[netip.Prefix], bool) {
	list, ok := n.list()
	prefixes := make([]placed[netip.Prefix], 0, len(list))
	seen := make(map[netip.Prefix]bool, len(list))
	for _, item := range list {
		s, isText := item.text()
		if !isText {
			ok = false
			continue
		}
		prefix, wrong := parsePrefix(s)
		if wrong == "" && seen[prefix] {
			wrong = "stands twice; remove one"
		}
		if wrong != "" {
			item.fail("prefix %s %s", quote(s), wrong)
			ok = false
			continue
		}
		seen[prefix] = true
		prefixes = append(prefixes, placed[netip.Prefix]{item, prefix})
	}
	return prefixes, ok
}

// readRanges reads the client ranges of a service, or of [defaults].
func readRanges(n node) ([]placed[netip.Prefix], bool) {
	ranges, ok := readList(n)
	if len(ranges) > maxRanges {
		ranges[maxRanges].at.fail("allow has at most %d ranges, this one %d; write greater ones", maxRanges, len(ranges))
		return nil, false
	}
	return ranges, ok
}

// readDefaultRanges is readRanges for what holds for many services.
func readDefaultRanges(n node) ([]netip.Prefix, bool) {
	ranges, ok := readRanges(n)
	return lb.NormalizeClients(values(ranges)), ok
}

func values[T any](list []placed[T]) []T {
	all := make([]T, len(list))
	for i, l := range list {
		all[i] = l.v
	}
	return all
}

// clients are the ranges of a service, by family.
type clients struct {
	some   bool // there are ranges; else everybody may connect
	v4, v6 []netip.Prefix
}

// newClients divides ranges by family.
func newClients(ranges []netip.Prefix) clients {
	all := lb.NormalizeClients(ranges)
	i := slices.IndexFunc(all, func(r netip.Prefix) bool { return !r.Addr().Is4() })
	if i < 0 {
		i = len(all)
	}
	return clients{len(all) > 0, slices.Clip(all[:i]), slices.Clip(all[i:])}
}

// of returns the ranges of the family of a.
func (c clients) of(a netip.Addr) []netip.Prefix {
	if a.Is4() {
		return c.v4
	}
	return c.v6
}

// allowed returns the ranges of a VIP as a Spec has them: one of everybody is none.
func (c clients) allowed(vip netip.Addr) []netip.Prefix {
	if ranges := c.of(vip); len(ranges) > 0 && ranges[0].Bits() > 0 {
		return ranges
	}
	return nil
}

// everybody is the range of all clients of the family of a.
func everybody(a netip.Addr) netip.Prefix {
	return netip.PrefixFrom(a, 0).Masked()
}

// checkRanges reports the ranges that no VIP can use, and the VIPs that nobody
// could reach. It could also be meant that their family is not restricted, and a
// mistake in either direction is a bad one: so it has to be written.
func (p *parser) checkRanges(e *entry) {
	if !e.whole || !e.clients.some || len(e.vips) == 0 {
		return
	}
	address := func(a netip.Addr) netip.Addr { return a }
	for _, r := range e.ranges {
		if !has(e.vips, address, r.v.Addr()) {
			r.at.fail("range %s is %s and %s has no VIP of that family; add one or remove the range", r.v, family(r.v.Addr()), e.title())
		}
	}
	for _, vip := range e.vips {
		if len(e.clients.of(vip.v)) == 0 {
			vip.at.fail(`VIP %s is %s and "allow" of %s has no range of that family: nobody could connect; add one ("%s" for everybody), or make it a service of its own`,
				vip.v, family(vip.v), e.title(), everybody(vip.v))
		}
	}
}
