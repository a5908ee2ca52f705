package ipvs

import (
	"net/netip"
	"strings"
	"time"

	"vipd/lb"
)

// Server is a virtual server (a "service" of IPVS). It is comparable.
type Server struct {
	Key       lb.Key
	Scheduler string // as in ip_vs_NAME.ko: "wrr"; "none": it takes no connections
	Flags     Flags
	// Timeout is how long a client comes back to its destination, with FlagPersistent;
	// in whole seconds.
	Timeout time.Duration
	// HostBits is how many low bits of a client's address do not tell one client from
	// another, with FlagPersistent: 0 for one by one, 8 for an IPv4 /24.
	HostBits uint8
}

// Flags are what a virtual server does besides (IP_VS_SVC_F_*).
type Flags uint32

// The flags that userspace may set.
const (
	FlagPersistent Flags = 0x01 // a client comes back to its destination
	FlagOnePacket  Flags = 0x04 // every datagram is balanced by itself (UDP)
	FlagSched1     Flags = 0x08 // these three are the scheduler's
	FlagSched2     Flags = 0x10
	FlagSched3     Flags = 0x20

	flagsOurs = FlagPersistent | FlagOnePacket | FlagSched1 | FlagSched2 | FlagSched3
)

// The flags of the schedulers sh and mh.
const (
	FlagFallback = FlagSched1 // a destination that is full or has weight 0 is passed by
	FlagPort     = FlagSched2 // the client's port is hashed too
)

// Method is how packets get to a destination (IP_VS_CONN_F_FWD_MASK).
type Method uint8

// The methods. Local and Bypass are the kernel's own and only ever read.
const (
	Masquerade  Method = 0 // NAT of the destination address
	Local       Method = 1
	Tunnel      Method = 2 // in a packet of IP or UDP
	DirectRoute Method = 3 // as it is, to the destination's MAC address
	Bypass      Method = 4
)

// TunnelType is what a tunnelled packet travels in (IP_VS_CONN_F_TUNNEL_TYPE_*).
type TunnelType uint8

// The types. Kernels before 5.2 know IPIP alone, and ignore the others silently: see
// Support.
const (
	IPIP TunnelType = 0
	GUE  TunnelType = 1 // generic UDP encapsulation; needs a port
	GRE  TunnelType = 2
)

// Destination is a destination of a virtual server (a "real server"). It is comparable.
type Destination struct {
	Addr         netip.AddrPort
	Forward      Method
	Weight       uint32 // 0: no new connections; the kernel takes 2147483647 at most
	Upper, Lower uint32 // connections at which it is full, and is no longer; 0: no limit
	Tunnel       TunnelType
	TunnelPort   uint16
	TunnelFlags  uint16 // IP_VS_TUNNEL_ENCAP_FLAG_*: 1 checksum, 2 remote checksum
}

// Stats is what has passed, both ways.
type Stats struct {
	Connections, InPackets, OutPackets, InBytes, OutBytes uint64
}

// Entry is a destination as it was read.
type Entry struct {
	Destination
	Active     uint32 // established connections
	Inactive   uint32 // in any other state, and all those of UDP
	Persistent uint32 // templates: clients that are to come back
	Stats      Stats
}

// names spells flags as ipvsadm does; the scheduler says what its own ones mean.
func (f Flags) names(scheduler string) string {
	own := []string{"flag-1", "flag-2", "flag-3"}
	if scheduler == "sh" || scheduler == "mh" {
		own[0], own[1] = scheduler+"-fallback", scheduler+"-port"
	}
	var names []string
	for i, bit := range []Flags{FlagSched1, FlagSched2, FlagSched3} {
		if f&bit != 0 {
			names = append(names, own[i])
		}
	}
	return strings.Join(names, ",")
}
