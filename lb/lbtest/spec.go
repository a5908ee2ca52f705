// Package lbtest builds the values of package lb for tests, from text.
package lbtest

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"vipd/lb"
)

// Spec builds a spec with a drain of 30 s: "1:80 a*1 b*draining" is port 80 of
// 192.0.2.1 with backends 10.0.0.1 and 10.0.0.2 at port 8080. The VIP may be a whole
// address, "[2001:db8::1]:80/udp", and so may a backend, "192.0.2.7*1"; what follows
// the star is a weight, "draining" or "disabled". It panics on any other text.
func Spec(text string) *lb.Spec {
	words := strings.Fields(text)
	if !strings.Contains(words[0], ".") && !strings.HasPrefix(words[0], "[") {
		words[0] = "192.0.2." + words[0]
	}
	k, err := lb.ParseKey(words[0])
	if err != nil {
		panic(err)
	}
	s := &lb.Spec{Key: k, Name: "n" + words[0], Scheduler: lb.WRR, Masquerade: lb.MasqueradeAlways, DrainTimeout: 30 * time.Second}
	for _, word := range words[1:] {
		s.Backends = append(s.Backends, backend(word))
	}
	s.Normalize()
	return s
}

func backend(word string) lb.BackendSpec {
	name, rest, _ := strings.Cut(word, "*")
	b := lb.BackendSpec{State: lb.Active, Weight: 1}
	if len(name) == 1 {
		b.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, name[0] - 'a' + 1}), 8080)
	} else {
		b.Addr = netip.AddrPortFrom(netip.MustParseAddr(name), 8080)
	}
	switch rest {
	case "draining":
		b.State = lb.Draining
	case "disabled":
		b.State = lb.Disabled
	default:
		if _, err := fmt.Sscan(rest, &b.Weight); err != nil {
			panic(err)
		}
	}
	return b
}
