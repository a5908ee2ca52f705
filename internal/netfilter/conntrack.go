package netfilter

import (
	"net/netip"

	"vipd/lb"
)

// Eviction names flows that have to go: all connections that clients made to
// Key and that were sent to Backend. If Backend is Key's own address and port
// it means those that were sent to nobody: the flows that a client began before
// the service had a backend.
type Eviction struct {
	Key     lb.Key
	Backend netip.AddrPort
}

// Evicted counts what an eviction did.
type Evicted struct {
	Seen    int // flows that the kernel handed over
	Deleted int // conntrack entries deleted
	Poked   int // TCP connections whose ends were made to reset; see poke.go
}

// Add adds the counts of o.
func (e *Evicted) Add(o Evicted) {
	e.Seen += o.Seen
	e.Deleted += o.Deleted
	e.Poked += o.Poked
}
