package main

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// guardName is an abstract unix socket (unix(7)). Such names belong to a network
// namespace, as do the rules and addresses that vipd makes, and the kernel frees
// them when the process ends, however it ends.
const guardName = "@vipd"

// single makes sure that no other vipd works on this network namespace. The
// result is held until the process is done.
func single() (net.Listener, error) {
	l, err := net.Listen("unix", guardName)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, errors.New("another vipd is running in this network namespace; stop it first")
	}
	if err != nil {
		return nil, fmt.Errorf("guard against a second vipd: %w", err)
	}
	return l, nil
}
