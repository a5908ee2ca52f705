package iptables

import (
	"slices"
	"sort"
)

// The chain of a node of the tree leads to each of its keys: by a rule for the key
// itself, or by one for a smaller node, which has a chain of its own. Packets pass
// the rules one by one, so the cost of a chain is the most rules on the way from
// its first one to the one that goes to a service: rule number j may lead to a
// chain of cost c if j + c is in the budget. So the first rule leads to the largest
// part, and those below to smaller and smaller ones; which nodes these are is
// chosen greedily, from the top, for the first budget that will do.
//
// More chains one below the other make fewer rules, but the kernel takes only some
// of them, and a chain more is time at every load. So how deep they nest follows
// from how many keys there are: deepFrom are the sizes from which on it may be 2,
// 3, ... 9 chains, and smallest is how many keys a chain has at least, but for the
// root. Both were found by search over rows and random sets of VIPs: at 65,000 keys
// no way has more than 24 rules (18 on average), with a chain for 4 services.
// Keys of a cruel shape cost more rules, but never a level more.
var deepFrom = [...]int32{8, 16, 64, 182, 725, 2048, 8192, 23171}

const (
	smallest    = 4
	deepestTree = len(deepFrom) + 1
)

// mayNest returns how deep the chains for so many keys may nest.
func mayNest(size int32) uint8 {
	depth := uint8(1)
	for _, from := range deepFrom {
		if size >= from {
			depth++
		}
	}
	return depth
}

// settle works out cost and depth of a node from those of the nodes below it.
func (t *tree) settle() {
	var room [64]*tree
	for i, item := range t.items(room[:0]) {
		t.cost = max(t.cost, uint16(i+1)+item.cost)
		t.depth = max(t.depth, 1+item.depth)
	}
}

// items appends what the rules of the node's chain lead to, in order.
func (t *tree) items(to []*tree) []*tree {
	if t.left == nil {
		return append(to, t)
	}
	least := max(2, int(t.left.cost), int(t.right.cost))
	for budget := least; ; budget += 1 + (budget-least)/4 {
		if items, ok := t.within(budget, to); ok {
			return items
		}
	}
}

// within appends the items of a chain that costs at most budget, if it finds them.
// A budget of t.size is always enough: a rule for each key.
func (t *tree) within(budget int, to []*tree) (items []*tree, ok bool) {
	var room [64]*tree
	open := addOpen(addOpen(room[:0], t.left), t.right)
	rest := int(t.size)
	depth := mayNest(t.size)
	for left := budget; rest > 0; left-- {
		if rest <= left { // no chain has to be made any more
			slices.SortFunc(open, func(a, b *tree) int { return compareKeys(a.key, b.key) })
			for _, n := range open {
				to = n.singles(to)
			}
			return to, true
		}
		for !open[0].fits(left-1, depth) {
			if len(open) > left {
				return to, false
			}
			n := open[0]
			open = addOpen(addOpen(open[1:], n.left), n.right)
		}
		if len(open) > left {
			return to, false
		}
		to = append(to, open[0])
		rest -= int(open[0].size)
		open = open[1:]
	}
	return to, true
}

// fits reports whether a rule of a chain that nests at most depth deep may lead to
// the node if that costs at most budget.
func (t *tree) fits(budget int, depth uint8) bool {
	return t.size == 1 || t.size >= smallest && int(t.cost) <= budget && t.depth < depth
}

// addOpen puts a node among those for which there is no rule yet: the costliest
// comes first.
func addOpen(open []*tree, t *tree) []*tree {
	i := sort.Search(len(open), func(i int) bool { return open[i].after(t) })
	return slices.Insert(open, i, t)
}

func (t *tree) after(o *tree) bool {
	if t.cost != o.cost {
		return t.cost < o.cost
	}
	if t.size != o.size {
		return t.size < o.size
	}
	return compareKeys(t.key, o.key) > 0
}

// singles appends the nodes of single keys.
func (t *tree) singles(to []*tree) []*tree {
	if t.left == nil {
		return append(to, t)
	}
	return t.right.singles(t.left.singles(to))
}

// levels holds nodes that have a chain by how many bits their keys have in common.
// What a chain leads to has more of them than the chain itself.
type levels [maxKeyBits + 1][]*tree

// open puts the chains to which that of t leads on their levels.
func (l *levels) open(t *tree) {
	if t == nil {
		return
	}
	var room [64]*tree
	for _, n := range t.items(room[:0]) {
		if n.size > 1 {
			l[n.bits] = append(l[n.bits], n)
		}
	}
}

// diffChains returns the nodes whose chains are written, each after those that it
// leads to, and those whose chains go, each before those that it leads to. The
// root is not among them: see dispatch.
func diffChains(old, new *tree) (write, gone []*tree) {
	if old == new {
		return nil, nil
	}
	var before, after levels
	before.open(old)
	after.open(new)
	for bits := range after {
		have, want := before[bits], after[bits]
		slices.SortFunc(have, func(a, b *tree) int { return compareKeys(a.key, b.key) })
		slices.SortFunc(want, func(a, b *tree) int { return compareKeys(a.key, b.key) })
		for len(have) > 0 || len(want) > 0 {
			var h, w *tree
			switch order := compareRegions(have, want); {
			case order <= 0:
				h, have = have[0], have[1:]
				if order == 0 {
					w, want = want[0], want[1:]
				}
			default:
				w, want = want[0], want[1:]
			}
			if h == w { // and so is all below
				continue
			}
			if w == nil {
				gone = append(gone, h)
			} else {
				after.open(w)
			}
			if h != nil {
				before.open(h)
			}
			if w != nil && (h == nil || !sameItems(h, w)) {
				write = append(write, w)
			}
		}
	}
	slices.Reverse(write)
	return write, gone
}

// compareRegions orders the first nodes of two lists of one level. No node comes
// after all others.
func compareRegions(a, b []*tree) int {
	switch {
	case len(b) == 0:
		return -1
	case len(a) == 0:
		return 1
	case commonBits(a[0].key, b[0].key) >= int(a[0].bits):
		return 0
	}
	return compareKeys(a[0].key, b[0].key)
}

// sameItems reports whether the chains of two nodes hold the same rules.
func sameItems(a, b *tree) bool {
	var room, more [64]*tree
	return slices.EqualFunc(a.items(room[:0]), b.items(more[:0]), func(x, y *tree) bool {
		return x == y || x.bits == y.bits && commonBits(x.key, y.key) >= int(x.bits)
	})
}
