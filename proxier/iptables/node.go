package iptables

import (
	"encoding/binary"
	"net/netip"

	"vipd/internal/netfilter"
)

// rootChain renders the root of the dispatch, which is always there.
func rootChain(t *tree) netfilter.Chain { return renderChain(chainDispatch, t) }

// nodeChain renders the chain of a node of the tree.
//
// It is named by its region: the packets that the nodes above send to it. So a
// chain of the same name may be rewritten in place, in any order with others: both
// contents serve the whole region. A node of another region has another name and is
// made before anything leads to it.
func nodeChain(t *tree) netfilter.Chain { return renderChain(nodeName(t), t) }

func renderChain(name string, t *tree) netfilter.Chain {
	c := netfilter.Chain{Name: name}
	if t == nil {
		return c
	}
	for _, n := range t.items(nil) {
		to := ""
		if n.size == 1 {
			to = serviceChain(n.key)
		} else {
			to = nodeName(n)
		}
		rule := goTo(to)
		if match := matchPrefix(n.key, int(n.bits)); match != "" {
			rule = ruleOf(match, rule)
		}
		c.Rules = append(c.Rules, rule)
	}
	return c
}

// nodeName names a node by the bits that its keys have in common.
func nodeName(t *tree) string {
	n, bits := t.key.Addr.BitLen(), int(t.bits)
	id := netip.PrefixFrom(t.key.Addr, min(bits, n)).Masked().Addr().AsSlice()
	if bits >= n+protocolBits {
		id = append(id, protocolCode(t.key.Protocol))
		free := keyBits(t.key) - bits
		id = binary.BigEndian.AppendUint16(id, uint16(uint32(t.key.Port)>>free<<free))
	}
	return hashName(prefixNode, string(binary.BigEndian.AppendUint16(id, uint16(bits))))
}
