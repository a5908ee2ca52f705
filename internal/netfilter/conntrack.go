package netfilter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"golang.org/x/sys/unix"

	"vipd/lb"
)

// wideFrom is how many services it takes until one dump of all entries of a
// protocol is cheaper than a dump for each, which makes the kernel walk the whole
// table every time. (Measured at 100,000 entries: 52 ms a walk that hands over
// next to nothing, 630 ms one that hands over all.)
const wideFrom = 16

// Eviction names flows that have to go: all connections that clients made to
// Key and that were sent to Backend. If Backend is Key's own address and port
// it means those that were sent to nobody: the flows that a client began before
// the service had a backend.
type Eviction struct {
	Key     lb.Key
	Backend netip.AddrPort
	Way     Way // of those flows; of what was sent to nobody always ByAny
}

// Way is what sent a flow to its backend. Two modes may serve one service with the
// same backends at a time, while it moves from one to the other: what the one has
// drained is not the other's.
type Way byte

// The ways. The kernel notes in an entry that the table nat changed its destination
// (IPS_DST_NAT of nf_conntrack_common.h), and nothing of the kind when IPVS did.
const (
	ByAny Way = iota
	ByNAT
	ByIPVS
)

// way returns what sent a flow to its backend; ByAny if it was sent to nobody.
func (f *flow) way() Way {
	switch {
	case f.backend() == f.orig.dst:
		return ByAny
	case f.status&statusDstNAT != 0:
		return ByNAT
	}
	return ByIPVS
}

// Evicted counts what an eviction did.
type Evicted struct {
	Seen    int // flows that the kernel handed over
	Deleted int // conntrack entries deleted
	Poked   int // TCP connections whose ends were made to reset; see poke.go
}

// Add adds the counts of o.
func (e *Evicted) Add(o Evicted) {
	e.Seen += o.Seen
	e.Deleted += o.Deleted
	e.Poked += o.Poked
}

// Conntrack ends flows of the network namespace in which it was opened. What it
// finds is filtered in the kernel (Linux 5.8) and read as a stream, so memory
// does not grow with the table. Every entry is deleted by its whole tuple and its
// id; TCP connections are reset at both ends as well (poke.go). A Conntrack
// belongs to one goroutine.
type Conntrack struct {
	log    *slog.Logger
	writer *nfSocket
	poker  *poker // nil: not opened yet, or not allowed
	noPoke error  // why it is not allowed
}

// OpenConntrack opens the line to the kernel. It needs CAP_NET_ADMIN, and
// CAP_NET_RAW for the resets; without that connections end at their next packet,
// which is said once in the log.
func OpenConntrack(log *slog.Logger) (*Conntrack, error) {
	s, err := openSocket()
	if err != nil {
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	return &Conntrack{log: log, writer: s}, nil
}

// Close frees the sockets.
func (c *Conntrack) Close() error { return errors.Join(c.writer.Close(), c.poker.close()) }

// Evict ends the flows that the evictions name, and no others. It goes on with
// the next dump after an error; calling it again is safe.
func (c *Conntrack) Evict(ctx context.Context, evictions ...Eviction) (Evicted, error) {
	wanted := make(map[Eviction]bool, len(evictions))
	for _, e := range evictions {
		wanted[e] = true
	}
	var done Evicted
	var errs []error
	for _, f := range dumps(wanted) {
		n, err := c.evict(ctx, f, func(f *flow) bool {
			_, found := named(wanted, f)
			return found
		})
		done.Add(n)
		errs = append(errs, err)
	}
	return done, errors.Join(errs...)
}

// Sweep ends the flows of a protocol whose connmark has a bit of mark and which
// one of keeps refuses: that of the way that sent it to its backend, if there is one,
// or that of ByAny; of a flow that was sent to nobody, each of them. A Keep is asked by
// what the client talks to and by who answers, which is then the same.
func (c *Conntrack) Sweep(ctx context.Context, proto lb.Protocol, mark uint32, keeps map[Way]Keep) (Evicted, error) {
	var done Evicted
	var errs []error
	for _, family := range Families {
		f := filter{family: family, proto: proto, mark: mark}
		n, err := c.evict(ctx, f, func(f *flow) bool {
			return f.orig.proto == proto && f.mark&mark != 0 && refused(f, keeps)
		})
		done.Add(n)
		errs = append(errs, err)
	}
	return done, errors.Join(errs...)
}

// refused reports whether one of keeps that judge the flow refuses it.
func refused(f *flow, keeps map[Way]Keep) bool {
	way := f.way()
	for of, keep := range keeps {
		if (of == way || of == ByAny || way == ByAny) && !keep(f.key(), f.backend()) {
			return true
		}
	}
	return false
}

// dumps returns the filters of the dumps that together find all that is wanted:
// one for each service, narrowed to the backend if there is one only, or one for
// all services of a family and protocol if they are many.
func dumps[V any](wanted map[Eviction]V) []filter {
	type table struct {
		family Family
		proto  lb.Protocol
	}
	tables := map[table]map[lb.Key]filter{}
	for e := range wanted {
		t := table{FamilyOf(e.Key.Addr), e.Key.Protocol}
		if tables[t] == nil {
			tables[t] = map[lb.Key]filter{}
		}
		f := filter{family: t.family, proto: t.proto, to: e.Key.AddrPort(), backend: e.Backend}
		if other, twice := tables[t][e.Key]; twice && other.backend != e.Backend {
			f.backend = netip.AddrPort{}
		}
		tables[t][e.Key] = f
	}
	var all []filter
	for t, services := range tables {
		if len(services) >= wideFrom {
			all = append(all, filter{family: t.family, proto: t.proto})
			continue
		}
		for _, f := range services {
			all = append(all, f)
		}
	}
	return all
}

// evict ends the flows that pass f and are matched. If the dump was interrupted
// it is made once more.
func (c *Conntrack) evict(ctx context.Context, f filter, match func(*flow) bool) (Evicted, error) {
	done, err := c.pass(ctx, f, match)
	if interrupted(err) {
		var again Evicted
		again, err = c.pass(ctx, f, match)
		done.Add(again)
	}
	if err != nil {
		return done, fmt.Errorf("conntrack: flows of %s: %w", f, err)
	}
	return done, nil
}

func (c *Conntrack) pass(ctx context.Context, f filter, match func(*flow) bool) (done Evicted, err error) {
	done.Seen, err = eachFlow(ctx, f, func(f *flow) error {
		if !match(f) {
			return nil
		}
		return c.end(ctx, f, &done)
	})
	return done, err
}

// end deletes one flow, and pokes the ends of a live TCP connection. A poke that
// fails is no error: there is nothing left to try again.
func (c *Conntrack) end(ctx context.Context, f *flow, done *Evicted) error {
	poke := f.alive() && c.mayPoke()
	if poke {
		if err := c.poker.pace(ctx); err != nil {
			return err
		}
	}
	switch err := c.writer.request(ctx, deleteRequest(f)); {
	case errors.Is(err, unix.ENOENT):
		return nil // it ended meanwhile, or its tuple belongs to another by now
	case err != nil:
		return fmt.Errorf("delete %s from %s: %w", f.key(), f.orig.src, err)
	}
	done.Deleted++
	if !poke {
		return nil
	}
	if err := c.pokeBoth(ctx, f); err != nil {
		c.log.Debug("a drained connection ends only at its next packet",
			"service", f.key(), "backend", f.backend(), "client", f.orig.src, "error", err)
		return nil
	}
	done.Poked++
	return nil
}

// pokeBoth makes both ends of a deleted connection reset: each gets its poke from
// where its peer was.
func (c *Conntrack) pokeBoth(ctx context.Context, f *flow) error {
	err := c.poke(ctx, f, f.orig, f.orig.dst, f.orig.src)
	if f.backend() == f.orig.dst {
		return err // sent to nobody: there is no other end
	}
	inside := tuple{f.orig.proto, f.reply.dst, f.reply.src}
	return errors.Join(err, c.poke(ctx, f, inside, inside.src, inside.dst))
}

// poke sends one poke, through an entry of the tuple t. If an entry of it stands
// there already it belongs to a new connection, which is left alone.
func (c *Conntrack) poke(ctx context.Context, f *flow, t tuple, from, to netip.AddrPort) error {
	err := c.writer.request(ctx, createRequest(t, f.mark, f.zone, pokeLifetime))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make the entry for a poke from %s to %s: %w", from, to, err)
	}
	return c.poker.poke(from, to)
}

// mayPoke opens the poker when it is first needed.
func (c *Conntrack) mayPoke() bool {
	if c.poker == nil && c.noPoke == nil {
		c.poker, c.noPoke = openPoker()
		if c.noPoke != nil {
			c.log.Warn("drained TCP connections end only at their next packet: raw sockets are not allowed; give vipd CAP_NET_RAW",
				"error", c.noPoke)
		}
	}
	return c.poker != nil
}

// String names what a dump is about.
func (f filter) String() string {
	if !f.to.IsValid() {
		return fmt.Sprintf("%s %s", f.family, f.proto)
	}
	return lb.Key{Addr: f.to.Addr(), Port: f.to.Port(), Protocol: f.proto}.String()
}
