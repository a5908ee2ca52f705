package vip

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"vipd/proxier"
)

// The table of connection tracking is full at net.netfilter.nf_conntrack_max: then
// the kernel drops the first packet of whatever is new, on every VIP. It is told of
// from crowdedAt percent on, and in the log again once it has sunk below roomyAt.
const (
	crowdedAt = 90
	roomyAt   = 80
)

// roomInterval is how often the log looks at the table: two small files.
const roomInterval = time.Second

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
