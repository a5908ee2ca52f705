package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// The names of the chains, all in table nat. They carry the generation of the
// layout, but for VIPD-SVC: that is the switch, which one commit turns from the
// root of one generation to that of the next. A service's chain is named by a hash
// of its Key, so that no text of a user is ever in a name; "-" is not in the
// alphabet of the hash, so no two kinds can be taken for each other.
const (
	chainService = netfilter.ChainPrefix + "SVC" // entered from PREROUTING and OUTPUT

	layout        = netfilter.ChainPrefix + "2-"
	chainDispatch = layout + "DISP" // the root of the tree
	prefixNode    = layout + "T-"   // an inner node of the tree
	prefixSpread  = layout + "W-"   // a part of the backends of a service
	prefixGroup   = layout + "A-"   // asks the sets of a group of slots of a service
	prefixBackend = layout + "B-"   // a backend of a service with affinity; its slot follows
	hashLength    = 16
)

// The names of generation 1, which had no number. What follows the prefix of its
// services is "T-" or "W-" for the same kinds as above.
const (
	olderLayout   = netfilter.ChainPrefix
	olderDispatch = olderLayout + "DISP"
)

// hashName returns prefix and 80 bits of the hash of identity.
func hashName(prefix, identity string) string {
	sum := sha256.Sum256([]byte(identity))
	return prefix + base32.StdEncoding.EncodeToString(sum[:])[:hashLength]
}

// serviceChain returns the name of the chain of a service.
func serviceChain(k lb.Key) string { return hashName(layout, k.String()) }

// olderServiceChain returns the name that it had in generation 1.
func olderServiceChain(k lb.Key) string { return hashName(olderLayout, k.String()) }

// kind says what a chain is, by its name.
type kind byte

const (
	foreign kind = iota // not of this package, though it may be of vipd
	skeleton
	node
	service // the chain of a service, or a part of it, or one of its backends
	older   // any of these in an earlier layout
)

// kindOf tells the chains of this package from all others in the table. Those of a
// layout that is not known, because it is newer, are foreign: cleanup removes them.
func kindOf(chain string) kind {
	switch {
	case chain == chainService:
		return skeleton
	case chain == chainDispatch, hashed(chain, prefixNode):
		return node
	case hashed(chain, prefixSpread), hashed(chain, layout), hashed(chain, prefixGroup):
		return service
	case strings.HasPrefix(chain, prefixBackend):
		if _, _, found := slotOf(chain); found {
			return service
		}
	case chain == olderDispatch, hashed(chain, olderLayout), hashed(chain, olderLayout+"T-"), hashed(chain, olderLayout+"W-"):
		return older
	}
	return foreign
}

func hashed(chain, prefix string) bool {
	hash, found := strings.CutPrefix(chain, prefix)
	return found && len(hash) == hashLength && strings.Trim(hash, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// The name of the chain of a backend ends in its slot, four digits, "-" and a
// shorter hash: all that fits.
const backendHashLength = 14

// backendChain returns the name of the chain of a backend.
func backendChain(slot int, k lb.Key, a netip.AddrPort) string {
	return fmt.Sprintf("%s%04d-%s", prefixBackend, slot, backendHash(k, a))
}

func backendHash(k lb.Key, a netip.AddrPort) string {
	return hashName("", k.String()+"/"+a.String())[:backendHashLength]
}

// slotOf reads the name of the chain of a backend.
func slotOf(chain string) (hash string, slot int, found bool) {
	rest, found := strings.CutPrefix(chain, prefixBackend)
	if !found || len(rest) != 5+backendHashLength || rest[4] != '-' {
		return "", 0, false
	}
	n, err := strconv.ParseUint(rest[:4], 10, 16)
	return rest[5:], int(n), err == nil
}
