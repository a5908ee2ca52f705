package ipvs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
	"vipd/lb"
)

// dumpAttempts is how often a dump that a change interrupted is made again.
const dumpAttempts = 5

// Handle is a line to the IPVS of the network namespace of the threads that use it,
// which must be one and the same. It may be used by several goroutines at a time, also
// by one that is being told what there is.
type Handle struct {
	family   atomic.Uint32 // the number of the generic netlink family
	messages atomic.Uint64

	mu   sync.Mutex
	idle []*linux.Socket
}

// Open opens the line, and has the kernel load the module of IPVS. It asks IPVS for its
// version to be sure that it is there and may be used. Errors: ErrUnsupported,
// ErrPermission.
func Open(ctx context.Context) (*Handle, error) {
	h := &Handle{}
	if _, err := h.renew(ctx); err != nil {
		return nil, fmt.Errorf("open IPVS: %w", err)
	}
	if _, _, err := h.Info(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open IPVS: %w", err), h.Close())
	}
	return h, nil
}

// Close frees the sockets. Nobody uses the Handle any more.
func (h *Handle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, s := range h.idle {
		errs = append(errs, s.Close())
	}
	h.idle = nil
	return errors.Join(errs...)
}

// Messages returns how many netlink messages have been sent.
func (h *Handle) Messages() uint64 { return h.messages.Load() }

// Info returns the version of IPVS, "1.2.1", and the size of its table of connections.
func (h *Handle) Info(ctx context.Context) (version string, connections int, err error) {
	err = h.ask(ctx, getInfo, func(body []byte) (err error) {
		version, connections, err = parseInfo(body)
		return err
	})
	if err != nil {
		return "", 0, fmt.Errorf("IPVS: %w", err)
	}
	return version, connections, nil
}

// Servers calls each for every virtual server that has an address, in no order, after
// one dump. An error of each ends it and is returned.
func (h *Handle) Servers(ctx context.Context, each func(Server) error) error {
	var all []Server
	err := h.dump(ctx, func() { all = all[:0] }, listServers, func(body []byte) error {
		s, ok, err := parseServer(body)
		if ok {
			all = append(all, s)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list the virtual servers of IPVS: %w", err)
	}
	for _, s := range all {
		if err := each(s); err != nil {
			return err
		}
	}
	return nil
}

// Server returns one virtual server; false if there is none. It is one message.
func (h *Handle) Server(ctx context.Context, k lb.Key) (s Server, found bool, err error) {
	err = h.ask(ctx, func(family uint16) writer { return getServer(family, k) }, func(body []byte) (err error) {
		s, found, err = parseServer(body)
		return err
	})
	if errors.Is(err, unix.ESRCH) {
		return Server{}, false, nil
	}
	if err != nil {
		return Server{}, false, fmt.Errorf("read the virtual server %s: %w", k, err)
	}
	return s, found, nil
}

// Destinations calls each for every destination of a virtual server, in no order, after
// one dump. A server that does not exist has none. An error of each ends it and is
// returned.
func (h *Handle) Destinations(ctx context.Context, k lb.Key, each func(Entry) error) error {
	var all []Entry
	list := func(family uint16) writer { return listDestinations(family, k) }
	err := h.dump(ctx, func() { all = all[:0] }, list, func(body []byte) error {
		e, err := parseEntry(body, addressFamily(k.Addr))
		if err == nil {
			all = append(all, e)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list the destinations of %s: %w", k, err)
	}
	for _, e := range all {
		if err := each(e); err != nil {
			return err
		}
	}
	return nil
}

// dump makes one request and hands each answer to read; reset forgets what was read
// before it is made again.
func (h *Handle) dump(ctx context.Context, reset func(), request func(family uint16) writer, read func(body []byte) error) error {
	var err error
	for range dumpAttempts {
		reset()
		err = h.current(ctx, func(family uint16) error {
			return h.on(func(s *linux.Socket) error {
				h.messages.Add(1)
				if err := s.Send(request(family)); err != nil {
					return err
				}
				return s.Answers(ctx, read)
			})
		})
		if !errors.Is(err, linux.ErrInterrupted) {
			break
		}
	}
	return err
}

// ask makes a request that has one answer: read gets it, unless it is an error.
func (h *Handle) ask(ctx context.Context, request func(family uint16) writer, read func(body []byte) error) error {
	return h.current(ctx, func(family uint16) error {
		return h.on(func(s *linux.Socket) error {
			h.messages.Add(1)
			return s.Ask(ctx, request(family), read)
		})
	})
}

// current runs f with the number of the family. ENOENT may mean that this is not its
// number any more, since the module was unloaded: f runs once more with the new one.
func (h *Handle) current(ctx context.Context, f func(family uint16) error) error {
	err := f(uint16(h.family.Load()))
	if errors.Is(err, unix.ENOENT) {
		changed, renewErr := h.renew(ctx)
		if renewErr != nil {
			return renewErr
		}
		if changed {
			err = f(uint16(h.family.Load()))
		}
	}
	if errors.Is(err, unix.EPERM) {
		return ErrPermission
	}
	return err
}

// renew asks for the number of the family and tells whether it is another one. The
// kernel loads the module for that, if it can.
func (h *Handle) renew(ctx context.Context) (changed bool, err error) {
	var family uint16
	err = h.on(func(s *linux.Socket) error {
		h.messages.Add(1)
		return s.Ask(ctx, getFamily(), func(body []byte) (err error) {
			family, err = parseFamily(body)
			return err
		})
	})
	if errors.Is(err, unix.ENOENT) {
		return false, unsupported()
	}
	if err != nil {
		return false, err
	}
	return h.family.Swap(uint32(family)) != uint32(family), nil
}

// on runs f with a socket that nobody else uses. After an error the socket may hold the
// rest of an answer, so it goes.
func (h *Handle) on(f func(*linux.Socket) error) error {
	s, err := h.take()
	if err != nil {
		return err
	}
	if err := f(s); err != nil {
		return errors.Join(err, s.Close())
	}
	h.mu.Lock()
	h.idle = append(h.idle, s)
	h.mu.Unlock()
	return nil
}

func (h *Handle) take() (*linux.Socket, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.idle); n > 0 {
		s := h.idle[n-1]
		h.idle = h.idle[:n-1]
		return s, nil
	}
	return linux.OpenSocket(unix.NETLINK_GENERIC)
}
