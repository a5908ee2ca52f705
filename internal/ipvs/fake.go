package ipvs

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vipd/lb"
)

// Fake is IPVS in memory, for tests. It is as strict as the kernel: what exists is not
// made again, what does not exist is not edited or deleted, a destination needs its
// server, a server its scheduler, and what is read has what was written and no more. Its
// methods may be used at the same time.
type Fake struct {
	// Fail injects a failure before a command takes effect; may be nil. An error that
	// is no unix.Errno is one of the line: nobody knows what became of the command.
	Fail func(Command) error
	// FailRead injects a failure of Servers, Server and Destinations; may be nil.
	FailRead func() error

	mu       sync.Mutex
	servers  map[lb.Key]*fakeServer
	lacks    map[string]bool // schedulers
	messages uint64
}

type fakeServer struct {
	Server
	entries map[netip.AddrPort]Entry
}

// NewFake returns a kernel without virtual servers that has every scheduler.
func NewFake() *Fake { return &Fake{servers: map[lb.Key]*fakeServer{}, lacks: map[string]bool{}} }

// Messages returns how many netlink messages the same would have cost.
func (f *Fake) Messages() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.messages
}

// Dump returns what stands, sorted, in the words of ipvsadm, each server before its
// destinations: "-A -t 192.0.2.10:80 -s wrr", "-a -t 192.0.2.10:80 -r 10.0.0.1:80 -m -w 1".
func (f *Fake) Dump() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for _, k := range slices.SortedFunc(maps.Keys(f.servers), lb.Key.Compare) {
		s := f.servers[k]
		lines = append(lines, Command{Op: AddServer, Server: s.Server}.String())
		for _, a := range slices.SortedFunc(maps.Keys(s.entries), netip.AddrPort.Compare) {
			lines = append(lines, Command{Op: AddDestination, Server: s.Server, Destination: s.entries[a].Destination}.String())
		}
	}
	return lines
}

// Connect sets the connections of a destination, if there is one.
func (f *Fake) Connect(k lb.Key, to netip.AddrPort, active, inactive uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.servers[k]; s != nil {
		if e, found := s.entries[to]; found {
			e.Active, e.Inactive = active, inactive
			s.entries[to] = e
		}
	}
}

// Lack takes the module of a scheduler away, or brings it.
func (f *Fake) Lack(scheduler string, lacks bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lacks[scheduler] = lacks
}

// Clear removes everything, as `ipvsadm -C` does.
func (f *Fake) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.servers)
}

// Do carries out commands as a Handle does.
func (f *Fake) Do(ctx context.Context, commands []Command) []error {
	var errs []error
	for i, c := range commands {
		err := f.do(ctx, c)
		if err == nil {
			continue
		}
		if errs == nil {
			errs = make([]error, len(commands))
		}
		errs[i] = c.failure(err)
	}
	return errs
}

func (f *Fake) do(ctx context.Context, c Command) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.Fail != nil {
		if err := f.Fail(c); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.messages++
	switch c.Op {
	case AddServer, EditServer, DeleteServer:
		return f.server(c)
	case AddDestination, EditDestination, DeleteDestination:
		return f.destination(c)
	}
	return unix.EINVAL
}

func (f *Fake) server(c Command) error {
	k := c.Server.Key
	old := f.servers[k]
	switch {
	case c.Op == AddServer && old != nil:
		return unix.EEXIST
	case c.Op != AddServer && old == nil:
		return unix.ESRCH
	case c.Op == DeleteServer:
		delete(f.servers, k)
		return nil
	}
	if err := f.checkServer(c.Server); err != nil {
		return err
	}
	if old == nil {
		old = &fakeServer{entries: map[netip.AddrPort]Entry{}}
		f.servers[k] = old
	}
	old.Server = c.Server
	return nil
}

// checkServer refuses what the kernel refuses, and what it would take and change.
func (f *Fake) checkServer(s Server) error {
	bits := uint8(s.Key.Addr.BitLen())
	switch {
	case !s.Key.Addr.IsValid() || s.Key.Addr.Is4In6() || s.Key.Port == 0:
		return unix.EINVAL
	case s.Scheduler == "" || len(s.Scheduler) > 15 || f.lacks[s.Scheduler]:
		return unix.ENOENT
	case s.Flags&^flagsOurs != 0, s.Timeout%time.Second != 0, s.Timeout < 0:
		return fmt.Errorf("%s would not be read as it is written", s)
	case s.HostBits >= bits:
		return unix.EINVAL
	}
	return nil
}

func (f *Fake) destination(c Command) error {
	s := f.servers[c.Server.Key]
	if s == nil {
		return unix.ESRCH
	}
	to := c.Destination.Addr
	old, found := s.entries[to]
	switch {
	case c.Op == AddDestination && found:
		return unix.EEXIST
	case c.Op != AddDestination && !found:
		return unix.ENOENT
	case c.Op == DeleteDestination:
		delete(s.entries, to)
		return nil
	}
	if err := checkDestination(s.Key, c.Destination); err != nil {
		return err
	}
	old.Destination = c.Destination
	s.entries[to] = old
	return nil
}

// checkDestination refuses what the kernel refuses, and what it would take and change.
func checkDestination(k lb.Key, d Destination) error {
	a := d.Addr.Addr()
	switch {
	case !a.IsValid(), a.Is4In6(), a.IsMulticast(), a.IsUnspecified(), a.IsLinkLocalUnicast() && a.Is6():
		return unix.EINVAL
	case a.Is4() != k.Addr.Is4() && d.Forward != Tunnel:
		return unix.EINVAL
	case d.Weight > 1<<31-1, d.Lower > d.Upper:
		return unix.ERANGE
	case d.Forward == Tunnel && d.Tunnel == GUE && d.TunnelPort == 0:
		return unix.EINVAL
	case d.Forward > Bypass, d.Forward != Tunnel && (d.Tunnel != 0 || d.TunnelPort != 0 || d.TunnelFlags != 0):
		return fmt.Errorf("%s would not be read as it is written", d)
	}
	return nil
}

// Servers calls each for every virtual server.
func (f *Fake) Servers(ctx context.Context, each func(Server) error) error {
	if err := f.read(ctx); err != nil {
		return fmt.Errorf("list the virtual servers of IPVS: %w", err)
	}
	f.mu.Lock()
	var all []Server
	for _, s := range f.servers {
		all = append(all, s.Server)
	}
	f.mu.Unlock()
	for _, s := range all {
		if err := each(s); err != nil {
			return err
		}
	}
	return nil
}

// Server returns one virtual server.
func (f *Fake) Server(ctx context.Context, k lb.Key) (Server, bool, error) {
	if err := f.read(ctx); err != nil {
		return Server{}, false, fmt.Errorf("read the virtual server %s: %w", k, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.servers[k]; s != nil {
		return s.Server, true, nil
	}
	return Server{}, false, nil
}

// Destinations calls each for every destination of a virtual server.
func (f *Fake) Destinations(ctx context.Context, k lb.Key, each func(Entry) error) error {
	if err := f.read(ctx); err != nil {
		return fmt.Errorf("list the destinations of %s: %w", k, err)
	}
	f.mu.Lock()
	var all []Entry
	if s := f.servers[k]; s != nil {
		all = slices.Collect(maps.Values(s.entries))
	}
	f.mu.Unlock()
	for _, e := range all {
		if err := each(e); err != nil {
			return err
		}
	}
	return nil
}

// read counts one message of a reader.
func (f *Fake) read(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.FailRead != nil {
		if err := f.FailRead(); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.messages++
	return nil
}
