package ipvs

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
	"vipd/lb"
)

func key(t testing.TB, s string) lb.Key {
	t.Helper()
	k, err := lb.ParseKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// servers are of every shape that vipd writes.
func servers(t testing.TB) map[string]Server {
	return map[string]Server{
		"plain":        {Key: key(t, "192.0.2.10:80"), Scheduler: "wrr"},
		"IPv6":         {Key: key(t, "[2001:db8::10]:53/udp"), Scheduler: "rr"},
		"SCTP":         {Key: key(t, "192.0.2.10:5000/sctp"), Scheduler: "lc"},
		"persistent":   {Key: key(t, "192.0.2.11:80"), Scheduler: "wlc", Flags: FlagPersistent, Timeout: 3 * time.Hour},
		"persistent 6": {Key: key(t, "[2001:db8::11]:80"), Scheduler: "wlc", Flags: FlagPersistent, Timeout: time.Second},
		"by network":   {Key: key(t, "192.0.2.12:80"), Scheduler: "wlc", Flags: FlagPersistent, Timeout: time.Minute, HostBits: 8},
		"by network 6": {Key: key(t, "[2001:db8::12]:80"), Scheduler: "wlc", Flags: FlagPersistent, Timeout: time.Minute, HostBits: 64},
		"flags":        {Key: key(t, "192.0.2.13:80"), Scheduler: "mh", Flags: FlagFallback | FlagPort},
		"one packet":   {Key: key(t, "192.0.2.13:53/udp"), Scheduler: "sh", Flags: FlagOnePacket | FlagFallback},
	}
}

// destinations are of every shape that vipd writes.
func destinations() map[string]Destination {
	at := netip.MustParseAddrPort
	return map[string]Destination{
		"nat":    {Addr: at("10.0.0.1:8080"), Weight: 1},
		"heavy":  {Addr: at("10.0.0.2:8080"), Weight: 65535},
		"drain":  {Addr: at("10.0.0.3:8080")},
		"IPv6":   {Addr: at("[fd00::1]:8080"), Weight: 3},
		"limits": {Addr: at("10.0.0.4:8080"), Weight: 1, Upper: 100, Lower: 80},
		"direct": {Addr: at("10.0.0.5:80"), Forward: DirectRoute, Weight: 1},
		"ipip":   {Addr: at("10.0.0.6:80"), Forward: Tunnel, Weight: 1},
		"gue":    {Addr: at("10.0.0.7:80"), Forward: Tunnel, Weight: 1, Tunnel: GUE, TunnelPort: 6080},
		"gue, checked": {Addr: at("[fd00::2]:80"), Forward: Tunnel, Weight: 1, Tunnel: GUE, TunnelPort: 6080,
			TunnelFlags: 1},
		"gre": {Addr: at("10.0.0.8:80"), Forward: Tunnel, Weight: 1, Tunnel: GRE},
	}
}

// body returns a message without its netlink header.
func body(w writer) []byte { return w[unix.SizeofNlMsghdr:] }

// What is written for a server is what is read of one: the kernel answers with the same
// attributes.
func TestAServerIsReadAsItIsWritten(t *testing.T) {
	for name, want := range servers(t) {
		t.Run(name, func(t *testing.T) {
			var w writer
			w.command(30, Command{Op: AddServer, Server: want})
			got, ok, err := parseServer(body(w))
			if err != nil || !ok || got != want {
				t.Errorf("read %+v, %v, %v; wrote %+v", got, ok, err, want)
			}
			if n := binary.NativeEndian.Uint32(w); int(n) != len(w) || linux.Align(len(w)) != len(w) {
				t.Errorf("a message of %d bytes says %d", len(w), n)
			}
		})
	}
}

func TestADestinationIsReadAsItIsWritten(t *testing.T) {
	for name, want := range destinations() {
		t.Run(name, func(t *testing.T) {
			var w writer
			w.command(30, Command{Op: EditDestination, Server: Server{Key: key(t, "192.0.2.10:80")}, Destination: want})
			got, err := parseEntry(body(w), unix.AF_INET)
			if err != nil || got.Destination != want {
				t.Errorf("read %+v, %v; wrote %+v", got, err, want)
			}
		})
	}
}

// Of what is deleted only the identity is told, and flags beyond ours are never set.
func TestWhatIsWritten(t *testing.T) {
	s := Server{Key: key(t, "192.0.2.10:80"), Scheduler: "wrr", Flags: flagsOurs | 2}
	d := destinations()["limits"]
	for op, want := range map[Op]struct {
		cmd        byte
		svc, dests []uint16
	}{
		AddServer:         {cmdNewService, []uint16{svcFamily, svcProtocol, svcAddr, svcPort, svcSched, svcFlags, svcTimeout, svcNetmask}, nil},
		EditServer:        {cmdSetService, []uint16{svcFamily, svcProtocol, svcAddr, svcPort, svcSched, svcFlags, svcTimeout, svcNetmask}, nil},
		DeleteServer:      {cmdDelService, []uint16{svcFamily, svcProtocol, svcAddr, svcPort}, nil},
		AddDestination:    {cmdNewDest, []uint16{svcFamily, svcProtocol, svcAddr, svcPort}, []uint16{destFamily, destAddr, destPort, destForward, destWeight, destUpper, destLower}},
		EditDestination:   {cmdSetDest, []uint16{svcFamily, svcProtocol, svcAddr, svcPort}, []uint16{destFamily, destAddr, destPort, destForward, destWeight, destUpper, destLower}},
		DeleteDestination: {cmdDelDest, []uint16{svcFamily, svcProtocol, svcAddr, svcPort}, []uint16{destFamily, destAddr, destPort}},
	} {
		var w writer
		w.command(30, Command{Op: op, Server: s, Destination: d})
		if b := body(w); b[0] != want.cmd || b[1] != familyVersion || binary.NativeEndian.Uint16(w[4:]) != 30 {
			t.Errorf("operation %d: header %x", op, w[:20])
		}
		var err error
		for kind, b := range linux.Attributes(body(w)[sizeofGenl:], &err) {
			var got []uint16
			for k, b := range linux.Attributes(b, &err) {
				got = append(got, k)
				if kind == attrService && k == svcFlags && binary.NativeEndian.Uint32(b) != uint32(flagsOurs) {
					t.Errorf("operation %d sets the flags %x", op, b)
				}
			}
			if wanted := map[uint16][]uint16{attrService: want.svc, attrDest: want.dests}[kind]; !slices.Equal(got, wanted) {
				t.Errorf("operation %d: attribute %d has %v, want %v", op, kind, got, wanted)
			}
		}
		if err != nil {
			t.Errorf("operation %d: %v", op, err)
		}
	}
}

// A virtual server by firewall mark is none of those with an address.
func TestAServerByFirewallMarkIsPassedOver(t *testing.T) {
	var w writer
	w.message(30, 0, cmdNewService, func() {
		w.nest(attrService, func() { w.uint16(svcFamily, unix.AF_INET); w.uint32(svcMark, 7); w.text(svcSched, "rr") })
	})
	if s, ok, err := parseServer(body(w)); ok || err != nil {
		t.Errorf("%+v, %v, %v", s, ok, err)
	}
}

// A mask of a stranger that is no prefix is like none of ours.
func TestAMaskThatIsNoPrefix(t *testing.T) {
	if n, err := hostBits(netip.MustParseAddr("192.0.2.1"), []byte{255, 0, 255, 0}); err != nil || n != 255 {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := hostBits(netip.MustParseAddr("2001:db8::1"), binary.NativeEndian.AppendUint32(nil, 129)); err != nil || n != 255 {
		t.Errorf("%d, %v", n, err)
	}
}

// Counters of 64 bits are taken where the kernel has them.
func TestStats(t *testing.T) {
	numbers := func(w *writer, kind uint16, wide bool, base uint64) {
		w.nest(kind, func() {
			for i := range uint16(5) {
				if v := base + uint64(i); wide {
					w.bytes(i+1, binary.NativeEndian.AppendUint64(nil, v)...)
				} else {
					w.uint32(i+1, uint32(v))
				}
			}
			w.uint32(6, 99) // a rate
		})
	}
	for _, wide := range []bool{false, true} {
		var w writer
		w.message(30, 0, cmdNewDest, func() {
			w.nest(attrDest, func() {
				w.bytes(destAddr, 10, 0, 0, 1)
				w.port(destPort, 80)
				w.uint32(destActive, 3)
				w.uint32(destInactive, 4)
				w.uint32(destPersistent, 5)
				numbers(&w, destStats, false, 100)
				if wide {
					numbers(&w, destStats64, true, 1<<40)
				}
			})
		})
		base := uint64(100)
		if wide {
			base = 1 << 40
		}
		want := Entry{Destination: Destination{Addr: netip.MustParseAddrPort("10.0.0.1:80")}, Active: 3, Inactive: 4, Persistent: 5,
			Stats: Stats{base, base + 1, base + 2, base + 3, base + 4}}
		if got, err := parseEntry(body(w), unix.AF_INET); err != nil || got != want {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

// FuzzParse has the readers take any bytes for an answer.
func FuzzParse(f *testing.F) {
	for _, s := range servers(f) {
		var w writer
		w.command(30, Command{Op: AddServer, Server: s})
		f.Add(body(w))
	}
	for _, d := range destinations() {
		var w writer
		w.command(30, Command{Op: AddDestination, Server: servers(f)["plain"], Destination: d})
		f.Add(body(w))
	}
	f.Add(body(getFamily()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok, err := parseServer(b); ok && (err != nil || !s.Key.Addr.IsValid() || s.Flags&^flagsOurs != 0) {
			t.Errorf("server %+v, %v", s, err)
		}
		for _, family := range []uint16{unix.AF_INET, unix.AF_INET6} {
			if e, err := parseEntry(b, family); err == nil && (!e.Addr.Addr().IsValid() || e.Forward > 7) {
				t.Errorf("destination %+v", e)
			}
		}
		if version, _, err := parseInfo(b); err == nil && version == "" {
			t.Error("a version of nothing")
		}
		if _, err := parseFamily(b); err == nil && len(b) < sizeofGenl+6 {
			t.Error("a family of nothing")
		}
	})
}
