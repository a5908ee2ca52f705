package reconciler

import (
	"math/rand/v2"
	"time"
)

// How a pass that failed is tried again.
const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// throttle says when the next pass starts. It is the one entry point for
// changes, retries, resyncs, drift and deadlines, and keeps three promises:
//
//  1. the first request after quiet is served at once;
//  2. from the end of a pass to the start of the next at least min goes by;
//  3. what was requested while a pass ran is served by a later one: no request is
//     lost, and any number of them make one pass.
//
// It is pure; the loop owns it and tells it the time.
type throttle struct {
	min    time.Duration
	resync time.Duration // from the end of a pass that read the kernel to the next such

	ended  time.Time // the end of the last pass
	wanted time.Time // since when a pass is requested; zero: no
	fresh  bool      // the requested pass has to read the kernel
	retry  time.Time // when a failed pass is tried again; zero: it did not fail
	delay  time.Duration
	synced time.Time // the end of the last pass that read the kernel
	due    time.Time // when time alone makes work; zero: never
}

// request asks for a pass; fresh for one that reads the kernel.
func (t *throttle) request(now time.Time, fresh bool) {
	if t.wanted.IsZero() {
		t.wanted = now
	}
	t.fresh = t.fresh || fresh
}

// next returns when the next pass is to start.
func (t *throttle) next() time.Time {
	next := t.synced.Add(t.resync)
	for _, at := range []time.Time{t.wanted, t.retry, t.due} {
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	if least := t.ended.Add(t.min); !t.ended.IsZero() && next.Before(least) {
		return least
	}
	return next
}

// begin takes the requests that the pass starting now serves, and says whether
// it has to read the kernel.
func (t *throttle) begin(now time.Time) (fresh bool) {
	fresh = t.fresh || !t.retry.IsZero() || !now.Before(t.synced.Add(t.resync))
	t.wanted, t.fresh = time.Time{}, false
	return fresh
}

// end notes how the pass went and when the next is due by time alone.
func (t *throttle) end(now time.Time, fresh, failed bool, due time.Time) {
	t.ended, t.due = now, due
	if !failed {
		t.retry, t.delay = time.Time{}, 0
		if fresh {
			t.synced = now
		}
		return
	}
	t.delay = min(max(2*t.delay, firstRetry), lastRetry)
	if !due.After(now) { // what is overdue comes with the retry, not before
		t.due = time.Time{}
	}
	jitter := rand.N(t.delay / 10) //nolint:gosec // spreads retries, keeps no secret
	t.retry = now.Add(t.delay + jitter)
	if fresh { // a kernel that cannot be read is asked again with the retry, not at once
		t.synced = now
	}
}
