package ipvs

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	vs "vipd/internal/ipvs"
	"vipd/lb"
	"vipd/proxier"
)

// Kernel is the line to IPVS in one network namespace. *ipvs.Handle is one.
type Kernel interface {
	// Do carries out commands in their order, and returns an error for each that
	// failed, at its index; nil if none did.
	Do(ctx context.Context, commands []vs.Command) []error
	// Servers calls each for every virtual server, strangers' as well.
	Servers(ctx context.Context, each func(vs.Server) error) error
	// Server returns the virtual server of a key, and whether there is one.
	Server(ctx context.Context, k lb.Key) (vs.Server, bool, error)
	// Destinations calls each for every destination of a virtual server.
	Destinations(ctx context.Context, k lb.Key, each func(vs.Entry) error) error
}

// Options is what a Proxier needs.
type Options struct {
	Kernel  Kernel
	Journal Journal
	// Witness returns the keys that vipd was serving by IPVS when the program started,
	// by what else tells it than the Journal: the set of open VIP:ports. It is asked
	// once, if the first read finds virtual servers that the Journal does not know, and
	// those of its keys are taken for ours. The door shuts what is not wanted before
	// the first pass gets here: so read the set before. It may be nil.
	Witness func(ctx context.Context) (map[lb.Key]bool, error)
	// Evict ends the flows of backends that are gone, those of IPVS alone
	// (netfilter.ByIPVS): the same backends may be served by another mode, too. It
	// outlives the Proxier. It may be nil.
	Evict Evictor
	// Settings are the sysctls of IPVS, seen to whenever the kernel is read while there
	// are services, and before the first one. It may be nil.
	Settings *vs.Settings
	// NoGUE says that the kernel takes IPIP in the place of GUE, silently (vs.Support):
	// services that want it are quarantined.
	NoGUE bool
	Log   *slog.Logger
}

// Proxier serves services of both families by IPVS. Sync, Plan and Close are for one
// goroutine, Watch and Counters for any.
type Proxier struct {
	Options

	mu      sync.Mutex // held by Sync for all of a pass
	memory  memory
	passes  uint64 // begun so far
	drifted bool   // Watch told of a drift, and no pass has read the kernel since
	swept   bool
	settled bool // the sysctls have been seen to
}

var (
	_ proxier.Proxier = (*Proxier)(nil)
	_ proxier.Watcher = (*Proxier)(nil)
	_ proxier.Counter = (*Proxier)(nil)
)

// New returns a Proxier. It asks nothing of the kernel yet.
func New(o Options) *Proxier { return &Proxier{Options: o} }

// Sync implements proxier.Proxier.
func (p *Proxier) Sync(ctx context.Context, want lb.Snapshot, how proxier.How) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.passes++
	if err := p.enforce(ctx, want, how); err != nil {
		return err
	}
	pass := p.pass(&p.memory, want, how)
	if err := pass.run(ctx); err != nil {
		p.memory.forget()
		return err
	}
	if pass.fresh {
		p.drifted = false
	}
	if pass.commands > 0 {
		p.Log.Debug("virtual servers written", "commands", pass.commands)
	}
	p.sweep(how)
	return pass.failures()
}

// Plan implements proxier.Proxier. It reads the kernel, whatever how says. What the
// kernel would refuse (a scheduler that it does not have) it does not find out.
func (p *Proxier) Plan(ctx context.Context, want lb.Snapshot, how proxier.How) ([]proxier.Change, error) {
	how.Fresh = true
	memory := p.memory // reading makes new maps
	pass := p.pass(&memory, want, how)
	rehearsal := &rehearsal{Kernel: p.Kernel}
	rehearsal.settings(p.Settings, want)
	pass.kernel, pass.evict, pass.dry = rehearsal, nil, true
	if err := pass.run(ctx); err != nil {
		return nil, err
	}
	return rehearsal.changes, pass.failures()
}

// Close implements proxier.Proxier. The line to the kernel belongs to its owner.
func (p *Proxier) Close() error { return nil }

func (p *Proxier) pass(m *memory, want lb.Snapshot, how proxier.How) *pass {
	return &pass{kernel: p.Kernel, journal: p.Journal, witness: p.Witness, evict: p.Evict, log: p.Log,
		noGUE: p.NoGUE, memory: m, want: want, how: how, failed: map[lb.Key]error{}}
}

// sweep ends, once after the start, the flows to backends that nobody knows any
// more: what went while no vipd was running.
func (p *Proxier) sweep(how proxier.How) {
	if p.swept || !how.Prune || p.Evict == nil {
		return
	}
	p.swept = true
	p.Evict.Sweep(p.keep)
}

// keep returns the answer to what a sweep asks. It waits for the end of a pass.
func (p *Proxier) keep(k lb.Key, backend netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.memory.keeps(k, backend)
}

// failures returns the services that are not in place, as an error.
func (p *pass) failures() error {
	if len(p.failed) == 0 {
		return nil
	}
	return &proxier.Failed{Services: p.failed}
}

// strangerError is the error of a service whose place is taken.
func strangerError(k lb.Key) error {
	return fmt.Errorf("a virtual server stands there that is not vipd's; remove it (ipvsadm %s) or take the service out",
		vs.Command{Op: vs.DeleteServer, Server: vs.Server{Key: k}})
}
