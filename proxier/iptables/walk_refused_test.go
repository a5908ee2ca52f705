package iptables

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/proxiertest"
)

// curse makes the kernel refuse the chains of some services, other ones at every
// step, whether they come, change or are repaired, and sometimes every new set. The
// tool does not always name the line that is refused.
type curse struct {
	*walker
	chains map[string]bool
	sets   bool
	failed map[lb.Key]error // at the last step
}

func newCurse(t *testing.T, seed uint64) *curse {
	w := &walker{harness: newFakeHarness(), t: t, rng: rand.New(rand.NewPCG(seed, seed)), settled: map[lb.Key]*lb.Service{}, clients: clientMemory{}}
	w.restart()
	c := &curse{walker: w, chains: map[string]bool{}}
	bad := func(line string) bool {
		words := strings.Fields(line)
		return len(words) > 3 && words[0] == "-A" && c.chains[words[1]] && words[3] != "comment" // an empty chain has that
	}
	for _, k := range w.kernels {
		k.refuse = func(script string) bool { return slices.ContainsFunc(strings.Split(script, "\n"), bad) }
		k.names = whim(w.rng, bad)
	}
	w.sets.(*netfilter.FakeSets).Fail = func(op, _ string) error {
		if c.sets && op == "create" {
			return netfilter.ErrSetType
		}
		return nil
	}
	return c
}

// step changes what is wanted, and what is refused, and harms what stands. Whatever
// is not said to have failed has to be served, and nobody else may be said to.
func (c *curse) step(i int) {
	for range c.rng.IntN(6) {
		c.edit()
	}
	clear(c.chains)
	for s := range c.want.All() {
		if c.rng.IntN(6) == 0 {
			c.chains[serviceChain(s.Key)] = true
		}
	}
	c.sets = c.rng.IntN(6) == 0
	how := proxier.How{Fresh: c.rng.IntN(3) == 0, Prune: c.rng.IntN(5) > 0}
	if c.rng.IntN(8) == 0 {
		c.restart()
	}
	if c.rng.IntN(6) == 0 {
		c.harm()
		how.Fresh = true
	}
	err := c.p.Sync(c.t.Context(), c.want, how)
	failed, only := proxier.FailedServices(err)
	if err != nil && !only {
		c.t.Fatalf("step %d, %+v: %v", i, how, err)
	}
	for s := range c.want.All() {
		if guilty := c.chains[serviceChain(s.Key)] || c.sets && s.Affinity > 0; failed[s.Key] != nil && c.failed[s.Key] == nil && !guilty {
			c.t.Errorf("step %d, %+v: %s is blamed: %v", i, how, s.Key, failed[s.Key])
		}
		if got := c.Served(c.t, s.Key); failed[s.Key] == nil && !sameShares(got, proxiertest.Shares(s)) {
			c.t.Errorf("step %d, %+v: %s is served by %v, want %v", i, how, s.Key, got, proxiertest.Shares(s))
		}
	}
	c.failed = failed
}

// lift ends all refusals. What failed is tried anew once it was not wanted, or by the
// next run.
func (c *curse) lift() {
	clear(c.chains)
	c.sets = false
	if c.rng.IntN(2) == 0 {
		c.restart()
	} else if err := c.p.Sync(c.t.Context(), lb.Snapshot{}, prune); err != nil {
		c.t.Errorf("nothing can be removed: %v", err)
	}
}

func TestB59_B61_WalkOfRefusalsBlamesTheRightAndEndsEqual(t *testing.T) {
	for seed := range uint64(60) {
		c := newCurse(t, seed)
		for i := range 30 {
			c.step(i)
		}
		c.lift()
		c.rest()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
