package vip

import "maps"

// tally holds the elements of one kind that are wanted, with how many services
// want each, and those that the kernel holds. The differences are kept up to
// date with every step, so that a pass costs what changed and not what there is.
type tally[E comparable] struct {
	want    map[E]int
	have    map[E]struct{}
	missing map[E]struct{} // wanted, not held
	surplus map[E]struct{} // held, not wanted
}

func newTally[E comparable]() *tally[E] {
	return &tally[E]{want: map[E]int{}, have: map[E]struct{}{}, missing: map[E]struct{}{}, surplus: map[E]struct{}{}}
}

func (t *tally[E]) clone() *tally[E] {
	return &tally[E]{maps.Clone(t.want), maps.Clone(t.have), maps.Clone(t.missing), maps.Clone(t.surplus)}
}

// count changes by how many services e is wanted.
func (t *tally[E]) count(e E, by int) {
	if t.want[e] += by; t.want[e] <= 0 {
		delete(t.want, e)
	}
	t.settle(e)
}

// dropAll makes nothing wanted.
func (t *tally[E]) dropAll() {
	clear(t.want)
	clear(t.missing)
	t.surplus = maps.Clone(t.have)
}

// read takes over what the kernel was seen to hold; the map becomes the tally's.
func (t *tally[E]) read(have map[E]struct{}) {
	t.have = have
	clear(t.missing)
	clear(t.surplus)
	for e := range t.want {
		t.settle(e)
	}
	for e := range t.have {
		t.settle(e)
	}
}

// added notes that the kernel holds e now.
func (t *tally[E]) added(e E) {
	t.have[e] = struct{}{}
	t.settle(e)
}

// removed notes that the kernel does not hold e any more.
func (t *tally[E]) removed(e E) {
	delete(t.have, e)
	t.settle(e)
}

func (t *tally[E]) settle(e E) {
	_, held := t.have[e]
	set(t.missing, e, t.want[e] > 0 && !held)
	set(t.surplus, e, held && t.want[e] == 0)
}

func set[E comparable](m map[E]struct{}, e E, in bool) {
	if in {
		m[e] = struct{}{}
	} else {
		delete(m, e)
	}
}
