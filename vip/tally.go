package vip

import (
	"iter"
	"maps"
	"slices"
)

// tally holds the elements of one kind that are wanted, with how many services
// want each, and those that the kernel holds. Where the two differ is kept up to
// date with every step, so that a pass costs what changed and not what there is.
// Keys without pointers keep it small and out of the garbage collector's way.
type tally[E comparable] struct {
	compare func(a, b E) int
	cells   map[E]cell
	dirty   []E // every element that differs, and perhaps some that do not
	wants   int // elements that somebody wants
	holds   int // elements that the kernel holds
}

// cell is what is known of an element: by how many services it is wanted, doubled,
// and one more if the kernel holds it.
type cell uint32

func (c cell) wanted() bool { return c > 1 }
func (c cell) held() bool   { return c&1 != 0 }

func newTally[E comparable](compare func(a, b E) int) *tally[E] {
	return &tally[E]{compare: compare, cells: map[E]cell{}}
}

func (t *tally[E]) clone() *tally[E] {
	c := *t
	c.cells, c.dirty = maps.Clone(t.cells), slices.Clone(t.dirty)
	return &c
}

// wanted reports whether a service wants e.
func (t *tally[E]) wanted(e E) bool { return t.cells[e].wanted() }

// held reports whether the kernel holds e.
func (t *tally[E]) held(e E) bool { return t.cells[e].held() }

// allHeld yields what the kernel holds, in no order.
func (t *tally[E]) allHeld() iter.Seq[E] {
	return func(yield func(E) bool) {
		for e, c := range t.cells {
			if c.held() && !yield(e) {
				return
			}
		}
	}
}

// count changes by how many services e is wanted.
func (t *tally[E]) count(e E, by int) {
	was := t.cells[e]
	t.set(e, was, cell(max(int(was>>1)+by, 0))<<1|was&1)
}

// dropAll makes nothing wanted.
func (t *tally[E]) dropAll() {
	for e, c := range t.cells {
		t.set(e, c, c&1)
	}
}

// read takes over what the kernel was seen to hold.
func (t *tally[E]) read(have iter.Seq[E]) {
	for e, c := range t.cells {
		t.set(e, c, c&^1)
	}
	for e := range have {
		t.added(e)
	}
	t.dirty = t.dirty[:0]
	for e, c := range t.cells {
		if c.held() != c.wanted() {
			t.dirty = append(t.dirty, e)
		}
	}
}

// added notes that the kernel holds e now.
func (t *tally[E]) added(e E) { c := t.cells[e]; t.set(e, c, c|1) }

// removed notes that the kernel does not hold e any more.
func (t *tally[E]) removed(e E) { c := t.cells[e]; t.set(e, c, c&^1) }

func (t *tally[E]) set(e E, was, is cell) {
	if is == was {
		return
	}
	t.wants += one(is.wanted()) - one(was.wanted())
	t.holds += one(is.held()) - one(was.held())
	if is == 0 {
		delete(t.cells, e)
	} else {
		t.cells[e] = is
	}
	if is.held() != is.wanted() {
		t.dirty = append(t.dirty, e)
	}
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

// missing returns what is wanted and not held, sorted.
func (t *tally[E]) missing() []E { return t.differing(cell.wanted) }

// surplus returns what is held and not wanted, sorted.
func (t *tally[E]) surplus() []E { return t.differing(cell.held) }

// differing tidies up dirty and returns those of it that are as told.
func (t *tally[E]) differing(is func(cell) bool) (elements []E) {
	if len(t.dirty) == 0 {
		return nil
	}
	t.dirty = slices.DeleteFunc(t.dirty, func(e E) bool { c := t.cells[e]; return c.held() == c.wanted() })
	if len(t.dirty) == 0 {
		t.dirty = nil // it may have been large
		return nil
	}
	slices.SortFunc(t.dirty, t.compare)
	t.dirty = slices.Compact(t.dirty)
	for _, e := range t.dirty {
		if is(t.cells[e]) {
			elements = append(elements, e)
		}
	}
	return elements
}
