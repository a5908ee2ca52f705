package main

import (
	"net/netip"
	"testing"

	"vipd/internal/loss"
)

func TestRunAndAskTellWhetherAnythingWasLost(t *testing.T) {
	loopback := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	s, err := loss.Serve(t.Context(), loss.ServerOptions{Name: "b1", TCP: loopback, UDP: loopback})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tcp, udp := s.TCP[0].String(), s.UDP[0].String()
	gone, err := loss.Serve(t.Context(), loss.ServerOptions{Name: "gone", TCP: loopback})
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	closed := gone.TCP[0].String()
	tests := []struct {
		name string
		args []string
		lost bool
	}{
		{"run", []string{"run", "-target", tcp, "-rate", "50", "-hold", "2", "-every", "10ms", "-for", "200ms"}, false},
		{"run as JSON", []string{"run", "-target", udp, "-flows", "2", "-every", "10ms", "-for", "200ms", "-o", "json"}, false},
		{"run into a closed port", []string{"run", "-target", closed, "-rate", "50", "-for", "100ms"}, true},
		{"ask", []string{"ask", "-target", tcp}, false},
		{"ask by UDP", []string{"ask", "-target", udp, "-protocol", "udp"}, false},
		{"ask a closed port", []string{"ask", "-target", closed}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if lost, err := command(t.Context(), tt.args); lost != tt.lost || err != nil {
				t.Errorf("lost %v, %v; want %v", lost, err, tt.lost)
			}
		})
	}
}

func TestArgumentsThatAreWrongAreRefused(t *testing.T) {
	for _, args := range [][]string{
		nil,
		{"sing"},
		{"run"},
		{"run", "-target", "nowhere", "-rate", "1"},
		{"run", "-target", "127.0.0.1:1"},
		{"run", "-target", "127.0.0.1:1", "-rate", "1", "-o", "xml"},
		{"ask"},
		{"ask", "-target", "127.0.0.1:1", "-protocol", "sctp"},
		{"serve", "-name", "b1"},
		{"serve", "-name", "b1", "-listen", "127.0.0.1:0", "-protocol", "sctp"},
		{"serve", "-name", "two words", "-listen", "127.0.0.1:0"},
	} {
		if _, err := command(t.Context(), args); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}
