package lb

import (
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseKey(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")
	tests := []struct {
		text string
		want Key // the zero Key: refused
	}{
		{"192.0.2.10:80/tcp", Key{v4, 80, TCP}},
		{"192.0.2.10:80", Key{v4, 80, TCP}},
		{"192.0.2.10:65535/udp", Key{v4, 65535, UDP}},
		{"[2001:db8::10]:53/udp", Key{v6, 53, UDP}},
		{"[2001:db8::10]:132/sctp", Key{v6, 132, SCTP}},
		{"[2001:DB8:0::10]:53", Key{v6, 53, TCP}},
		{"", Key{}},
		{"192.0.2.10", Key{}},
		{"192.0.2.10:", Key{}},
		{"192.0.2.10:0", Key{}},
		{"192.0.2.10:65536", Key{}},
		{"192.0.2.10:80 ", Key{}},
		{" 192.0.2.10:80", Key{}},
		{"192.0.2.10:80/", Key{}},
		{"192.0.2.10:80/TCP", Key{}},
		{"192.0.2.10:80/tcp/udp", Key{}},
		{"192.0.2.010:80", Key{}},
		{"2001:db8::10:80", Key{}},
		{"[192.0.2.10]:80", Key{}},
		{"[::ffff:192.0.2.10]:80", Key{}},
		{"[fe80::1%eth0]:80", Key{}},
		{"example.net:80", Key{}},
	}
	for _, tt := range tests {
		got, err := ParseKey(tt.text)
		if got != tt.want || (err == nil) != (tt.want != Key{}) {
			t.Errorf("ParseKey(%q) = %v, %v; want %v", tt.text, got, err, tt.want)
		}
		if _, proto, _ := strings.Cut(tt.text, "/"); err != nil && !strings.Contains(err.Error(), tt.text) && !strings.Contains(err.Error(), proto) {
			t.Errorf("the error does not say what is wrong with %q: %v", tt.text, err)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	for _, s := range []string{"192.0.2.10:80/tcp", "[2001:db8::10]:53/udp", "1.2.3.4:5", "[::ffff:1.2.3.4]:5", "[fe80::1%a]:1", "/", "]:["} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKey(s)
		if err != nil {
			if k != (Key{}) {
				t.Errorf("ParseKey(%q) returns %v beside its error", s, k)
			}
			return
		}
		again, err := ParseKey(k.String())
		if err != nil || again != k {
			t.Errorf("ParseKey(%q) = %v, whose text form reads as %v, %v", s, k, again, err)
		}
	})
}

func TestKeyIsTheKeyOfAJSONObject(t *testing.T) {
	want := map[Key]int{
		{netip.MustParseAddr("192.0.2.10"), 80, TCP}:   1,
		{netip.MustParseAddr("2001:db8::10"), 53, UDP}: 2,
	}
	text, err := json.Marshal(want)
	if err != nil || string(text) != `{"192.0.2.10:80/tcp":1,"[2001:db8::10]:53/udp":2}` {
		t.Fatalf("%s, %v", text, err)
	}
	var got map[Key]int
	if err := json.Unmarshal(text, &got); err != nil || len(got) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%v became %v", want, got)
		}
	}
	if err := json.Unmarshal([]byte(`{"192.0.2.10":1}`), &got); err == nil {
		t.Error("a key without a port was read")
	}
}

func TestKeysAreOrderedByAddressPortAndProtocol(t *testing.T) {
	var ordered []Key
	for _, addr := range []string{"192.0.2.2", "192.0.2.10", "2001:db8::2", "2001:db8::10"} {
		for _, port := range []uint16{80, 443} {
			for _, p := range []Protocol{TCP, UDP, SCTP} {
				ordered = append(ordered, Key{netip.MustParseAddr(addr), port, p})
			}
		}
	}
	shuffled := slices.Clone(ordered)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	slices.SortFunc(shuffled, Key.Compare)
	if !slices.Equal(shuffled, ordered) {
		t.Errorf("sorted: %v", shuffled)
	}
}

func TestProtocol(t *testing.T) {
	for _, p := range []Protocol{TCP, UDP, SCTP} {
		if got, err := ParseProtocol(p.String()); got != p || err != nil {
			t.Errorf("ParseProtocol(%q) = %v, %v", p, got, err)
		}
	}
	if got := Protocol(47).String(); got != "protocol-47" {
		t.Error(got)
	}
	if p, err := ParseProtocol("protocol-47"); err == nil {
		t.Errorf("read as %d", p)
	}
}
