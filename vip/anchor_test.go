package vip

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// fakeAnchors is the anchors in memory.
type fakeAnchors struct {
	states [2]netfilter.AnchorState
	fail   error // of Put
}

func newFakeAnchors() *fakeAnchors { return &fakeAnchors{} }

func (a *fakeAnchors) State(ctx context.Context, f netfilter.Family) (netfilter.AnchorState, error) {
	return a.states[index(f)], ctx.Err()
}

func (a *fakeAnchors) Put(ctx context.Context, f netfilter.Family) error {
	if a.fail != nil {
		return a.fail
	}
	a.states[index(f)] = netfilter.AnchorStands
	return ctx.Err()
}

func (a *fakeAnchors) Remove(ctx context.Context, f netfilter.Family) error {
	a.states[index(f)] = netfilter.AnchorAbsent
	return ctx.Err()
}

// nft knows "delete table FAMILY vipd-anchor" and "add chain FAMILY vipd-anchor NAME".
func (a *fakeAnchors) nft(words []string) error {
	i := map[string]int{"ip": 0, "ip6": 1}[words[2]]
	if a.states[i] == netfilter.AnchorAbsent || words[3] != netfilter.AnchorTable {
		return errors.New("no such table")
	}
	a.states[i] = map[string]netfilter.AnchorState{"delete": netfilter.AnchorAbsent, "add": netfilter.AnchorDamaged}[words[0]]
	return nil
}

// anchorStands is a scenario: the anchor comes after the rules, is repaired by
// itself, and goes with the last service, after the rules.
func anchorStands(t *testing.T, w *world) {
	d := w.door(t)
	changes, err := d.Plan(t.Context(), pair(), prune)
	fatal(t, err)
	if !slices.ContainsFunc(changes, func(c proxier.Change) bool { return c.Op == proxier.Add && c.Object == "IPv6 anchor" }) {
		t.Errorf("the plan does not name the anchor: %v", changes)
	}
	w.has(t, "anchor")
	w.taken()
	clean(t, d, pair(), prune)
	w.has(t, "anchor", "IPv4 stands", "IPv6 stands")
	inOrder(t, w.taken(), "commit IPv4 nat", "anchor IPv4")
	w.quiet(t, d, pair())
	w.sh(t, `
		nft delete table ip vipd-anchor
		nft add chain ip6 vipd-anchor other`)
	w.has(t, "anchor", "IPv6 damaged")
	clean(t, d, pair(), fresh)
	w.has(t, "anchor", "IPv4 stands", "IPv6 stands")
	if wrote := w.taken(); !slices.Equal(wrote, []string{"anchor IPv4", "anchor IPv6"}) {
		t.Errorf("the repair wrote %v", wrote)
	}
	clean(t, d, services(svc("192.0.2.10:80/tcp", always)), prune)
	w.has(t, "anchor", "IPv4 stands")
	w.taken()
	clean(t, d, lb.Snapshot{}, prune)
	w.has(t, "anchor")
	inOrder(t, w.taken(), "commit IPv4 nat", "remove anchor IPv4")
}

func inOrder(t *testing.T, wrote []string, first, then string) {
	t.Helper()
	if i, j := slices.Index(wrote, first), slices.Index(wrote, then); i < 0 || j < i {
		t.Errorf("%q and then %q are wanted in\n%s", first, then, strings.Join(wrote, "\n"))
	}
}

func TestAnchorThatTheKernelRefusesIsAFinding(t *testing.T) {
	w := newFakeWorld()
	w.fake.anchors.fail = errors.New("no such module")
	d := w.door(t)
	clean(t, d, pair(), prune)
	w.has(t, "address", "192.0.2.10/32 dev vipd0 shaped=true", "2001:db8::10/128 dev vipd0 shaped=true")
	tells := func() bool { return strings.Contains(strings.Join(d.Findings(t.Context()), "\n"), "no such module") }
	if !tells() {
		t.Errorf("findings %v", d.Findings(t.Context()))
	}
	w.fake.anchors.fail = nil
	clean(t, d, pair(), fresh)
	if tells() {
		t.Errorf("findings %v", d.Findings(t.Context()))
	}
	w.has(t, "anchor", "IPv4 stands", "IPv6 stands")
}

func TestLegacyHasNoAnchor(t *testing.T) {
	w := newFakeWorld()
	w.raw.anchored = false
	clean(t, w.door(t), pair(), prune)
	w.has(t, "anchor")
}
