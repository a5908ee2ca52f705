package latest

import (
	"sync"
	"testing"
)

func signals(c *Cell[int]) int {
	n := 0
	for {
		select {
		case <-c.Changed():
			n++
		default:
			return n
		}
	}
}

func TestCellHoldsTheNewestAndSignalsOnce(t *testing.T) {
	c := New(7)
	if c.Get() != 7 || signals(c) != 0 {
		t.Fatal("a new cell holds its value and signals nothing")
	}
	for i := range 100 {
		c.Set(i)
	}
	if n := signals(c); n != 1 {
		t.Errorf("%d signals for 100 Sets that nobody heard, want 1", n)
	}
	if c.Get() != 99 {
		t.Errorf("value %d, want the newest", c.Get())
	}
	c.Refresh(100)
	if n := signals(c); n != 0 || c.Get() != 100 {
		t.Errorf("after Refresh: value %d, %d signals; want 100 and none", c.Get(), n)
	}
}

func TestCellNeverBlocksAndLosesNoLastValue(t *testing.T) {
	c := New(0)
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for range 1000 {
				c.Set(1)
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); c.Set(2); close(done) }()
	for c.Get() != 2 {
		<-c.Changed() // a lost signal would hang here
	}
	<-done
}
