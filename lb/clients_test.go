package lb

import (
	"net/netip"
	"slices"
	"testing"
)

func TestNormalizeClients(t *testing.T) {
	tests := []struct{ have, want []string }{
		{nil, nil},
		{[]string{"198.51.100.7/24"}, []string{"198.51.100.0/24"}},
		{[]string{"198.51.100.0/24", "192.0.2.0/24"}, []string{"192.0.2.0/24", "198.51.100.0/24"}},
		{[]string{"10.1.0.0/16", "10.0.0.0/8", "10.1.2.3/32", "11.0.0.0/8"}, []string{"10.0.0.0/8", "11.0.0.0/8"}},
		{[]string{"192.0.2.1/32", "192.0.2.1/32"}, []string{"192.0.2.1/32"}},
		{[]string{"0.0.0.0/0", "192.0.2.1/32"}, []string{"0.0.0.0/0"}},
		{[]string{"2001:db8::1/32", "2001:db8:1::/48"}, []string{"2001:db8::/32"}},
	}
	for _, tt := range tests {
		if got := NormalizeClients(prefixes(tt.have)); !slices.Equal(got, prefixes(tt.want)) {
			t.Errorf("%v became %v, want %v", tt.have, got, tt.want)
		}
	}
}

func prefixes(texts []string) (all []netip.Prefix) {
	for _, s := range texts {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func TestServicesDifferByAffinityAndClients(t *testing.T) {
	a := &Service{Affinity: 1}
	b := &Service{Clients: prefixes([]string{"192.0.2.0/24"})}
	if a.Equal(b) || a.Equal(&Service{}) || b.Equal(&Service{}) || !a.Equal(&Service{Affinity: 1}) {
		t.Error("affinity or clients make no difference to a service")
	}
	c, d := &Spec{Affinity: 1}, &Spec{Clients: b.Clients}
	if c.Equal(d) || c.Equal(&Spec{}) || d.Equal(&Spec{}) || !d.Equal(&Spec{Clients: b.Clients}) {
		t.Error("affinity or clients make no difference to a spec")
	}
}
