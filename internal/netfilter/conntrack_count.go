package netfilter

import (
	"context"
	"fmt"

	"vipd/lb"
)

// FlowCount is how many flows there are. A TCP connection that both ends are done with
// is none, though conntrack remembers it for two minutes (TIME_WAIT) or ten seconds (CLOSE).
type FlowCount struct {
	Active   uint32 // established TCP connections
	Inactive uint32 // those that are being made, or that one end has closed; flows of other protocols
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
			n.add(f)
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

// add counts a flow.
func (n *FlowCount) add(f *flow) {
	switch {
	case f.orig.proto == lb.TCP && f.tcpState == tcpEstablished:
		n.Active++
	case f.orig.proto != lb.TCP || f.alive() || f.tcpState == tcpSynSent || f.tcpState == tcpSynSent2:
		n.Inactive++
	}
}
