package lb

import (
	"net/netip"
	"slices"
	"testing"
)

func TestUsableBackends(t *testing.T) {
	a, b, c, d := addrPort("10.0.0.11:80"), addrPort("10.0.0.12:80"), addrPort("10.0.0.13:80"), addrPort("10.0.0.14:80")
	backends := []Backend{{a, 3, false}, {b, 0, false}, {c, 2, true}, {d, 1, false}}
	tests := []struct {
		scheduler Scheduler
		want      []Backend
	}{
		{WRR, []Backend{{a, 3, false}, {d, 1, false}}},
		{RR, []Backend{{a, 1, false}, {d, 1, false}}},
	}
	for _, tt := range tests {
		s := Service{Scheduler: tt.scheduler, Backends: backends}
		if got := s.Usable(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.scheduler, got, tt.want)
		}
	}
	if backends[0].Weight != 3 {
		t.Error("Usable changed the service")
	}
	if got := (&Service{}).Usable(); len(got) != 0 {
		t.Errorf("of no backends: %v", got)
	}
}

func TestServiceBackend(t *testing.T) {
	s := Service{Backends: []Backend{{addrPort("10.0.0.11:80"), 1, false}, {addrPort("10.0.0.11:81"), 2, true}, {addrPort("[fd00::1]:80"), 3, false}}}
	for _, want := range s.Backends {
		if got, ok := s.Backend(want.Addr); !ok || got != want {
			t.Errorf("%s: %v, %t", want.Addr, got, ok)
		}
	}
	for _, none := range []string{"10.0.0.10:80", "10.0.0.11:82", "[fd00::2]:80"} {
		if got, ok := s.Backend(addrPort(none)); ok || got != (Backend{}) {
			t.Errorf("%s: %v, %t", none, got, ok)
		}
	}
}

func TestServiceEqualSeesEveryField(t *testing.T) {
	base := Service{
		Key: Key{netip.MustParseAddr("192.0.2.1"), 80, TCP}, Scheduler: WRR, Masquerade: MasqueradeAlways,
		Backends: []Backend{{addrPort("10.0.0.11:80"), 1, false}},
	}
	changes := map[string]func(*Service){
		"key":        func(s *Service) { s.Key.Port++ },
		"scheduler":  func(s *Service) { s.Scheduler = RR },
		"mode":       func(s *Service) { s.Mode = IPVS },
		"flags":      func(s *Service) { s.Flags = FlagFallback },
		"forward":    func(s *Service) { s.Forward = ForwardTunnel },
		"tunnel":     func(s *Service) { s.Tunnel = Tunnel{TunnelGUE, 6080} },
		"masquerade": func(s *Service) { s.Masquerade = MasqueradeAuto },
		"no backend": func(s *Service) { s.Backends = nil },
		"backend":    func(s *Service) { s.Backends = []Backend{{addrPort("10.0.0.11:81"), 1, false}} },
		"weight":     func(s *Service) { s.Backends = []Backend{{addrPort("10.0.0.11:80"), 2, false}} },
		"draining":   func(s *Service) { s.Backends = []Backend{{addrPort("10.0.0.11:80"), 1, true}} },
	}
	same := base
	same.Backends = slices.Clone(base.Backends)
	if !base.Equal(&same) {
		t.Error("equal services are not Equal")
	}
	for name, change := range changes {
		other := base
		if change(&other); base.Equal(&other) || other.Equal(&base) {
			t.Errorf("%s: the difference is not seen", name)
		}
	}
}
