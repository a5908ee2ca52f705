package netfilter

import (
	"context"

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
