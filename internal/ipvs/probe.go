package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"vipd/internal/linux"
	"vipd/lb"
)

// Support is what the IPVS of this kernel can do.
type Support struct {
	Yes     bool
	Reason  string // why not, and what to do; else what there is to know, if anything
	Version string // "1.2.1"
	IPv6    bool   // virtual servers of IPv6
	GUE     bool   // tunnels of type GUE (Linux 5.2); older kernels take IPIP in its place silently
}

// Probe finds out whether the kernel has IPVS that works: in a network namespace that is
// made for that and goes with it, a virtual server is made, read back and removed. Where
// no namespace may be made IPVS is asked for its version, which is no proof that it
// works, but that it is there. The module of IPVS stays loaded. An error says that it
// could not be found out: ErrPermission, say.
func Probe(ctx context.Context) (Support, error) {
	var found Support
	err := linux.InScratch(func() (err error) {
		found, err = tryOut(ctx)
		return err
	})
	if errors.Is(err, linux.ErrNoScratch) {
		found, err = lookAt(ctx, err)
	}
	if errors.Is(err, ErrUnsupported) {
		return Support{Reason: unsupported().Error()}, nil
	}
	if err != nil {
		return Support{}, fmt.Errorf("find out whether the kernel has IPVS: %w", err)
	}
	return found, nil
}

// lookAt asks IPVS without trying it out.
func lookAt(ctx context.Context, why error) (Support, error) {
	h, err := Open(ctx)
	if err != nil {
		return Support{}, err
	}
	version, _, err := h.Info(ctx)
	s := Support{Yes: err == nil, Version: version, IPv6: true, GUE: true,
		Reason: fmt.Sprintf("IPVS %s is there, but could not be tried out (%v)", version, why)}
	return s, errors.Join(err, h.Close())
}

// tryOut makes and reads virtual servers. The thread is in a namespace of its own.
func tryOut(ctx context.Context) (s Support, err error) {
	h, err := Open(ctx)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	if err := linux.Loopback(); err != nil { // without a table of local addresses every destination is refused
		return s, err
	}
	if s.Version, _, err = h.Info(ctx); err != nil {
		return s, err
	}
	entry, err := h.trial(ctx, "192.0.2.1", "192.0.2.2")
	if err != nil {
		return s, fmt.Errorf("IPVS %s does not work: %w", s.Version, err)
	}
	s.Yes, s.GUE = true, entry.Tunnel == GUE
	_, err6 := h.trial(ctx, "2001:db8::1", "2001:db8::2")
	if s.IPv6 = err6 == nil; !s.IPv6 {
		s.Reason = fmt.Sprintf("IPVS does not serve IPv6 (%v)", err6)
	}
	return s, nil
}

// trial makes a virtual server with a destination, reads back both and removes them. The
// scheduler "none" is in every IPVS, and loads no module.
func (h *Handle) trial(ctx context.Context, vip, backend string) (Entry, error) {
	server := Server{Key: lb.Key{Addr: netip.MustParseAddr(vip), Port: 80, Protocol: lb.TCP}, Scheduler: "none",
		Flags: FlagPersistent, Timeout: 5 * time.Minute}
	destination := Destination{Addr: netip.AddrPortFrom(netip.MustParseAddr(backend), 80), Forward: Tunnel, Weight: 1,
		Tunnel: GUE, TunnelPort: 6080}
	errs := h.Do(ctx, []Command{{Op: AddServer, Server: server}, {Op: AddDestination, Server: server, Destination: destination}})
	if errs != nil {
		return Entry{}, errors.Join(errs...)
	}
	var entries []Entry
	have, _, err := h.Server(ctx, server.Key)
	if err == nil {
		err = h.Destinations(ctx, server.Key, func(e Entry) error { entries = append(entries, e); return nil })
	}
	switch {
	case err != nil:
		return Entry{}, err
	case have != server || len(entries) != 1 || entries[0].Addr != destination.Addr:
		return Entry{}, fmt.Errorf("what was written was %s -r %s, and what is read is %s -r %v", server, destination, have, entries)
	}
	return entries[0], errors.Join(h.Do(ctx, []Command{{Op: DeleteServer, Server: server}})...)
}
