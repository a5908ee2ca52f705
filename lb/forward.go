package lb

import (
	"fmt"
	"strconv"
)

// Forward is how packets get from this host to a backend.
type Forward uint8

// The ways of forwarding. With ForwardDR and ForwardTunnel the packet still has the
// VIP and its port as the destination when it reaches the backend, which has to
// have the VIP and answers the client itself. So the port of a backend is that of
// the service, and nothing is ever masqueraded.
const (
	ForwardNAT    Forward = iota // the destination becomes the backend's; the answers come back through this host
	ForwardDR                    // direct routing: only the link-layer address is the backend's
	ForwardTunnel                // the packet travels inside another one, see Tunnel
)

// ParseForward reads the name of a way of forwarding.
func ParseForward(s string) (Forward, error) {
	for f := ForwardNAT; f <= ForwardTunnel; f++ {
		if s == f.String() {
			return f, nil
		}
	}
	return 0, fmt.Errorf("unknown way of forwarding %q; use nat, dr or tunnel", s)
}

// String returns the name, as the TOML file spells it.
func (f Forward) String() string {
	switch f {
	case ForwardNAT:
		return "nat"
	case ForwardDR:
		return "dr"
	case ForwardTunnel:
		return "tunnel"
	}
	return "forward-" + strconv.Itoa(int(f))
}

// MarshalText writes the name.
func (f Forward) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads the name.
func (f *Forward) UnmarshalText(text []byte) (err error) {
	*f, err = ParseForward(string(text))
	return err
}

// Tunnel is the kind of packet in which those of a service with ForwardTunnel
// travel. For other services it is the zero Tunnel.
type Tunnel struct {
	Type TunnelType `json:"type"`
	Port uint16     `json:"port,omitempty"` // UDP destination port of TunnelGUE; 0 for TunnelIPIP
}

// TunnelType is a way of encapsulation.
type TunnelType uint8

// The types of tunnels.
const (
	TunnelIPIP TunnelType = iota // IP in IP (RFC 2003), IPv6 in IPv6 (RFC 2473)
	TunnelGUE                    // Generic UDP Encapsulation, with its variant 0 header
)

// ParseTunnelType reads the name of a type of tunnel.
func ParseTunnelType(s string) (TunnelType, error) {
	for t := TunnelIPIP; t <= TunnelGUE; t++ {
		if s == t.String() {
			return t, nil
		}
	}
	return 0, fmt.Errorf("unknown tunnel %q; use ipip or gue", s)
}

// String returns the name, as the TOML file spells it.
func (t TunnelType) String() string {
	switch t {
	case TunnelIPIP:
		return "ipip"
	case TunnelGUE:
		return "gue"
	}
	return "tunnel-" + strconv.Itoa(int(t))
}

// MarshalText writes the name.
func (t TunnelType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads the name.
func (t *TunnelType) UnmarshalText(text []byte) (err error) {
	*t, err = ParseTunnelType(string(text))
	return err
}
