// Package latest holds a cell that always has the newest value and wakes whoever
// waits for it. It joins goroutines that must not wait for each other: a writer
// never blocks, a slow reader misses only intermediate values.
package latest

import "sync"

// Cell holds the newest value of type T. The zero Cell holds the zero value and
// is not ready for use: make one with New.
type Cell[T any] struct {
	changed chan struct{}

	mu    sync.Mutex
	value T
}

// New returns a Cell that holds v and signals nothing yet.
func New[T any](v T) *Cell[T] {
	return &Cell[T]{changed: make(chan struct{}, 1), value: v}
}

// Set replaces the value and signals the change. It never blocks.
func (c *Cell[T]) Set(v T) {
	c.mu.Lock()
	c.value = v
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default: // a signal is already waiting
	}
}

// Refresh replaces the value by one that says nothing new to who waits: it
// signals no change.
func (c *Cell[T]) Refresh(v T) {
	c.mu.Lock()
	c.value = v
	c.mu.Unlock()
}

// Get returns the newest value.
func (c *Cell[T]) Get() T {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.value
}

// Changed returns the channel that delivers one signal for any number of Sets
// since the last signal was taken. It is meant for one reader.
func (c *Cell[T]) Changed() <-chan struct{} { return c.changed }
