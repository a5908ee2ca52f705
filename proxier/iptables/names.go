package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// The names of the chains, all in table nat. A service's chain is "VIPD-" and a
// hash of its Key, so that no text of a user is ever in a name; "-" is not in the
// alphabet of the hash, so no two kinds can be taken for each other.
const (
	chainService  = netfilter.ChainPrefix + "SVC"  // entered from PREROUTING and OUTPUT
	chainDispatch = netfilter.ChainPrefix + "DISP" // the root of the tree
	prefixNode    = netfilter.ChainPrefix + "T-"   // an inner node of the tree
	prefixSpread  = netfilter.ChainPrefix + "W-"   // a part of the backends of a service
	hashLength    = 16
)

// hashName returns prefix and 80 bits of the hash of identity.
func hashName(prefix, identity string) string {
	sum := sha256.Sum256([]byte(identity))
	return prefix + base32.StdEncoding.EncodeToString(sum[:])[:hashLength]
}

// serviceChain returns the name of the chain of a service.
func serviceChain(k lb.Key) string { return hashName(netfilter.ChainPrefix, k.String()) }

// kind says what a chain is, by its name.
type kind byte

const (
	foreign kind = iota // not of this package, though it may be of vipd
	skeleton
	node
	service // the chain of a service, or a part of it
)

// kindOf tells the chains of this package from all others in the table.
func kindOf(chain string) kind {
	switch {
	case chain == chainService:
		return skeleton
	case chain == chainDispatch, hashed(chain, prefixNode):
		return node
	case hashed(chain, prefixSpread), hashed(chain, netfilter.ChainPrefix):
		return service
	}
	return foreign
}

func hashed(chain, prefix string) bool {
	hash, found := strings.CutPrefix(chain, prefix)
	return found && len(hash) == hashLength && strings.Trim(hash, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}
