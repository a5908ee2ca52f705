//go:build kernel

package vip

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
)

func TestMarkedRulesOfBothFamilies(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := realWorld()
	w.sh(t, "ip -6 rule add fwmark 0x2000/0xf000 table 100 priority 1\nip rule add fwmark 0x1 table 100 priority 9\nip rule add fwmark 0x2 table 100 priority 8")
	got, err := kernelPolicies{}.Marked(t.Context())
	fatal(t, err)
	want := []markRule{{netfilter.IPv4, 8, 0x2, ^uint32(0)}, {netfilter.IPv4, 9, 0x1, ^uint32(0)}, {netfilter.IPv6, 1, 0x2000, 0xf000}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A kernel that runs without IPv6 answers so.
func TestAKernelWithoutAFamilyHasNoRulesOfIt(t *testing.T) {
	if rules, err := policyRules(t.Context(), unix.AF_X25); rules != nil || err != nil {
		t.Errorf("got %v, %v", rules, err)
	}
}
