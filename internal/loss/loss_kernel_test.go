//go:build kernel

package loss_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
)

// TestPacketsLostOnTheWayAreSeen breaks the way between two hosts as a load
// balancer could, and asks that each kind of damage is counted as what it is.
func TestPacketsLostOnTheWayAreSeen(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	lab := kerneltest.NewLab(t, 1)
	b := lab.Backends[0]
	tcp := []netip.AddrPort{netip.AddrPortFrom(b.Addr4, 80), netip.AddrPortFrom(b.Addr6, 80)}
	s, err := loss.Serve(t.Context(), loss.ServerOptions{Name: "b1", In: b.Do, TCP: tcp, UDP: tcp})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, set := range []string{"seen4 hash:ip,port family inet", "seen6 hash:ip,port family inet6"} {
		lab.LB.Run(t, "ipset", append([]string{"create"}, strings.Fields(set)...)...)
	}
	tests := []struct {
		name     string
		rules    []string // in FORWARD of the load balancer; 4 stands for the family
		tcp, udp loss.Class
	}{
		{"nothing", nil, loss.OK, loss.OK},
		{"all is dropped", []string{"-j DROP"}, loss.Timeout, loss.Timeout},
		{"answers are dropped", []string{"-i br0 -j DROP"}, loss.Timeout, loss.Timeout},
		{"refused", []string{"-p tcp -j REJECT --reject-with tcp-reset", "-p udp -j REJECT"}, loss.Refused, loss.Refused},
		{"RST to the request", []string{"-p tcp --tcp-flags PSH PSH -j REJECT --reject-with tcp-reset"}, loss.Reset, loss.OK},
		{"first SYN is dropped", []string{
			"-p tcp --syn -m set --match-set seen4 src,src -j ACCEPT",
			"-p tcp --syn -j SET --add-set seen4 src,src",
			"-p tcp --syn -j DROP",
		}, loss.Retransmit, loss.OK},
	}
	for _, tt := range tests {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			for tool, family := range map[string]string{"iptables-nft": "seen4", "ip6tables-nft": "seen6"} {
				lab.LB.Run(t, tool, "-F", "FORWARD")
				for _, rule := range tt.rules {
					rule = strings.ReplaceAll(rule, "seen4", family)
					lab.LB.Run(t, tool, append([]string{"-A", "FORWARD"}, strings.Fields(rule)...)...)
				}
			}
			l := loss.Start(t.Context(), loss.Options{In: lab.Client.Do, Deadline: 2500 * time.Millisecond})
			for _, target := range tcp {
				l.Connect(loss.Connections{Target: target, Rate: 100, Count: 10})
				// ICMP errors are limited to one a second and client, six at once.
				l.Send(loss.Flows{Target: target, Count: 1, Every: 20 * time.Millisecond, Each: 3})
			}
			r := l.Wait()
			if r.Connections.Classes[tt.tcp] != 20 || r.Datagrams.Classes[tt.udp] != 6 || r.Total() != 26 {
				t.Errorf("want 20 %s and 6 %s:\n%s", tt.tcp, tt.udp, r)
			}
		})
	}
}
