package netfilter

import (
	"cmp"
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
)

// nfSocket is a socket for netfilter. It belongs to one goroutine.
type nfSocket struct{ *linux.Socket }

func openSocket() (*nfSocket, error) {
	s, err := linux.OpenSocket(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	return &nfSocket{s}, nil
}

// request sends m and waits for its acknowledgement.
func (s *nfSocket) request(ctx context.Context, m message) error {
	if err := s.Send(m); err != nil {
		return err
	}
	return s.Answers(ctx, func([]byte) error { return nil })
}

// interrupted reports whether a dump is to be made again.
func interrupted(err error) bool {
	return errors.Is(err, linux.ErrInterrupted) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS)
}

// eachFlow dumps the flows that pass f, and returns how many the kernel handed over.
// What each gets is valid until it returns. Entries that were made for pokes are left
// out; one that cannot be read is an error, after all others.
func eachFlow(ctx context.Context, f filter, each func(*flow) error) (seen int, err error) {
	// A socket for each dump: one that is left before its end cannot be used again.
	reader, err := openSocket()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	if err := reader.Send(dumpRequest(f)); err != nil {
		return 0, err
	}
	var flow flow    // one for all: there could be a million
	var unread error // the first one
	err = reader.Answers(ctx, func(body []byte) error {
		seen++
		var err error
		if flow, err = parseFlow(body); err != nil {
			unread = cmp.Or(unread, err)
			return nil
		}
		if flow.ofPoke() {
			return nil
		}
		return each(&flow)
	})
	return seen, errors.Join(err, unread)
}
