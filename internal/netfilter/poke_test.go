package netfilter

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// The headers are written out by hand from RFC 791, 8200 and 9293.
func TestBareACK(t *testing.T) {
	tests := []struct{ src, dst, want string }{
		{"192.0.2.10:80", "10.1.0.10:5000",
			"4500002800000000400600 00 c000020a 0a01000a 0050 1388 00000001 00000002 5010 0400 %% 0000"},
		{"[2001:db8::10]:80", "[fd00:1::10]:5000",
			"60000000 0014 06 40 20010db8000000000000000000000010 fd000001000000000000000000000010 0050 1388 00000001 00000002 5010 0400 %% 0000"},
	}
	for _, tt := range tests {
		src, dst := netip.MustParseAddrPort(tt.src), netip.MustParseAddrPort(tt.dst)
		packet := bareACK(src, dst, 1, 2)
		before, after, _ := bytes.Cut([]byte(tt.want), []byte("%%"))
		want := [2][]byte{unhex(t, before), unhex(t, after)}
		sum := len(want[0])
		if !bytes.Equal(packet[:sum], want[0]) || !bytes.Equal(packet[sum+2:], want[1]) {
			t.Errorf("%s to %s:\n got %x\nwant %x ---- %x", src, dst, packet, want[0], want[1])
		}
		// A receiver adds everything up, the checksum too, and wants zero.
		if rest := tcpChecksum(src.Addr(), dst.Addr(), packet[sum-16:]); rest != 0 {
			t.Errorf("%s to %s: the checksum is off by %#x", src, dst, rest)
		}
	}
}

func unhex(t *testing.T, b []byte) []byte {
	t.Helper()
	out, err := hex.DecodeString(string(bytes.ReplaceAll(b, []byte(" "), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// An odd byte at the end counts as the first of two (RFC 1071); 6 is TCP.
func TestTCPChecksumOfOddLength(t *testing.T) {
	a := netip.MustParseAddr("0.0.0.0")
	if got, want := tcpChecksum(a, a, []byte{1}), ^uint16(6+1+0x100); got != want {
		t.Errorf("%#x, want %#x", got, want)
	}
}

func TestPokesKeepTheirPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const connections = 10_000
		var p poker
		start := time.Now()
		for range connections {
			if err := p.pace(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		took := time.Since(start)
		if most := connections * pokeInterval; took > most || took < most-pokeBurst {
			t.Errorf("%d connections in %s, want %s less a burst of %s", connections, took, most, pokeBurst)
		}
	})
}
