package netfilter

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
)

// recorded returns what the kernel (6.18) told while somebody wrote, after
// "iptables -t nat -A PREROUTING -j VIPD-A", by iptables 1.8.9 and nft 1.0.6:
//
//	iptables -t nat -I PREROUTING 1 -p udp -j ACCEPT
//	iptables -t nat -A PREROUTING -p udp -j ACCEPT
//	iptables -t nat -F VIPD-A
//	ip6tables -N f2b
//	nft add table inet fw
//	iptables -t nat -D PREROUTING -j VIPD-A
//	nft delete table ip nat
func recorded(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "nftables-events.bin"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readEvents reads messages of the machine that the record was made on.
func readEvents(datagram []byte, each func(r *eventReader, n news)) {
	var r eventReader
	for len(datagram) >= unix.SizeofNlMsghdr {
		size := int(binary.LittleEndian.Uint32(datagram))
		if size < unix.SizeofNlMsghdr || size > len(datagram) {
			return
		}
		kind, flags := binary.LittleEndian.Uint16(datagram[4:]), binary.LittleEndian.Uint16(datagram[6:])
		n, ended, err := r.read(kind, flags, binary.LittleEndian.Uint32(datagram[12:]), datagram[unix.SizeofNlMsghdr:size])
		if err != nil {
			return
		}
		if ended {
			each(&r, n)
			r.reset()
		}
		datagram = datagram[min(linux.Align(size), len(datagram)):]
	}
}

func TestEventsOfTheKernelAreUnderstood(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Fatal("the record is of a machine with the other byte order; make one here")
	}
	var got []string
	first := uint32(0)
	readEvents(recorded(t), func(r *eventReader, n news) {
		if first == 0 {
			first = n.generation
		}
		if n.port != n.pid || n.pid == 0 {
			t.Errorf("port %d, pid %d", n.port, n.pid)
		}
		got = append(got, fmt.Sprintf("+%d %s %v inserted %v", n.generation-first, n.process, n.places, r.inserts))
	})
	want := []string{
		"+0 iptables-nft [] inserted [IPv4 table nat chain PREROUTING]",
		"+1 iptables-nft [] inserted []",
		"+2 iptables-nft [IPv4 table nat chain VIPD-A] inserted []",
		"+3 ip6tables-nft [] inserted []",
		"+4 nft [] inserted []",
		"+5 iptables-nft [IPv4 table nat chain PREROUTING] inserted []",
		"+6 nft [IPv4 table nat chain VIPD-A IPv4 table nat chain PREROUTING IPv4 table nat] inserted []",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("read\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A chain that is renamed, and which the kernel tells by its new name only, may have
// been ours. One that is made, or a base chain that gets another policy, is not.
func TestAChainThatIsRenamedMayHaveBeenOurs(t *testing.T) {
	for _, tc := range []struct {
		flags uint16
		base  bool
		want  string
	}{
		{0, false, "[IPv4 table nat]"},
		{unix.NLM_F_EXCL, false, "[]"},
		{unix.NLM_F_CREATE, false, "[]"},
		{0, true, "[]"},
	} {
		m := nftMessage(unix.NFT_MSG_NEWCHAIN, 0, IPv4)
		m.text(unix.NFTA_CHAIN_TABLE, "nat")
		m.text(unix.NFTA_CHAIN_NAME, "OTHER")
		if tc.base {
			m.tree(unix.NFTA_CHAIN_HOOK, func() { m.uint32(unix.NFTA_HOOK_HOOKNUM, 0) })
		}
		var r eventReader
		if _, _, err := r.read(binary.NativeEndian.Uint16(m[4:]), tc.flags, 1, m[unix.SizeofNlMsghdr:]); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(r.places); got != tc.want {
			t.Errorf("flags %#x, base chain %v: %s, want %s", tc.flags, tc.base, got, tc.want)
		}
	}
}

func TestDriftNamesAFewPlaces(t *testing.T) {
	n := news{pid: 7, process: "nft"}
	var r eventReader
	for i := range 10 * maxPlaces {
		r.add(place{IPv4, "nat", fmt.Sprintf("VIPD-%d", i)})
	}
	if n.places = r.places; len(n.places) > maxPlaces+1 || n.places[maxPlaces] != (place{IPv4, "nat", ""}) {
		t.Errorf("%d places, the last one %v", len(n.places), n.places[len(n.places)-1])
	}
	want := Drift{"IPv4 table nat chain VIPD-0, IPv4 table nat chain VIPD-1, IPv4 table nat chain VIPD-2 and 62 more", "nft (pid 7)"}
	if d := n.drift(); d != want {
		t.Errorf("drift %+v", d)
	}
	if got := printable([]byte("a\nb\x1b\xff")); got != "a?b??" {
		t.Errorf("a process with a name full of tricks: %q", got)
	}
}

func FuzzEvents(f *testing.F) {
	f.Add(recorded(f))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		readEvents(datagram, func(_ *eventReader, n news) {
			if len(n.places) > maxPlaces+6 {
				t.Errorf("%d places", len(n.places))
			}
		})
	})
}

func FuzzListing(f *testing.F) {
	for b := recorded(f); len(b) >= unix.SizeofNlMsghdr; {
		size := int(binary.LittleEndian.Uint32(b))
		f.Add(b[unix.SizeofNlMsghdr+sizeofNfgenmsg : size])
		b = b[min(linux.Align(size), len(b)):]
	}
	f.Fuzz(func(_ *testing.T, attrs []byte) {
		r := newTableReader(IPv4, "nat")
		_ = r.putChain(attrs)
		_ = r.putRule(attrs)
		r.flush()
		_, _ = parseSetInfo(attrs)
	})
}
