package ipvs

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
	"vipd/lb"
)

// The requests to IPVS. Numbers and layouts are those of linux/ip_vs.h; numbers are in
// the byte order of the machine but for ports, addresses and the IPv4 netmask.

const (
	familyName    = "IPVS"
	familyVersion = 1
	sizeofGenl    = 4 // struct genlmsghdr
)

// IPVS_CMD_*
const (
	cmdNewService = 1
	cmdSetService = 2
	cmdDelService = 3
	cmdGetService = 4
	cmdNewDest    = 5
	cmdSetDest    = 6
	cmdDelDest    = 7
	cmdGetDest    = 8
	cmdGetInfo    = 15
)

// IPVS_CMD_ATTR_*, IPVS_SVC_ATTR_*, IPVS_DEST_ATTR_*, IPVS_STATS_ATTR_* and
// IPVS_INFO_ATTR_*.
const (
	attrService = 1
	attrDest    = 2

	svcFamily   = 1
	svcProtocol = 2
	svcAddr     = 3
	svcPort     = 4
	svcMark     = 5
	svcSched    = 6
	svcFlags    = 7
	svcTimeout  = 8
	svcNetmask  = 9

	destAddr        = 1
	destPort        = 2
	destForward     = 3
	destWeight      = 4
	destUpper       = 5
	destLower       = 6
	destActive      = 7
	destInactive    = 8
	destPersistent  = 9
	destStats       = 10
	destFamily      = 11
	destStats64     = 12
	destTunnelType  = 13
	destTunnelPort  = 14
	destTunnelFlags = 15

	statsConnections = 1
	statsInPackets   = 2
	statsOutPackets  = 3
	statsInBytes     = 4
	statsOutBytes    = 5

	infoVersion = 1
	infoTable   = 2
)

// ops is the number of the kernel for each Op.
var ops = [...]uint8{
	AddServer: cmdNewService, EditServer: cmdSetService, DeleteServer: cmdDelService,
	AddDestination: cmdNewDest, EditDestination: cmdSetDest, DeleteDestination: cmdDelDest,
}

// writer is requests under construction, one behind the other.
type writer []byte

// message appends one message of a generic netlink family with what inside appends.
func (w *writer) message(family, flags uint16, cmd uint8, inside func()) {
	start := len(*w)
	*w = append(*w, make([]byte, unix.SizeofNlMsghdr)...)
	*w = append(*w, cmd, familyVersion, 0, 0)
	inside()
	binary.NativeEndian.PutUint32((*w)[start:], uint32(len(*w)-start))
	binary.NativeEndian.PutUint16((*w)[start+4:], family)
	binary.NativeEndian.PutUint16((*w)[start+6:], flags|unix.NLM_F_REQUEST)
}

func (w *writer) nest(kind uint16, inside func()) { linux.Nest((*[]byte)(w), kind, inside) }

func (w *writer) bytes(kind uint16, payload ...byte) {
	w.nest(kind, func() { *w = append(*w, payload...) })
}

func (w *writer) uint8(kind uint16, v uint8) { w.bytes(kind, v) }

func (w *writer) uint16(kind, v uint16) {
	w.nest(kind, func() { *w = binary.NativeEndian.AppendUint16(*w, v) })
}

func (w *writer) uint32(kind uint16, v uint32) {
	w.nest(kind, func() { *w = binary.NativeEndian.AppendUint32(*w, v) })
}

func (w *writer) port(kind, v uint16) {
	w.nest(kind, func() { *w = binary.BigEndian.AppendUint16(*w, v) })
}

func (w *writer) text(kind uint16, s string) {
	w.nest(kind, func() { *w = append(append(*w, s...), 0) })
}

// command appends one command.
func (w *writer) command(family uint16, c Command) {
	whole := c.Op == AddServer || c.Op == EditServer
	w.message(family, 0, ops[c.Op], func() {
		w.server(c.Server, whole)
		switch c.Op {
		case AddDestination, EditDestination:
			w.destination(c.Destination, true)
		case DeleteDestination:
			w.destination(c.Destination, false)
		}
	})
}

// server appends a server, or only what identifies it.
func (w *writer) server(s Server, whole bool) {
	w.nest(attrService, func() {
		w.uint16(svcFamily, addressFamily(s.Key.Addr))
		w.uint16(svcProtocol, uint16(s.Key.Protocol))
		w.bytes(svcAddr, s.Key.Addr.AsSlice()...)
		w.port(svcPort, s.Key.Port)
		if !whole {
			return
		}
		w.text(svcSched, s.Scheduler)
		w.nest(svcFlags, func() { // struct ip_vs_flags: flags, mask
			*w = binary.NativeEndian.AppendUint32(*w, uint32(s.Flags&flagsOurs))
			*w = binary.NativeEndian.AppendUint32(*w, uint32(flagsOurs))
		})
		w.uint32(svcTimeout, uint32(min(s.Timeout/time.Second, math.MaxUint32)))
		w.bytes(svcNetmask, s.netmask()...)
	})
}

// netmask is the mask of a client's address for IPv4, the length of its prefix for IPv6.
func (s Server) netmask() []byte {
	if s.Key.Addr.Is4() {
		return binary.BigEndian.AppendUint32(nil, ^uint32(0)<<min(s.HostBits, 32))
	}
	return binary.NativeEndian.AppendUint32(nil, 128-uint32(min(s.HostBits, 128)))
}

// destination appends a destination, or only what identifies it.
func (w *writer) destination(d Destination, whole bool) {
	w.nest(attrDest, func() {
		w.uint16(destFamily, addressFamily(d.Addr.Addr()))
		w.bytes(destAddr, d.Addr.Addr().AsSlice()...)
		w.port(destPort, d.Addr.Port())
		if !whole {
			return
		}
		w.uint32(destForward, uint32(d.Forward))
		w.uint32(destWeight, d.Weight)
		w.uint32(destUpper, d.Upper)
		w.uint32(destLower, d.Lower)
		if d.Forward == Tunnel {
			w.uint8(destTunnelType, uint8(d.Tunnel))
			w.port(destTunnelPort, d.TunnelPort)
			w.uint16(destTunnelFlags, d.TunnelFlags)
		}
	})
}

// listServers asks for all servers.
func listServers(family uint16) (w writer) {
	w.message(family, unix.NLM_F_DUMP, cmdGetService, func() {})
	return w
}

// getServer asks for one server.
func getServer(family uint16, k lb.Key) (w writer) {
	w.message(family, 0, cmdGetService, func() { w.server(Server{Key: k}, false) })
	return w
}

// listDestinations asks for the destinations of a server.
func listDestinations(family uint16, k lb.Key) (w writer) {
	w.message(family, unix.NLM_F_DUMP, cmdGetDest, func() { w.server(Server{Key: k}, false) })
	return w
}

// getInfo asks for the version, which every IPVS has.
func getInfo(family uint16) (w writer) {
	w.message(family, 0, cmdGetInfo, func() {})
	return w
}

// getFamily asks for the number of the family, which has the kernel load the module.
func getFamily() (w writer) {
	w.message(unix.GENL_ID_CTRL, 0, unix.CTRL_CMD_GETFAMILY, func() { w.text(unix.CTRL_ATTR_FAMILY_NAME, familyName) })
	return w
}

func addressFamily(a netip.Addr) uint16 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
