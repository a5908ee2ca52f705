package lb

import (
	"fmt"
	"strconv"
)

// AdminState is what the operator wants of a backend.
type AdminState uint8

// The admin states, the most available first. A disabled backend is as if it were
// not listed.
const (
	Active AdminState = iota
	Draining
	Disabled
)

// ParseAdminState reads the name of an admin state.
func ParseAdminState(s string) (AdminState, error) {
	for state := Active; state <= Disabled; state++ {
		if s == state.String() {
			return state, nil
		}
	}
	return 0, fmt.Errorf("unknown state %q; use active, draining or disabled", s)
}

// String returns the name, as the TOML file spells it.
func (s AdminState) String() string {
	switch s {
	case Active:
		return "active"
	case Draining:
		return "draining"
	case Disabled:
		return "disabled"
	}
	return "state-" + strconv.Itoa(int(s))
}

// MarshalText writes the name.
func (s AdminState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the name.
func (s *AdminState) UnmarshalText(text []byte) (err error) {
	*s, err = ParseAdminState(string(text))
	return err
}
