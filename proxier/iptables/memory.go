package iptables

import (
	"maps"
	"slices"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// memory is what is remembered of one family.
type memory struct {
	// applied is the last snapshot that was asked for, with the version that stands
	// in place of what failed. Only the services of the family count.
	applied lb.Snapshot
	failed  map[lb.Key]failure // of the last pass
	broken  map[lb.Key]error   // services of applied that do not stand, and why they could not be repaired
	root    *tree              // the services that the dispatch leads to
	strays  []lb.Key           // of those the ones of unknown content, which are not in applied; they may not go yet

	// have is what stands in the kernel; nil means that it has to be read. It is
	// all that an error makes us forget.
	have     standing
	standing bool // VIPD-SVC and the jumps into it
	treeOpen bool // the nodes in the kernel may be others
	gated    bool // when have was read nothing could be removed

	// Of the services with affinity: the slots of their backends, of the version
	// that stands and of the one that is tried; those that the names of chains tell,
	// when they were last read; and the sets that stand, with the buckets they have, nil
	// if that is unknown.
	slots map[lb.Key]slots
	found map[string]int
	sets  map[string]int

	seen     *netfilter.Baseline
	compiled map[lb.Key]compiled // cache, for comparing everything
}

// compiled is what a service is in the kernel.
type compiled struct {
	service *lb.Service
	chains  []namedStamp
}

func newMemory() *memory {
	return &memory{
		failed:   map[lb.Key]failure{},
		slots:    map[lb.Key]slots{},
		seen:     netfilter.NewBaseline(),
		compiled: map[lb.Key]compiled{},
	}
}

// clone returns a copy that a plan may change. It takes 4 ms and 7 MB at 50,000
// services, which is little beside the reading of their file. Maps that share would
// make every look at them dearer, in the passes as well.
func (m *memory) clone() *memory {
	c := *m
	c.failed = maps.Clone(m.failed)
	c.have = maps.Clone(m.have)
	c.slots, c.sets = maps.Clone(m.slots), maps.Clone(m.sets)
	c.seen = m.seen.Clone()
	c.compiled = maps.Clone(m.compiled)
	return &c
}

// forget drops what is remembered of the kernel, because the outcome of a commit
// is unknown.
func (m *memory) forget() { m.have = nil }

// wrote notes what a commit did.
func (m *memory) wrote(c commit) {
	for _, chain := range c.write {
		m.have[idOf(chain.Name)] = stampOf(chain)
		m.seen.Forget(chain.Name)
		if kindOf(chain.Name) == node && (len(chain.Rules) > 0 || chain.Name == chainDispatch) { // else it is to go
			m.treeOpen = true
		}
	}
	for _, name := range c.remove {
		delete(m.have, idOf(name))
		m.seen.Forget(name)
	}
	c.repair.Made(m.seen)
}

// adopt takes over what was read from the kernel. It returns the services that
// the tree there leads to: their chains say in a note whose they are.
func (m *memory) adopt(list netfilter.Listing) map[lb.Key]bool {
	m.have = make(standing, len(list.Own))
	m.found = map[string]int{}
	linked := map[lb.Key]bool{}
	for name, c := range list.Own {
		if kindOf(name) == foreign {
			continue
		}
		m.have[idOf(name)] = m.stampRead(name, c)
		if hash, n, is := slotOf(name); is {
			m.found[hash] = n
		}
		if kindOf(name) != node {
			continue
		}
		for _, to := range c.To {
			if k, err := lb.ParseKey(list.Own[to].Note); err == nil && to == serviceChain(k) {
				linked[k] = true
			}
		}
	}
	return linked
}

// stampRead returns the stamp of a chain as it was read.
func (m *memory) stampRead(name string, c netfilter.Listed) stamp {
	if !m.seen.Same(name, c.Sum, c.Rules, c) {
		return 0
	}
	return newStamp(c.Sum, c.Rules)
}

// chains renders a service. One with affinity keeps the slots that it gets here.
func (m *memory) chains(s *lb.Service) ([]netfilter.Chain, error) {
	all := assign(s, m.slots[s.Key], m.found)
	chains, err := serviceChains(s, all)
	if err == nil && len(all) > 0 {
		m.slots[s.Key] = m.slots[s.Key].join(all)
	}
	return chains, err
}

// settle frees the slots that the version of a service which stands does not use.
func (m *memory) settle(c change) {
	if c.after == nil || c.after.Affinity == 0 || len(c.after.Backends) == 0 {
		delete(m.slots, c.key())
		return
	}
	m.slots[c.key()] = assign(c.after, m.slots[c.key()], nil)
}

// compile returns the stamps of a service's chains, from the cache if it can.
func (m *memory) compile(s *lb.Service) ([]namedStamp, error) {
	if c, found := m.compiled[s.Key]; found && c.service == s {
		return c.chains, nil
	}
	chains, err := m.chains(s)
	if err != nil {
		return nil, err
	}
	stamps := make([]namedStamp, len(chains))
	for i, c := range chains {
		stamps[i] = namedStamp{idOf(c.Name), stampOf(c)}
	}
	m.compiled[s.Key] = compiled{s, stamps}
	return stamps, nil
}

// matches reports whether all the chains stand as they should.
func (m *memory) matches(chains []namedStamp) bool {
	return !slices.ContainsFunc(chains, func(c namedStamp) bool { return !m.have.match(c) })
}
