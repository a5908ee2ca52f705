package ipvs

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"vipd/lb"
)

// Op is what a Command does.
type Op uint8

// The operations. Add is refused where there is one, Edit and Delete where there is none.
const (
	AddServer Op = iota + 1
	EditServer
	DeleteServer // with its destinations
	AddDestination
	EditDestination
	DeleteDestination
)

// Command is one change. A command for a destination needs no more of Server than its
// Key, and a deletion no more of Destination than its Addr.
type Command struct {
	Op          Op
	Server      Server
	Destination Destination
}

// String spells the command as ipvsadm(8) takes it: "-a -t 192.0.2.10:80 -r
// 10.0.0.1:8080 -m -w 1".
func (c Command) String() string {
	switch c.Op {
	case AddServer:
		return "-A " + c.Server.String()
	case EditServer:
		return "-E " + c.Server.String()
	case DeleteServer:
		return "-D " + spellKey(c.Server.Key)
	case AddDestination:
		return "-a " + spellKey(c.Server.Key) + " -r " + c.Destination.String()
	case EditDestination:
		return "-e " + spellKey(c.Server.Key) + " -r " + c.Destination.String()
	case DeleteDestination:
		return "-d " + spellKey(c.Server.Key) + " -r " + c.Destination.Addr.String()
	}
	return fmt.Sprintf("operation %d of %s", c.Op, c.Server.Key)
}

// String spells the server as `ipvsadm -A` takes it: "-t 192.0.2.10:80 -s wrr".
func (s Server) String() string {
	b := spellKey(s.Key) + " -s " + s.Scheduler
	if names := s.Flags.names(s.Scheduler); names != "" {
		b += " -b " + names
	}
	if s.Flags&FlagOnePacket != 0 {
		b += " -o"
	}
	if s.Flags&FlagPersistent == 0 {
		return b
	}
	b += " -p " + strconv.Itoa(int(s.Timeout/time.Second))
	switch {
	case s.HostBits == 0:
	case s.Key.Addr.Is4():
		b += " -M " + net.IP(net.CIDRMask(32-int(s.HostBits), 32)).String()
	default:
		b += " -M " + strconv.Itoa(128-int(s.HostBits))
	}
	return b
}

// String spells the destination as `ipvsadm -a` takes it behind -r: "10.0.0.1:80 -m -w 1".
func (d Destination) String() string {
	var b strings.Builder
	b.WriteString(d.Addr.String() + " " + d.Forward.option())
	fmt.Fprintf(&b, " -w %d", d.Weight)
	if d.Upper != 0 || d.Lower != 0 {
		fmt.Fprintf(&b, " -x %d -y %d", d.Upper, d.Lower)
	}
	if d.Forward == Tunnel {
		switch d.Tunnel {
		case IPIP:
		case GUE:
			fmt.Fprintf(&b, " --tun-type gue --tun-port %d", d.TunnelPort)
		case GRE:
			b.WriteString(" --tun-type gre")
		default:
			fmt.Fprintf(&b, " --tun-type %d", d.Tunnel)
		}
		b.WriteString(map[uint16]string{1: " --tun-csum", 2: " --tun-remcsum"}[d.TunnelFlags])
	}
	return b.String()
}

func (m Method) option() string {
	switch m {
	case Masquerade:
		return "-m"
	case Tunnel:
		return "-i"
	case DirectRoute:
		return "-g"
	}
	return fmt.Sprintf("(forwarding %d)", uint8(m))
}

func spellKey(k lb.Key) string {
	option := map[lb.Protocol]string{lb.TCP: "-t", lb.UDP: "-u", lb.SCTP: "--sctp-service"}[k.Protocol]
	if option == "" {
		option = k.Protocol.String()
	}
	return option + " " + netip.AddrPortFrom(k.Addr, k.Port).String()
}
