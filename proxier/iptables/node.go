package iptables

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"vipd/internal/netfilter"
	"vipd/lb"
)

// treeNode is a chain of the dispatch tree: a leaf, which leads to services, or
// one that leads to other nodes.
type treeNode struct {
	name     string
	keys     []lb.Key
	children []child
}

// child is a node and what the packets that go there have in common.
type child struct {
	name string
	at   prefix
}

// dispatchTree returns the nodes that find the chain of each service, each after
// those that it leads to, so the root is the last. The keys must be sorted by
// compareKeys.
//
// A node is named by its region: the packets that the nodes above send to it. So
// a node of the same name may be rewritten in place, in any order with others:
// both contents serve the whole region. A node whose region changes has a new
// name and is made before anything leads to it.
func dispatchTree(keys []lb.Key) []treeNode {
	b := treeBuilder{tree: tree{keys}}
	limit := leafSize
	for limit < len(keys) {
		limit *= fanout
	}
	b.add(chainDispatch, b.whole(), limit)
	return b.nodes
}

type treeBuilder struct {
	tree
	nodes []treeNode
}

// add makes the node of that name for a part which holds at most limit keys.
func (b *treeBuilder) add(name string, p part, limit int) {
	n := treeNode{name: name}
	if p.size <= leafSize {
		n.keys = b.left(p)
		b.nodes = append(b.nodes, n)
		return
	}
	for p.size <= limit/fanout {
		limit /= fanout
	}
	for _, c := range b.divide(p, limit/fanout) {
		below := b.nodeName(c)
		b.add(below, c, limit/fanout)
		n.children = append(n.children, child{below, b.prefix(span{c.lo, c.hi})})
	}
	b.nodes = append(b.nodes, n)
}

// chain renders the node.
func (n treeNode) chain() netfilter.Chain {
	c := netfilter.Chain{Name: n.name}
	for _, k := range n.keys {
		c.Rules = append(c.Rules, ruleOf(matchKey(k), goTo(serviceChain(k))))
	}
	for _, below := range n.children {
		rule := goTo(below.name)
		if match := matchPrefix(below.at); match != "" {
			rule = ruleOf(match, rule)
		}
		c.Rules = append(c.Rules, rule)
	}
	return c
}

// same reports whether two nodes render to the same chain. The region of a child
// is in its name, and where it begins is in its region.
func (n treeNode) same(o treeNode) bool {
	return n.name == o.name && slices.Equal(n.keys, o.keys) &&
		slices.EqualFunc(n.children, o.children, func(a, b child) bool { return a.name == b.name })
}

// nodeName names a part by its region: its prefix and those that were cut out.
func (b *treeBuilder) nodeName(p part) string {
	id := b.appendPrefix(nil, span{p.lo, p.hi})
	for _, h := range p.holes {
		id = b.appendPrefix(id, h)
	}
	return hashName(prefixNode, string(id))
}

func (b *treeBuilder) appendPrefix(id []byte, s span) []byte {
	p := b.prefix(s)
	addr := netip.PrefixFrom(p.key.Addr, min(p.bits, p.key.Addr.BitLen())).Masked().Addr()
	id = append(id, addr.AsSlice()...)
	if p.bits > p.key.Addr.BitLen() {
		free := keyBits(p.key) - p.bits
		id = append(id, byte(p.key.Protocol))
		id = binary.BigEndian.AppendUint16(id, uint16(uint32(p.key.Port)>>free<<free))
	}
	return binary.BigEndian.AppendUint16(id, uint16(p.bits))
}

// linkedKey reads a rule of the tree, as iptables-save spells it, that leads to
// the chain of a service.
func linkedKey(rule string) (lb.Key, bool) {
	var k lb.Key
	var chain string
	words := strings.Fields(rule)
	for i := 0; i+1 < len(words); i++ {
		value := words[i+1]
		switch words[i] {
		case "-d":
			addr, _, _ := strings.Cut(value, "/")
			k.Addr, _ = netip.ParseAddr(addr)
		case "-p":
			k.Protocol, _ = lb.ParseProtocol(value)
		case "--dport":
			port, _ := strconv.ParseUint(value, 10, 16)
			k.Port = uint16(port)
		case "-g":
			chain = value
		}
	}
	return k, k.Addr.IsValid() && k.Port != 0 && chain == serviceChain(k)
}
