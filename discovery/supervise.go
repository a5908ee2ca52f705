package discovery

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// How a source that fails is tried again. Tests rely on fake time, so these are
// constants.
const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	maxCrashes = 3 // panics after which a source is not tried again: its accepted set stands
)

// errCrashed is the error of a Run that panicked.
var errCrashed = errors.New("the source crashed")

// supervise runs the source until ctx ends. What goes wrong in it, a panic
// included, touches no other source.
func (m *member) supervise(ctx context.Context) {
	retry, crashes := firstRetry, 0
	for {
		began := time.Now()
		err := m.runOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("the source ended although nobody asked it to")
		}
		if errors.Is(err, errCrashed) {
			if crashes++; crashes == maxCrashes {
				m.Report(Report{Class: Error, Err: fmt.Errorf("%w %d times and is not tried again; restart vipd", err, crashes)})
				return
			}
		}
		m.Report(Report{Class: Error, Err: err})
		if time.Since(began) > lastRetry { // it went well for a while
			retry = firstRetry
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
		retry = min(2*retry, lastRetry)
	}
}

// runOnce runs the source and turns a panic into an error.
func (m *member) runOnce(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			m.hub.log.Error("panic in a source", "source", m.name, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("%w: %v", errCrashed, p)
		}
	}()
	return m.source.Run(ctx, m)
}
