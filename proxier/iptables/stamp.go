package iptables

import (
	"hash/maphash"

	"vipd/internal/netfilter"
)

// There are some 60,000 chains at 50,000 services, so what is remembered of one is
// two numbers: hashes of its name and of what it holds, good for this process.

// hashSeed makes the hashes of this process.
var hashSeed = maphash.MakeSeed()

// chainID is the hash of the name of a chain.
type chainID uint64

func idOf(chain string) chainID { return chainID(maphash.String(hashSeed, chain)) }

// stamp says what a chain in the kernel holds. The zero stamp is a chain that
// holds something else than we ever wrote.
type stamp uint64

// newStamp returns the stamp of a chain with that checksum and so many rules.
func newStamp(sum string, rules int) stamp {
	type content struct {
		sum   string
		rules int
	}
	return stamp(max(maphash.Comparable(hashSeed, content{sum, rules}), 1))
}

func stampOf(c netfilter.Chain) stamp { return newStamp(c.Sum(), max(len(c.Rules), 1)) }

// standing are the chains that stand in the kernel.
type standing map[chainID]stamp

// of returns the stamp of a chain, and whether it stands.
func (s standing) of(chain string) (stamp, bool) {
	have, stands := s[idOf(chain)]
	return have, stands
}

// stands reports whether a chain stands, whatever it holds.
func (s standing) stands(chain string) bool {
	_, stands := s.of(chain)
	return stands
}

// holds reports whether a chain stands as it should.
func (s standing) holds(c netfilter.Chain) bool {
	have, stands := s.of(c.Name)
	return stands && have == stampOf(c)
}

// namedStamp is a chain as it should stand.
type namedStamp struct {
	id chainID
	stamp
}

func (s standing) match(c namedStamp) bool { return s[c.id] == c.stamp }
