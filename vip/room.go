package vip

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"vipd/internal/netfilter"
	"vipd/proxier"
)

// The table of connection tracking is full at net.netfilter.nf_conntrack_max: then
// the kernel drops the first packet of whatever is new, on every VIP. It is told of
// from crowdedAt percent on, and in the log again once it has sunk below roomyAt.
const (
	crowdedAt = 90
	roomyAt   = 80
)

// roomInterval is how often the log looks at the table: two small files. The sets
// fill up more slowly, and the kernel counts those of clients for each look.
const (
	roomInterval    = time.Second
	setRoomInterval = time.Minute
)

// fill returns how many connections are tracked and how many can be; false where
// the kernel does not tell.
func (d *Door) fill() (count, limit int, ok bool) {
	var values [2]int
	for i, key := range []string{"net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_max"} {
		text, err := d.kernel.sysctls.Get(key)
		if err != nil {
			return 0, 0, false
		}
		if values[i], err = strconv.Atoi(text); err != nil {
			return 0, 0, false
		}
	}
	return values[0], values[1], values[1] > 0
}

// crowded tells of a table that is full, or nearly so.
func (d *Door) crowded() []string {
	count, limit, ok := d.fill()
	if !ok || count*100 < limit*crowdedAt {
		return nil
	}
	return []string{crowdedText(count, limit)}
}

func crowdedText(count, limit int) string {
	return fmt.Sprintf("Connection tracking holds %d of %d connections; when it is full, packets of new connections are dropped: "+
		"raise net.netfilter.nf_conntrack_max, and nf_conntrack_buckets with it.", count, limit)
}

// watchRoom writes to the log when the table fills up, and when it has room again.
// It is no drift: nothing of ours changed.
func (d *Door) watchRoom(ctx context.Context, _ func(proxier.Drift)) error {
	ticks := time.NewTicker(roomInterval)
	defer ticks.Stop()
	for crowded := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
		count, limit, ok := d.fill()
		switch {
		case !ok:
		case !crowded && count*100 >= limit*crowdedAt:
			crowded = true
			d.log.Warn(crowdedText(count, limit))
		case crowded && count*100 < limit*roomyAt:
			crowded = false
			d.log.Info("connection tracking has room again", "count", count, "max", limit)
		}
	}
}

// crowdedSets tells, by name, of the sets of ours that are full, or nearly so.
func (d *Door) crowdedSets(ctx context.Context) (map[string]string, error) {
	list, err := d.kernel.sets.List(ctx)
	if errors.Is(err, netfilter.ErrNoIPSet) {
		return nil, nil
	}
	texts := map[string]string{}
	for _, set := range list {
		if room := set.Room(); room > 0 && set.Entries*100 >= room*crowdedAt {
			texts[set.Name] = crowdedSetText(set, room)
		}
	}
	return texts, err
}

func crowdedSetText(set netfilter.SetInfo, room int) string {
	if set.OfClients() {
		return fmt.Sprintf("The set %s holds %d clients of session affinity and is made for %d; of more than that some are not kept at their backend: "+
			"make affinity_timeout shorter, or have fewer services with affinity.", set.Name, set.Entries, room)
	}
	return fmt.Sprintf("The set %s holds %d of %d entries; when it is full, services with more are refused: "+
		"make do with fewer ranges in allow, or fewer services.", set.Name, set.Entries, room)
}

// watchSetRoom writes to the log when a set fills up. It is no drift, either.
func (d *Door) watchSetRoom(ctx context.Context, _ func(proxier.Drift)) error {
	ticks := time.NewTicker(setRoomInterval)
	defer ticks.Stop()
	for told := map[string]string{}; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
		texts, err := d.crowdedSets(ctx)
		if err != nil {
			d.log.Debug("it cannot be found out how full the sets are", "error", err)
			continue
		}
		for name, text := range texts {
			if _, known := told[name]; !known {
				d.log.Warn(text)
			}
		}
		told = texts
	}
}
