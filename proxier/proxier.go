// Package proxier is the contract between the reconciler and the ways of serving
// a service: iptables, ipvs, userspace. A proxier makes the kernel (or a worker
// process) equal to a snapshot, and knows nothing of discovery, health checks or
// the configuration file.
//
// What a proxier remembers of the kernel is a cache: it advances only after the
// kernel said yes, what an error touched is forgotten and read again, and
// How.Fresh forgets all of it.
package proxier

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"vipd/lb"
)

// Proxier serves services. Sync and Plan never overlap; Watch runs beside them.
type Proxier interface {
	// Sync makes the kernel serve exactly the services of want. It may be called
	// again with the same snapshot, which then writes nothing; the first call
	// reads the kernel and adopts what is there. The empty Snapshot removes all
	// that is ours. A *Failed names the services that could not be put in place:
	// their last applied version stands and all others are in place. Any other
	// error means that the outcome is unknown and everything is to be tried again.
	Sync(ctx context.Context, want lb.Snapshot, how How) error
	// Plan tells what Sync would do, from the same code, and changes nothing.
	Plan(ctx context.Context, want lb.Snapshot, how How) ([]Change, error)
	// Close frees handles and ends what runs in the background. The kernel keeps
	// serving. No other method may be called afterwards.
	Close() error
}

// How says how a pass is to be made.
type How struct {
	Fresh bool // read the kernel first, in place of trusting the cache
	Prune bool // false: remove nothing (a source has not spoken since the start)
}

// Watcher is a Proxier that hears of changes to its objects made by others.
type Watcher interface {
	// Watch calls drift for every change of what is ours that somebody else made,
	// until ctx ends. Our own writes do not count.
	Watch(ctx context.Context, drift func(Drift)) error
}

// Counter is a Proxier that knows how many connections each backend has.
type Counter interface {
	// Counters returns the connections to the backends of services: to each that gets
	// no new ones, be there none left, and to others if they cost nothing more. Nothing
	// is said of a service that is not in place, or of a backend that a pass under way
	// may still send connections to: that it is missing does not mean that it is idle.
	// It may run beside all other methods, and its cost follows the services asked for.
	Counters(ctx context.Context, services []lb.Key) ([]Count, error)
}

// Count is how many connections from a service to a backend there are.
type Count struct {
	Service  lb.Key
	Backend  netip.AddrPort
	Active   uint32 // established
	Inactive uint32 // in any other state: beginning, ending; in ipvs mode those that have ended, too; and all flows of UDP
}

// Drift is a change to our kernel objects that we did not make.
type Drift struct {
	Object string // what changed, as its tool names it
	By     string // who did it, if the kernel tells; else empty
}

// Op is the kind of a Change.
type Op byte

// The kinds of change. A Replace of a chain shows as removed and added lines.
const (
	Add    Op = '+'
	Remove Op = '-'
)

// Change is one line of a plan.
type Change struct {
	Op     Op     `json:"op"`
	Object string `json:"object"` // what it belongs to: "VIP 192.0.2.10", "service 192.0.2.10:80/tcp"
	Detail string `json:"detail"` // the line or attribute, as its tool spells it
}

// MarshalText writes the sign of the operation.
func (o Op) MarshalText() ([]byte, error) { return []byte{byte(o)}, nil }

// UnmarshalText reads the sign of the operation.
func (o *Op) UnmarshalText(text []byte) error {
	if len(text) != 1 || text[0] != byte(Add) && text[0] != byte(Remove) {
		return fmt.Errorf("%q is not a plan operation; want + or -", text)
	}
	*o = Op(text[0])
	return nil
}

// Failed is the error of a Sync that put every service in place except some.
type Failed struct {
	Services map[lb.Key]error
}

// Error names the services in order, and why each failed.
func (f *Failed) Error() string {
	keys := make([]lb.Key, 0, len(f.Services))
	for k := range f.Services {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, lb.Key.Compare)
	var b strings.Builder
	for i, k := range keys {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "service %s: %v", k, f.Services[k])
	}
	return b.String()
}

// FailedServices returns the services that err says could not be put in place,
// and whether err says nothing else than that. An error that was joined to a
// *Failed is something else: a chain that cannot be removed, say.
func FailedServices(err error) (services map[lb.Key]error, only bool) {
	services = map[lb.Key]error{}
	if only = collectFailed(err, services); len(services) == 0 {
		return nil, false
	}
	return services, only
}

// collectFailed adds the services of every *Failed in the tree of err, and reports
// whether all its leaves are one.
func collectFailed(err error, services map[lb.Key]error) bool {
	switch e := err.(type) { //nolint:errorlint // takes the tree apart itself
	case *Failed:
		maps.Copy(services, e.Services)
		return true
	case interface{ Unwrap() error }:
		return collectFailed(e.Unwrap(), services)
	case interface{ Unwrap() []error }:
		only := true
		for _, part := range e.Unwrap() {
			only = collectFailed(part, services) && only
		}
		return only
	}
	return false
}
