package netfilter

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
	"vipd/lb"
)

var (
	client4, service4, backend4 = netip.MustParseAddrPort("10.1.0.10:5000"), netip.MustParseAddrPort("192.0.2.10:53"), netip.MustParseAddrPort("10.2.0.11:8080")
	client6, service6, backend6 = netip.MustParseAddrPort("[fd00:1::10]:5000"), netip.MustParseAddrPort("[2001:db8::10]:53"), netip.MustParseAddrPort("[fd00:2::11]:8080")
)

// entry is a conntrack message as the kernel sends it, without struct nlmsghdr.
func entry(proto lb.Protocol, client, service, backend netip.AddrPort, more ...func(*message)) []byte {
	m := newMessage(msgNew, 0, FamilyOf(client.Addr()))[unix.SizeofNlMsghdr:]
	m.tuple(ctaTupleOrig, tuple{proto, client, service})
	m.tuple(ctaTupleReply, tuple{proto, backend, client})
	m.uint32(ctaID, 77)
	m.uint32(ctaStatus, statusConfirmed)
	m.uint32(ctaMark, 0x2001)
	for _, add := range more {
		add(&m)
	}
	return m
}

func TestParseFlow(t *testing.T) {
	zoned := func(m *message) { m.uint16(ctaZone, 9) }
	closing := func(m *message) {
		m.tree(ctaProtoInfo, func() { m.tree(ctaProtoInfoTCP, func() { m.attr(ctaProtoInfoTCPState, tcpTimeWait) }) })
	}
	unknown := func(m *message) { m.attr(99, 1, 2, 3) }
	tests := []struct {
		name string
		body []byte
		want flow
	}{
		{"UDP, IPv4", entry(lb.UDP, client4, service4, backend4),
			flow{orig: tuple{lb.UDP, client4, service4}, reply: tuple{lb.UDP, backend4, client4}}},
		{"UDP, IPv6, in a zone", entry(lb.UDP, client6, service6, backend6, zoned),
			flow{orig: tuple{lb.UDP, client6, service6}, reply: tuple{lb.UDP, backend6, client6}, zone: 9}},
		{"TCP, with a state and what nobody knows", entry(lb.TCP, client4, service4, backend4, unknown, closing),
			flow{orig: tuple{lb.TCP, client4, service4}, reply: tuple{lb.TCP, backend4, client4}, tcpState: tcpTimeWait}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseFlow(tt.body)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(tt.body, got.rawOrig) || len(got.rawOrig) == 0 {
				t.Errorf("the tuple is not kept as it came: %x", got.rawOrig)
			}
			got.rawOrig = nil
			tt.want.id, tt.want.status, tt.want.mark = 77, statusConfirmed, 0x2001
			if !equalFlows(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func equalFlows(a, b flow) bool {
	return a.orig == b.orig && a.reply == b.reply && a.id == b.id && a.status == b.status && a.mark == b.mark &&
		a.zone == b.zone && a.tcpState == b.tcpState && bytes.Equal(a.rawOrig, b.rawOrig)
}

// Every prefix of a message, and every message with one length broken, is refused.
func TestParseFlowRefusesWhatIsBroken(t *testing.T) {
	whole := entry(lb.TCP, client4, service4, backend4)
	head := len(whole) - 3*8 // what follows the tuples may be missing, attribute by attribute
	for n := range whole {
		if n >= head && (n-head)%8 == 0 {
			continue
		}
		if f, err := parseFlow(whole[:n]); err == nil {
			t.Errorf("the first %d of %d bytes were read as %+v", n, len(whole), f)
		}
	}
	long := bytes.Clone(whole)
	binary.NativeEndian.PutUint16(long[4:], 0xffff)
	if _, err := parseFlow(long); err == nil || !strings.Contains(err.Error(), "65535 bytes") {
		t.Errorf("an attribute longer than the message: %v", err)
	}
	mixed := entry(lb.TCP, client4, service6, backend4)
	if f, err := parseFlow(mixed); err == nil {
		t.Errorf("a tuple of two families was read as %+v", f)
	}
}

func FuzzParseFlow(f *testing.F) {
	f.Add(entry(lb.TCP, client4, service4, backend4))
	f.Add(entry(lb.UDP, client6, service6, backend6))
	f.Add([]byte(dumpRequest(filter{family: IPv4, proto: lb.UDP, to: service4, backend: backend4, mark: 1})[unix.SizeofNlMsghdr:]))
	f.Add([]byte(createRequest(tuple{lb.TCP, client6, service6}, 1, 2, pokeLifetime)[unix.SizeofNlMsghdr:]))
	f.Add([]byte{2, 0, 0, 0, 4, 0, 1, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		flow, err := parseFlow(body)
		if err != nil {
			return
		}
		if !flow.orig.src.IsValid() || !flow.orig.dst.IsValid() || !flow.reply.src.IsValid() || !flow.reply.dst.IsValid() || len(flow.rawOrig) == 0 {
			t.Fatalf("a flow without an address was accepted: %+v", flow)
		}
		// What is sent back to delete it names the same tuple.
		again, err := parseTuple(flow.rawOrig)
		if err != nil || again != flow.orig {
			t.Fatalf("%+v became %+v: %v", flow.orig, again, err)
		}
		deleteRequest(&flow)
	})
}

// A delete request without the tuple flushes the whole table.
func TestDeleteRequestNamesTheWholeTuple(t *testing.T) {
	for _, body := range [][]byte{entry(lb.TCP, client4, service4, backend4), entry(lb.UDP, client6, service6, backend6)} {
		want, err := parseFlow(body)
		if err != nil {
			t.Fatal(err)
		}
		var orig tuple
		var id uint32
		for kind, b := range linux.Attributes(deleteRequest(&want)[unix.SizeofNlMsghdr+4:], &err) {
			switch kind {
			case ctaTupleOrig:
				orig, err = parseTuple(b)
			case ctaID:
				id, err = number32(b)
			default:
				t.Errorf("attribute %d", kind)
			}
		}
		if err != nil || orig != want.orig || id != want.id {
			t.Errorf("delete %v, id %d: %v; want %v, id %d", orig, id, err, want.orig, want.id)
		}
	}
}

func TestDumps(t *testing.T) {
	key := func(port uint16, p lb.Protocol) lb.Key {
		return lb.Key{Addr: service4.Addr(), Port: port, Protocol: p}
	}
	other := netip.MustParseAddrPort("10.2.0.12:8080")
	var many []Eviction
	for port := range uint16(wideFrom) {
		many = append(many, Eviction{Key: key(port+1, lb.UDP), Backend: backend4})
	}
	tests := []struct {
		name      string
		evictions []Eviction
		want      []filter
	}{
		{"none", nil, nil},
		{"one backend", many[:1], []filter{{family: IPv4, proto: lb.UDP, to: key(1, lb.UDP).AddrPort(), backend: backend4}}},
		{"two backends of a service share a dump", []Eviction{{Key: key(1, lb.UDP), Backend: backend4}, {Key: key(1, lb.UDP), Backend: other}},
			[]filter{{family: IPv4, proto: lb.UDP, to: key(1, lb.UDP).AddrPort()}}},
		{"many services share a dump", many, []filter{{family: IPv4, proto: lb.UDP}}},
		{"protocols do not", []Eviction{{Key: key(1, lb.UDP), Backend: backend4}, {Key: key(1, lb.TCP), Backend: backend4}}, []filter{
			{family: IPv4, proto: lb.TCP, to: key(1, lb.TCP).AddrPort(), backend: backend4},
			{family: IPv4, proto: lb.UDP, to: key(1, lb.UDP).AddrPort(), backend: backend4}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wanted := map[Eviction]bool{}
			for _, e := range tt.evictions {
				wanted[e] = true
			}
			got := map[filter]bool{}
			for _, f := range dumps(wanted) {
				got[f] = true
			}
			for _, f := range tt.want {
				if !got[f] {
					t.Errorf("no dump %+v in %v", f, got)
				}
			}
			if len(got) != len(tt.want) {
				t.Errorf("%d dumps, want %d: %v", len(got), len(tt.want), got)
			}
		})
	}
}
