//go:build kernel

package kerneltest

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// A foreign state that cannot see a change would prove nothing, so each kind is
// changed here and must be seen, and what is ours must not be.
func TestForeignSeesEveryKindOfChange(t *testing.T) {
	if !Isolate(t) {
		return
	}
	lab := NewLab(t, 1)
	tests := []struct {
		name, change, want string // want is empty for what is ours
	}{
		{"foreign rule", "iptables-nft -A INPUT -s 10.9.9.9 -j DROP", "+ filter -A INPUT -s 10.9.9.9/32 -j DROP"},
		{"foreign rule, IPv6", "ip6tables-nft -t nat -A OUTPUT -d fd00:9::9 -j ACCEPT", "+ nat -A OUTPUT -d fd00:9::9/128 -j ACCEPT"},
		{"foreign chain", "iptables-nft -t nat -N DOCKER", "+ nat :DOCKER - [0:0]"},
		{"policy", "iptables-nft -P FORWARD DROP", "+ filter :FORWARD DROP [0:0]"},
		{"legacy rule", "iptables-legacy -A INPUT -s 10.9.9.9 -j DROP", "+ filter -A INPUT -s 10.9.9.9/32 -j DROP"},
		{"foreign nft table", "nft add table inet firewall", "+ table inet firewall"},
		{"foreign set", "ipset create theirs hash:ip", "+ create theirs hash:ip"},
		{"foreign set entry", "ipset add theirs 10.9.9.9", "+ add theirs 10.9.9.9"},
		{"foreign address", "ip addr add 10.9.9.1/24 dev c0", "10.9.9.1/24"},
		{"foreign link", "ip link add theirs type bridge", "theirs"},
		{"link flag", "ip link set theirs up", "theirs"},
		{"route", "ip route add 10.8.0.0/24 via 10.2.0.11", "+ 10.8.0.0/24 via 10.2.0.11"},
		{"rule", "ip rule add fwmark 0x1 table 100", "fwmark 0x1"},
		{"our chain", "iptables-nft -t nat -N VIPD-SVC", ""},
		{"our jump", "iptables-nft -t mangle -I PREROUTING -j MARK --set-mark 1 -m comment --comment VIPD-PRE", ""},
		{"our set", "ipset create vipd-vip4 hash:ip", ""},
		{"our device", "ip link add vipd0 type bridge", ""},
		{"our address", "ip addr add 192.0.2.10/32 dev vipd0", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := lab.LB.Foreign(t)
			lab.LB.Run(t, "sh", "-c", tt.change)
			diff := lab.LB.Foreign(t).Diff(before)
			if tt.want == "" && diff != "" || !strings.Contains(diff, tt.want) {
				t.Errorf("after %q the difference is %q, want %q in it", tt.change, diff, tt.want)
			}
		})
	}
}

//lane:vm
func TestProbeDummyAgreesWithIP(t *testing.T) {
	if !Isolate(t) {
		return
	}
	lb := &Host{Name: "lb"}
	_, err := lb.Try(t.Context(), "ip", "link", "add", "d0", "type", "dummy")
	switch probe := Dummy().Probe(); {
	case probe == nil && err != nil, errors.Is(probe, ErrNotSupported) && err == nil:
		t.Errorf("probe says %v, ip says %v", probe, err)
	case probe != nil && !errors.Is(probe, ErrNotSupported):
		t.Errorf("probe could not find out: %v", probe)
	}
}

//lane:vm
func TestNeedRunsWhereTheFeatureIs(t *testing.T) {
	if !Isolate(t) {
		return
	}
	Need(t, Dummy())
	lb := &Host{Name: "lb"}
	lb.Run(t, "ip", "link", "add", "d0", "type", "dummy")
}

//lane:vm
func TestWithoutRunsWhereTheFeatureIsNot(t *testing.T) {
	if !Isolate(t) {
		return
	}
	Without(t, Dummy())
	lb := &Host{Name: "lb"}
	if _, err := lb.Try(t.Context(), "ip", "link", "add", "d0", "type", "dummy"); err == nil {
		t.Error("the kernel made a dummy device")
	}
}

//lane:vm
func TestBinaryIsOneOfThisRepository(t *testing.T) {
	if _, err := os.Stat(Binary(t, "vipd/hack/rows")); err != nil {
		t.Error(err)
	}
}
