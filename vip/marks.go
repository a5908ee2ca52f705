package vip

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vipd/internal/netfilter"
)

// policies is the routing policy rules of this host (`ip rule`).
type policies interface {
	// Marked returns the rules that look at the mark of a packet.
	Marked(ctx context.Context) ([]markRule, error)
}

// markRule is a routing policy rule for packets with a mark.
type markRule struct {
	family   netfilter.Family
	priority int
	mark     uint32
	mask     uint32
}

// kernelPolicies is the rules of the network namespace of the calling thread.
type kernelPolicies struct{}

func (kernelPolicies) Marked(ctx context.Context) (marked []markRule, err error) {
	for _, f := range netfilter.Families {
		af := netlink.FAMILY_V4
		if f == netfilter.IPv6 {
			af = netlink.FAMILY_V6
		}
		rules, err := policyRules(ctx, af)
		if err != nil {
			return nil, fmt.Errorf("list %s routing policy rules: %w", f, err)
		}
		for _, r := range rules {
			if r.Mark == 0 {
				continue
			}
			m := markRule{family: f, priority: r.Priority, mark: r.Mark, mask: ^uint32(0)}
			if r.Mask != nil {
				m.mask = *r.Mask
			}
			marked = append(marked, m)
		}
	}
	return marked, nil
}

// policyRules returns the rules of a family, in their order. A kernel without the
// family, or without such rules at all, has none.
func policyRules(ctx context.Context, af int) ([]netlink.Rule, error) {
	rules, err := dump(ctx, func() ([]netlink.Rule, error) { return netlink.RuleList(af) })
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	return rules, err
}

// ownTarget matches rules that lead to a chain of ours; markWords finds what a
// rule, as iptables-save spells it, does with marks.
var (
	ownTarget = regexp.MustCompile(`-[jg] ` + netfilter.ChainPrefix)
	markWords = regexp.MustCompile(`--(mark|set-xmark|nfmask|ctmask) (0x[0-9a-f]+)(?:/(0x[0-9a-f]+))?`)
)

// touches reports whether a rule looks for the bit or changes it.
func touches(rule string, bit uint32) bool {
	for _, m := range markWords.FindAllStringSubmatch(rule, -1) {
		value, err := strconv.ParseUint(m[2], 0, 32)
		if err != nil {
			continue
		}
		mask := uint64(^uint32(0))
		if m[3] != "" {
			if mask, err = strconv.ParseUint(m[3], 0, 32); err != nil {
				continue
			}
		}
		used := value // the bits of a mask
		switch m[1] {
		case "mark":
			used = value & mask
		case "set-xmark": // clears the mask, flips the value
			used = value | mask
		}
		if uint32(used)&bit != 0 {
			return true
		}
	}
	return false
}

// collisions is what a look for others that use our mark found in a family, and
// the generation of the rule set as of which it is known; 0: not known.
type collisions struct {
	generation uint32
	found      []string
}

// noteMarks looks, at a resync, for others that use the bit which marks our
// packets and connections. It sees the base chains of filter and mangle; chains
// that somebody else made are not read. While nobody writes to the tables what was
// found stands.
func (p *pass) noteMarks(ctx context.Context) error {
	if !p.how.Fresh || p.plan != nil {
		return nil
	}
	var found []string
	rules, err := p.d.kernel.policies.Marked(ctx)
	errs := []error{err}
	for _, r := range rules {
		if r.mark&r.mask&p.d.mark != 0 {
			found = append(found, fmt.Sprintf("The %s routing policy rule %d looks for mark 0x%x/0x%x, which has the bit 0x%x that vipd uses: "+
				"packets to VIPs may be routed by it; choose another bit in [proxy] mark.", r.family, r.priority, r.mark, r.mask, p.d.mark))
		}
	}
	for i, f := range p.s.families {
		if !f.standing {
			continue
		}
		err := p.lookForMarks(ctx, f, &p.d.collisions[i])
		errs = append(errs, err)
		found = append(found, p.d.collisions[i].found...)
	}
	p.d.marks = found
	return errors.Join(errs...)
}

func (p *pass) lookForMarks(ctx context.Context, f *family, known *collisions) error {
	t, err := p.tables(f)
	if err != nil {
		return err
	}
	generation, err := t.Generation(ctx)
	if err != nil { // the legacy backend has none: read
		generation = 0
	}
	if generation != 0 && generation == known.generation {
		return nil
	}
	*known = collisions{}
	for _, name := range []string{"filter", "mangle"} {
		table, err := t.ReadBase(ctx, name)
		if err != nil {
			return err
		}
		known.found = append(known.found, p.marksIn(f, table)...)
	}
	known.generation = generation
	return nil
}

func (p *pass) marksIn(f *family, table netfilter.Table) (found []string) {
	for _, base := range slices.Sorted(maps.Keys(table.Base)) {
		for _, rule := range table.Base[base] {
			if !ownTarget.MatchString(rule) && touches(rule, p.d.mark) {
				found = append(found, fmt.Sprintf("The %s rule \"-t %s -A %s %s\" uses the mark bit 0x%x that vipd uses; choose another bit in [proxy] mark.",
					f.Family, table.Name, base, rule, p.d.mark))
			}
		}
	}
	return found
}
