package netfilter

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"vipd/lb"
)

// forgetTime is how long the kernel may take to forget the connections of a destination
// of IPVS that went (expire_nodest_conn): it has a worker of its own for that. An end that
// is poked before answers into a connection that is still there, and hears nothing.
const forgetTime = 100 * time.Millisecond

// noteFlows returns the TCP connections that wanted names and whose ends may still be
// open. It changes nothing.
func noteFlows(ctx context.Context, wanted ...Eviction) (map[Eviction][]flow, error) {
	set := make(map[Eviction]bool, len(wanted))
	for _, e := range wanted {
		if e.Key.Protocol == lb.TCP {
			set[e] = true
		}
	}
	var noted map[Eviction][]flow
	for _, f := range dumps(set) {
		found, err := noteOnce(ctx, f, set)
		if interrupted(err) {
			found, err = noteOnce(ctx, f, set)
		}
		if err != nil {
			return noted, fmt.Errorf("conntrack: flows of %s: %w", f, err)
		}
		if noted == nil {
			noted = found
			continue
		}
		for e, flows := range found {
			noted[e] = flows // another dump finds none of the same
		}
	}
	return noted, nil
}

func noteOnce(ctx context.Context, f filter, wanted map[Eviction]bool) (map[Eviction][]flow, error) {
	found := map[Eviction][]flow{}
	_, err := eachFlow(ctx, f, func(f *flow) error {
		if e, ok := named(wanted, f); ok && f.alive() {
			own := *f
			own.rawOrig = bytes.Clone(f.rawOrig)
			found[e] = append(found[e], own)
		}
		return nil
	})
	return found, err
}

// Tell makes the ends of connections reset that are gone from conntrack by now, and
// returns of how many. One that is there again is a new one, and is left alone.
func (c *Conntrack) Tell(ctx context.Context, flows []flow) (told int, err error) {
	for i := range flows {
		if !c.mayPoke() {
			return told, nil
		}
		if err := c.poker.pace(ctx); err != nil {
			return told, err
		}
		if err := c.pokeBoth(ctx, &flows[i]); err != nil {
			c.log.Debug("a drained connection ends only at its next packet",
				"service", flows[i].key(), "backend", flows[i].backend(), "client", flows[i].orig.src, "error", err)
			continue
		}
		told++
	}
	return told, nil
}
