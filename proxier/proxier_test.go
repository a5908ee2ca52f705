package proxier

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"vipd/lb"
)

func TestFailedServices(t *testing.T) {
	failed := func(ports ...uint16) error {
		f := &Failed{Services: map[lb.Key]error{}}
		for _, p := range ports {
			f.Services[lb.Key{Addr: netip.MustParseAddr("192.0.2.1"), Port: p, Protocol: lb.TCP}] = errors.New("refused")
		}
		return f
	}
	other := errors.New("chain VIPD-X cannot be removed")
	for _, tc := range []struct {
		name     string
		err      error
		services int
		only     bool
	}{
		{"nil", nil, 0, false},
		{"another error", other, 0, false},
		{"services", failed(1, 2), 2, true},
		{"wrapped", fmt.Errorf("mode iptables: %w", failed(1)), 1, true},
		{"two of them", errors.Join(failed(1), failed(2)), 2, true},
		{"beside another error", errors.Join(other, failed(1)), 1, false},
		{"before another error", errors.Join(failed(1), other), 1, false},
		{"deep beside another error", fmt.Errorf("x: %w", errors.Join(failed(1), fmt.Errorf("y: %w", other))), 1, false},
	} {
		services, only := FailedServices(tc.err)
		if len(services) != tc.services || only != tc.only {
			t.Errorf("%s: %d services, only %v; want %d, %v", tc.name, len(services), only, tc.services, tc.only)
		}
	}
}
