package netfilter

import (
	"context"
	"fmt"

	"vipd/lb"
)

// FlowCount is how many flows there are.
type FlowCount struct {
	Active   uint32 // TCP connections that are being made, stand, or are half closed
	Inactive uint32 // TCP connections that both ends are done with, and flows of other protocols
}

// CountFlows counts the flows that wanted names, in the network namespace of the
// thread, and returns a count for each of them, be it zero. It changes nothing and
// may run beside everything else. Its dumps are those of Conntrack.Evict: one a
// service, narrowed by the kernel, or one a protocol and family for many services.
//
// The kernel enters a flow in conntrack when its first packet has passed the last
// hook: one whose packet is on its way through the rules is not counted yet.
func CountFlows(ctx context.Context, wanted ...Eviction) (map[Eviction]FlowCount, error) {
	counts := make(map[Eviction]FlowCount, len(wanted))
	for _, e := range wanted {
		counts[e] = FlowCount{}
	}
	for _, f := range dumps(counts) {
		found, err := countOnce(ctx, f, counts)
		if interrupted(err) {
			found, err = countOnce(ctx, f, counts)
		}
		if err != nil {
			return nil, fmt.Errorf("conntrack: counting flows of %s: %w", f, err)
		}
		for e, n := range found {
			counts[e] = n // another dump finds none of the same
		}
	}
	return counts, nil
}

// countOnce counts the flows that pass f and that wanted names.
func countOnce(ctx context.Context, f filter, wanted map[Eviction]FlowCount) (map[Eviction]FlowCount, error) {
	found := map[Eviction]FlowCount{}
	_, err := eachFlow(ctx, f, func(f *flow) error {
		if e, ok := named(wanted, f); ok {
			n := found[e]
			if f.busy() {
				n.Active++
			} else {
				n.Inactive++
			}
			found[e] = n
		}
		return nil
	})
	return found, err
}

// named returns the one of wanted that names a flow.
func named[V any](wanted map[Eviction]V, f *flow) (e Eviction, found bool) {
	e = Eviction{Key: f.key(), Backend: f.backend()}
	if _, found = wanted[e]; !found {
		e.Way = f.way()
		_, found = wanted[e]
	}
	return e, found
}

// busy reports whether f is a TCP connection on which data may yet pass. Unlike
// alive it takes in one whose SYN has no answer yet.
func (f *flow) busy() bool {
	return f.orig.proto == lb.TCP && (f.alive() || f.tcpState == tcpSynSent || f.tcpState == tcpSynSent2)
}
