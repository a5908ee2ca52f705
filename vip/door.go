// Package vip owns the door: the virtual addresses (VIPs) of this host and what
// guards them. It sees every mode; how a service is served behind its VIP is the
// business of a proxier.
//
// A pass calls Shut, then the proxiers, then Open. Shut puts in place what must
// stand before the rules of a proxier (device, sets, chains) and takes down the
// VIPs that go; Open puts up the VIPs that came and clears away what nobody
// needs any more. The invariants:
//
//   - A VIP is in the set that the guard looks at for as long as it is an address
//     of this host: into the set first, out of it last. A daemon of the host that
//     listens on all addresses is therefore never reachable on a VIP.
//   - A VIP:port whose mode takes packets at INPUT (ipvs) is in a set of its own, from
//     after its virtual server stands until before that goes or loses its last usable
//     backend: beside the virtual server such a packet meets the daemons of the host.
//   - No VIP is opened while the chains and sets of its family are not known to
//     stand. The families fail apart.
//   - An address is ours if it stands on our device in our shape (see
//     address.shaped). Nothing is ever taken from another device. A device is
//     deleted only if it bears our alias.
//   - A listing that failed removes nothing.
//   - What is wanted and what the kernel holds are tallied with their
//     differences, so that a pass costs what changed. A pass without a change
//     makes no system call that could write, and runs no tool.
//   - Sets of a family are made before its chains and removed after them, so that
//     a set of ours tells of leftovers of an earlier run.
//
// The traps: an address with scope global would be chosen as a source by a host
// whose outgoing device has none; a device that goes down loses its IPv6
// addresses; IPv6 knows an address once on a device whatever its length; a bridge
// stands in for a dummy device where the kernel has none.
package vip

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	"vipd/internal/linux"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
)

// ARP says who answers ARP requests for the IPv4 VIPs.
type ARP string

// The policies for ARP.
const (
	// ARPUnmanaged leaves the kernel's settings alone: by default a host answers
	// for every address it has on any of its devices.
	ARPUnmanaged ARP = "unmanaged"
	// ARPIgnore sets arp_ignore and arp_announce so that this host neither answers
	// for VIPs nor uses them in its own requests: for VIPs that are routed here.
	ARPIgnore ARP = "ignore"
)

// DefaultDevice is the name of the device that holds the VIPs.
const DefaultDevice = "vipd0"

// Options are what a Door is made of. The zero value of a field is its default.
type Options struct {
	Device string           // the device that holds the VIPs; DefaultDevice
	Mark   uint32           // one bit of packet mark and connmark; netfilter.DefaultMark
	ARP    ARP              // ARPUnmanaged
	Tools  *netfilter.Tools // iptables, shared with the modes that use it
	// DropInvalid drops packets of our flows that conntrack finds invalid (out of
	// window, say), which would else end the connection. See Door.entrance.
	DropInvalid bool
	// Input says that a mode of this host takes packets of services at INPUT: ipvs.
	// The door then knows services that are open there (see Door.guard, Door.arrival).
	Input bool
	Evict Evictor      // ends flows that began before their VIP was open; nil: nobody does
	Log   *slog.Logger // slog.Default()

	kernel *kernel // nil: the running kernel
}

// Evictor ends flows in the background. *netfilter.Evictor is one.
type Evictor interface {
	Evict(evictions ...netfilter.Eviction)
}

// kernel is all that the door touches.
type kernel struct {
	links    links
	sets     netfilter.Sets
	anchors  anchors
	anchored bool                                   // anchors are made
	tables   func(netfilter.Family) (tables, error) // an error says why the family cannot be filtered
	sysctls  sysctls
	policies policies
	watch    func(context.Context, func(netfilter.Drift)) error // of the packet filter, until ctx ends
}

// Door puts VIPs up and down. Shut, Open and Plan are called one at a time;
// Watch and Findings run beside them.
type Door struct {
	device string
	mark   uint32
	arp    ARP
	drop   bool // of invalid packets
	input  bool // a mode takes packets at INPUT
	evict  Evictor
	log    *slog.Logger
	kernel *kernel

	busy   chan struct{} // holds a token while state is in use
	state  *state
	seen   [2]*netfilter.Baseline
	tools  [2]tables // found so far
	plain  [2]bool   // the kernel refuses random ports for masquerade
	adrift [2]error  // why a family has no anchor
	marks  []string  // findings of the last resync: others that use our bit

	summary atomic.Pointer[summary]

	collisions [2]collisions
}

// New returns a Door. It touches nothing yet.
func New(o Options) (*Door, error) {
	d := &Door{
		device: o.Device, mark: o.Mark, arp: o.ARP, drop: o.DropInvalid, input: o.Input, evict: o.Evict, log: o.Log, kernel: o.kernel,
		busy: make(chan struct{}, 1), state: newState(o),
	}
	if d.device == "" {
		d.device = DefaultDevice
	}
	if d.mark == 0 {
		d.mark = netfilter.DefaultMark
	}
	if d.mark&(d.mark-1) != 0 {
		return nil, fmt.Errorf("mark 0x%x is not one bit", d.mark)
	}
	switch d.arp {
	case "":
		d.arp = ARPUnmanaged
	case ARPUnmanaged, ARPIgnore:
	default:
		return nil, fmt.Errorf("unknown ARP policy %q; use %q or %q", d.arp, ARPUnmanaged, ARPIgnore)
	}
	if d.log == nil {
		d.log = slog.Default()
	}
	if d.kernel == nil {
		d.kernel = running(o.Tools)
	}
	for i := range d.seen {
		d.seen[i] = netfilter.NewBaseline()
	}
	d.summary.Store(&summary{})
	return d, nil
}

// running returns the kernel of the network namespace that the process is in.
func running(tools *netfilter.Tools) *kernel {
	return &kernel{
		links:    kernelLinks{},
		sets:     netfilter.KernelSets{},
		policies: kernelPolicies{},
		tables:   tablesOf(tools),
		anchors:  tools.Anchors(),
		anchored: anchored(tools),
		sysctls:  linux.ProcSys(),
		watch:    tools.Watch,
	}
}

// tablesOf returns the packet filter of each family.
func tablesOf(tools *netfilter.Tools) func(netfilter.Family) (tables, error) {
	return func(f netfilter.Family) (tables, error) {
		t, err := tools.Tool(f)
		if err != nil {
			return nil, err
		}
		return t, nil
	}
}

// Shut puts in place what must stand before the rules of the services of want:
// the device, sets, chains and jumps, and what decides on masquerading. VIPs
// that no service of want uses are taken down, if how.Prune. A *proxier.Failed
// names the services whose VIP this host must not take, with the reason, and all
// services of a family that cannot be filtered. After any other error nothing is
// known to stand.
//
// A service that moves to a mode which takes its packets elsewhere (lb.Service.Mode)
// is let new connections by both from Shut until Open. So the mode that it comes from
// must take them until the mode that it goes to stands; and when it moves to one that
// takes packets at INPUT, until Open has returned.
func (d *Door) Shut(ctx context.Context, want lb.Snapshot, how proxier.How) error {
	if err := d.lock(ctx); err != nil {
		return err
	}
	defer d.unlock()
	p := &pass{d: d, s: d.state, how: how}
	failed, err := p.shut(ctx, want)
	return outcome(failed, err)
}

// Open puts up the VIPs of want, which lacks the services that failed and were
// never in place. If how.Prune, whatever no service of want needs any more goes;
// with the last service that is all of it. Shut was called before. A
// *proxier.Failed names the services whose VIP could not be put up.
func (d *Door) Open(ctx context.Context, want lb.Snapshot, how proxier.How) error {
	if err := d.lock(ctx); err != nil {
		return err
	}
	defer d.unlock()
	p := &pass{d: d, s: d.state, how: how}
	failed, err := p.open(ctx, want)
	p.endEarly(want)
	if err := p.noteMarks(ctx); err != nil {
		d.log.Warn("it cannot be found out who else uses our mark", "error", err)
	}
	d.summary.Store(d.summarize())
	return outcome(failed, err)
}

// Plan tells what Shut and Open would do and changes nothing: they are the same
// functions, over a copy of the state and without the writes.
func (d *Door) Plan(ctx context.Context, want lb.Snapshot, how proxier.How) ([]proxier.Change, error) {
	if err := d.lock(ctx); err != nil {
		return nil, err
	}
	defer d.unlock()
	changes := []proxier.Change{}
	p := &pass{d: d, s: d.state.clone(), how: how, plan: &changes}
	failed, err := p.shut(ctx, want)
	if err == nil {
		left := want.Edit()
		for k := range failed {
			left.Delete(k)
		}
		var more map[lb.Key]error
		if more, err = p.open(ctx, left.Snapshot()); failed == nil {
			failed = more
		}
	}
	return changes, outcome(failed, err)
}

// Close frees what the Door holds. The kernel keeps the VIPs.
func (d *Door) Close() error { return nil }

// lock waits until nobody else uses the state.
func (d *Door) lock(ctx context.Context) error {
	select {
	case d.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *Door) unlock() { <-d.busy }

// outcome makes one error of both kinds. An error of the whole outweighs those of
// single services, which it only names.
func outcome(failed map[lb.Key]error, err error) error {
	switch {
	case len(failed) == 0:
		return err
	case err != nil:
		return fmt.Errorf("%w; besides, %d services failed", err, len(failed))
	}
	return &proxier.Failed{Services: failed}
}
