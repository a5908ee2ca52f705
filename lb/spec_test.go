package lb

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// Of a backend that stands twice the same one stays in whatever order they came,
// and the duplicate is reported.
func TestF12_DuplicateBackends(t *testing.T) {
	a, b := addrPort("10.0.0.11:80"), addrPort("10.0.0.12:80")
	tests := []struct {
		name       string
		in, want   []BackendSpec
		duplicates []netip.AddrPort
	}{
		{"none", []BackendSpec{{a, 1, Active}, {b, 1, Active}}, []BackendSpec{{a, 1, Active}, {b, 1, Active}}, nil},
		{"the same twice", []BackendSpec{{a, 1, Active}, {a, 1, Active}}, []BackendSpec{{a, 1, Active}}, []netip.AddrPort{a}},
		{"three times, reported once", []BackendSpec{{a, 1, Active}, {a, 3, Active}, {b, 1, Active}, {a, 2, Active}},
			[]BackendSpec{{a, 3, Active}, {b, 1, Active}}, []netip.AddrPort{a}},
		{"greatest weight", []BackendSpec{{a, 0, Active}, {a, 65535, Active}}, []BackendSpec{{a, 65535, Active}}, []netip.AddrPort{a}},
		{"equal weight: most available state", []BackendSpec{{a, 1, Disabled}, {a, 1, Draining}, {b, 2, Draining}, {b, 2, Active}},
			[]BackendSpec{{a, 1, Draining}, {b, 2, Active}}, []netip.AddrPort{a, b}},
		{"another port is another backend", []BackendSpec{{a, 1, Active}, {addrPort("10.0.0.11:81"), 1, Active}},
			[]BackendSpec{{a, 1, Active}, {addrPort("10.0.0.11:81"), 1, Active}}, nil},
		{"states that are none", []BackendSpec{{a, 1, 8}, {a, 1, 9}, {a, 1, Disabled}}, []BackendSpec{{a, 1, Disabled}}, []netip.AddrPort{a}},
		{"only states that are none", []BackendSpec{{a, 1, 9}, {a, 1, 8}}, []BackendSpec{{a, 1, 8}}, []netip.AddrPort{a}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range 24 {
				s := Spec{Backends: slices.Clone(tt.in)}
				rand.Shuffle(len(s.Backends), func(i, j int) { s.Backends[i], s.Backends[j] = s.Backends[j], s.Backends[i] })
				given := slices.Clone(s.Backends)
				duplicates := s.Normalize()
				if !slices.Equal(s.Backends, tt.want) || !slices.Equal(duplicates, tt.duplicates) {
					t.Fatalf("%v became %v, duplicates %v; want %v, %v", given, s.Backends, duplicates, tt.want, tt.duplicates)
				}
				if again := s.Normalize(); again != nil || !slices.Equal(s.Backends, tt.want) {
					t.Fatalf("a second time: %v, duplicates %v", s.Backends, again)
				}
			}
		})
	}
}

// A source that shuffles its answer says the same.
func TestF13_OrderOfBackendsDoesNotMatter(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	for round := range 200 {
		var first, second Spec
		for range rnd.IntN(20) {
			first.Backends = append(first.Backends, BackendSpec{
				Addr:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rnd.IntN(8))}), uint16(rnd.IntN(2)+80)),
				Weight: uint16(rnd.IntN(3)),
				State:  []AdminState{Active, Draining, Disabled}[rnd.IntN(3)],
			})
		}
		for _, i := range rnd.Perm(len(first.Backends)) {
			second.Backends = append(second.Backends, first.Backends[i])
		}
		given := slices.Clone(first.Backends)
		d1, d2 := first.Normalize(), second.Normalize()
		if !first.Equal(&second) || !slices.Equal(d1, d2) {
			t.Fatalf("seed %d, round %d: %v became\n%v, duplicates %v, and shuffled\n%v, duplicates %v",
				seed, round, given, first.Backends, d1, second.Backends, d2)
		}
	}
}

// Each field counts, in Spec and in Service: a change that is not seen is a change
// that is not made.
func TestEqualSeesEveryField(t *testing.T) {
	base := Spec{
		Key: Key{netip.MustParseAddr("192.0.2.1"), 80, TCP}, Name: "web", Mode: IPTables, Scheduler: WRR, Masquerade: MasqueradeAlways,
		DrainTimeout: time.Second, Backends: []BackendSpec{{addrPort("10.0.0.11:80"), 1, Active}},
	}
	changes := map[string]func(*Spec){
		"address":     func(s *Spec) { s.Key.Addr = netip.MustParseAddr("192.0.2.2") },
		"port":        func(s *Spec) { s.Key.Port++ },
		"protocol":    func(s *Spec) { s.Key.Protocol = UDP },
		"name":        func(s *Spec) { s.Name = "web2" },
		"mode":        func(s *Spec) { s.Mode = "" },
		"scheduler":   func(s *Spec) { s.Scheduler = RR },
		"flags":       func(s *Spec) { s.Flags = FlagPort },
		"forward":     func(s *Spec) { s.Forward = ForwardDR },
		"tunnel":      func(s *Spec) { s.Tunnel.Type = TunnelGUE },
		"tunnel port": func(s *Spec) { s.Tunnel.Port = 6080 },
		"masquerade":  func(s *Spec) { s.Masquerade = MasqueradeNever },
		"drain":       func(s *Spec) { s.DrainTimeout++ },
		"no backend":  func(s *Spec) { s.Backends = nil },
		"backend":     func(s *Spec) { s.Backends = []BackendSpec{{addrPort("10.0.0.11:81"), 1, Active}} },
		"weight":      func(s *Spec) { s.Backends = []BackendSpec{{addrPort("10.0.0.11:80"), 2, Active}} },
		"admin state": func(s *Spec) { s.Backends = []BackendSpec{{addrPort("10.0.0.11:80"), 1, Draining}} },
	}
	same := base
	same.Backends = slices.Clone(base.Backends)
	if !base.Equal(&same) || !base.Equal(&base) {
		t.Error("equal specs are not Equal")
	}
	for name, change := range changes {
		other := base
		if change(&other); base.Equal(&other) || other.Equal(&base) {
			t.Errorf("%s: the difference is not seen", name)
		}
	}
}

func TestSortSpecs(t *testing.T) {
	var want, got []*Spec
	for i := range 20 {
		want = append(want, &Spec{Key: Key{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 80, TCP}})
	}
	for _, i := range rand.Perm(len(want)) {
		got = append(got, want[i])
	}
	if SortSpecs(got); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

func TestAdminStateText(t *testing.T) {
	for state, name := range map[AdminState]string{Active: "active", Draining: "draining", Disabled: "disabled"} {
		text, err := state.MarshalText()
		var back AdminState
		if err != nil || string(text) != name || back.UnmarshalText(text) != nil || back != state {
			t.Errorf("%s became %s and %s, %v", name, text, back, err)
		}
	}
	var none AdminState
	if err := none.UnmarshalText([]byte("Active")); err == nil || AdminState(7).String() != "state-7" {
		t.Errorf("Active was read as %s, %v", none, err)
	}
}
