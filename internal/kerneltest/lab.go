package kerneltest

import (
	"fmt"
	"net/netip"
	"testing"
)

// The networks of a Lab. VIPs are to be taken from VIPNet4 and VIPNet6, which the
// client routes to the load balancer.
const (
	ClientNet4  = "10.1.0.0/24"
	ClientNet6  = "fd00:1::/64"
	BackendNet4 = "10.2.0.0/24"
	BackendNet6 = "fd00:2::/64"
	VIPNet4     = "192.0.2.0/24"
	VIPNet6     = "2001:db8::/64"
)

// MaxBackends is the greatest number of backends of a Lab.
const MaxBackends = 200

// Lab is a load balancer between a client and some backends:
//
//	client 10.1.0.10, fd00:1::10
//	  | veth: "eth0" in the client, "c0" in the load balancer
//	lb     10.1.0.1, fd00:1::1 on c0; 10.2.0.1, fd00:2::1 on the bridge "br0"
//	  | veths: "eth0" in the backend, "b1", "b2".. on br0
//	b1 10.2.0.11, fd00:2::11   b2 10.2.0.12, fd00:2::12   ...
//
// The namespace of the process is the load balancer. It forwards both families. All
// backends are in one broadcast domain, so that a backend that is the client of a
// VIP sees what it would see in a data centre. The default routes of client and
// backends lead to the load balancer.
type Lab struct {
	LB       *Host
	Client   *Host
	Backends []*Host
}

// NewLab builds a Lab with so many backends in the namespaces of the process.
func NewLab(t testing.TB, backends int) *Lab {
	t.Helper()
	if !isolated() {
		t.Fatal("kerneltest: call Isolate first")
	}
	if backends < 0 || backends > MaxBackends {
		t.Fatalf("kerneltest: a lab has 0 to %d backends, not %d", MaxBackends, backends)
	}
	lb := &Host{Name: "lb", Addr4: netip.MustParseAddr("10.1.0.1"), Addr6: netip.MustParseAddr("fd00:1::1")}
	lb.prepare(t)
	lb.SetSysctl(t, "net.ipv4.ip_forward", "1")
	lb.SetSysctl(t, "net.ipv6.conf.all.forwarding", "1")
	lab := &Lab{LB: lb, Client: NewHost(t, "client")}
	lab.addClient(t)
	lb.batch(t,
		"link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
		"link set br0 up",
		"addr add 10.2.0.1/24 dev br0",
		"addr add fd00:2::1/64 dev br0 nodad")
	for range backends {
		lab.AddBackend(t)
	}
	return lab
}

func (l *Lab) addClient(t testing.TB) {
	t.Helper()
	c := l.Client
	c.Addr4, c.Addr6 = netip.MustParseAddr("10.1.0.10"), netip.MustParseAddr("fd00:1::10")
	l.LB.batch(t,
		"link add c0 type veth peer name eth0 netns "+c.Name,
		"link set c0 up",
		"addr add 10.1.0.1/24 dev c0",
		"addr add fd00:1::1/64 dev c0 nodad")
	c.attach(t, l.LB.Addr4, l.LB.Addr6)
}

// AddBackend adds the next backend to the lab and returns it.
func (l *Lab) AddBackend(t testing.TB) *Host {
	t.Helper()
	n := len(l.Backends) + 1
	b := NewHost(t, fmt.Sprintf("b%d", n))
	b.Addr4 = netip.MustParseAddr(fmt.Sprintf("10.2.0.%d", 10+n))
	b.Addr6 = netip.MustParseAddr(fmt.Sprintf("fd00:2::%d", 10+n)) // the same digits, read as hexadecimal
	l.LB.batch(t,
		fmt.Sprintf("link add %s type veth peer name eth0 netns %s", b.Name, b.Name),
		fmt.Sprintf("link set %s master br0 up", b.Name))
	b.attach(t, netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("fd00:2::1"))
	l.Backends = append(l.Backends, b)
	return b
}

// attach gives eth0 of h its addresses and routes everything by the gateways.
func (h *Host) attach(t testing.TB, gateway4, gateway6 netip.Addr) {
	t.Helper()
	h.batch(t,
		"link set eth0 up",
		fmt.Sprintf("addr add %s/24 dev eth0", h.Addr4),
		fmt.Sprintf("addr add %s/64 dev eth0 nodad", h.Addr6),
		fmt.Sprintf("route add 0.0.0.0/0 via %s", gateway4),
		fmt.Sprintf("route add ::/0 via %s", gateway6))
}
