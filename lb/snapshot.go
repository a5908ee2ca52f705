package lb

import (
	"iter"
	"slices"
	"sort"
)

// chunkSize is how many services a chunk of a Snapshot holds at most. A change
// copies one chunk and the list of chunks: at 50,000 services some 4 KB.
const chunkSize = 256

// Snapshot is a set of services, sorted by Key. It is an immutable value: any
// number of goroutines may read it, the zero value is the empty set, and two
// snapshots share the parts in which they do not differ. Edit makes a new one.
type Snapshot struct {
	chunks []*chunk
	size   int
}

// chunk is a sorted run of services, immutable once its Snapshot is out.
type chunk struct{ services []*Service }

func (c *chunk) first() Key { return c.services[0].Key }

// NewSnapshot returns the set of the given services. Of two with one Key the
// later wins.
func NewSnapshot(services ...*Service) Snapshot {
	e := Snapshot{}.Edit()
	for _, s := range services {
		e.Put(s)
	}
	return e.Snapshot()
}

// Len returns the number of services.
func (s Snapshot) Len() int { return s.size }

// Get returns the service of that Key, or nil.
func (s Snapshot) Get(k Key) *Service {
	ci := s.find(k)
	if ci < 0 {
		return nil
	}
	c := s.chunks[ci]
	if i, found := c.find(k); found {
		return c.services[i]
	}
	return nil
}

// All yields the services in the order of their keys.
func (s Snapshot) All() iter.Seq[*Service] {
	return func(yield func(*Service) bool) {
		for _, c := range s.chunks {
			for _, svc := range c.services {
				if !yield(svc) {
					return
				}
			}
		}
	}
}

// From yields the services whose keys are k or come after it, in order.
func (s Snapshot) From(k Key) iter.Seq[*Service] {
	return func(yield func(*Service) bool) {
		ci := max(s.find(k), 0)
		for _, c := range s.chunks[min(ci, len(s.chunks)):] {
			i, _ := c.find(k)
			for _, svc := range c.services[i:] {
				if !yield(svc) {
					return
				}
			}
		}
	}
}

// find returns the index of the chunk in which k belongs, or -1 if k is before
// all of them.
func (s Snapshot) find(k Key) int {
	return sort.Search(len(s.chunks), func(i int) bool { return s.chunks[i].first().Compare(k) > 0 }) - 1
}

func (c *chunk) find(k Key) (int, bool) {
	return slices.BinarySearchFunc(c.services, k, func(s *Service, k Key) int { return s.Key.Compare(k) })
}

// Diff yields what changed from old to s, in the order of the keys, as pairs
// (before, after): before is nil for a service that is new, after is nil for
// one that went. Services that are equal in value are not yielded. Chunks that
// both share are skipped unread, so the cost follows the change.
func (s Snapshot) Diff(old Snapshot) iter.Seq2[*Service, *Service] {
	return func(yield func(before, after *Service) bool) {
		a, b := cursor{chunks: old.chunks}, cursor{chunks: s.chunks}
		for {
			for a.atStart() && b.atStart() && a.chunk() == b.chunk() {
				a.skip()
				b.skip()
			}
			before, after := a.peek(), b.peek()
			switch {
			case before == nil && after == nil:
				return
			case before == after:
				a.next()
				b.next()
				continue
			case after == nil || before != nil && before.Key.Compare(after.Key) < 0:
				a.next()
				after = nil
			case before == nil || after.Key.Compare(before.Key) < 0:
				b.next()
				before = nil
			default:
				a.next()
				b.next()
				if before.Equal(after) {
					continue
				}
			}
			if !yield(before, after) {
				return
			}
		}
	}
}

// cursor walks over the services of a list of chunks.
type cursor struct {
	chunks []*chunk
	i      int // the next service in chunks[0]
}

func (c *cursor) atStart() bool { return len(c.chunks) > 0 && c.i == 0 }
func (c *cursor) chunk() *chunk { return c.chunks[0] }
func (c *cursor) skip()         { c.chunks = c.chunks[1:] }

func (c *cursor) peek() *Service {
	if len(c.chunks) == 0 {
		return nil
	}
	return c.chunks[0].services[c.i]
}

func (c *cursor) next() {
	if c.i++; c.i == len(c.chunks[0].services) {
		c.skip()
		c.i = 0
	}
}
