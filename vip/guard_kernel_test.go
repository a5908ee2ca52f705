//go:build kernel

//lane:vm

package vip

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
)

// The addresses of the packet tests, by family.
type place struct {
	family     netfilter.Family
	vip, idle  string // a VIP with a service at port 80, and one without backends
	lb, client string
	backends   []string
	beside     string // a host inside the VIPs' network that is no VIP
	direct     string // the address of the load balancer on the backends' side
	tool       string
}

func places(lab *kerneltest.Lab) []place {
	p4 := place{family: netfilter.IPv4, vip: "192.0.2.10", idle: "192.0.2.11", beside: "192.0.2.200", direct: "10.2.0.1", tool: "iptables", lb: lab.LB.Addr4.String(), client: lab.Client.Addr4.String()}
	p6 := place{family: netfilter.IPv6, vip: "2001:db8::10", idle: "2001:db8::11", beside: "2001:db8::200", direct: "fd00:2::1", tool: "ip6tables", lb: lab.LB.Addr6.String(), client: lab.Client.Addr6.String()}
	for _, b := range lab.Backends {
		p4.backends, p6.backends = append(p4.backends, b.Addr4.String()), append(p6.backends, b.Addr6.String())
	}
	return []place{p4, p6}
}

func at(addr string, port int) string { return net.JoinHostPort(addr, fmt.Sprint(port)) }

// serve answers each TCP connection to h at addr with "NAME PEER", then echoes.
func serve(t *testing.T, h *kerneltest.Host, addr string) {
	t.Helper()
	l, err := h.Listen(t.Context(), net.ListenConfig{}, "tcp", addr)
	fatal(t, err)
	serveOn(t, h, l)
}

// serveOn does so for what listens already. It closes it.
func serveOn(t *testing.T, h *kerneltest.Host, l net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var serving sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		cancel()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			serving.Go(func() {
				defer stop()
				defer func() { _ = c.Close() }()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				peer := netip.MustParseAddrPort(c.RemoteAddr().String())
				if _, err := fmt.Fprintf(c, "%s %s\n", h.Name, peer.Addr().Unmap()); err == nil {
					_, _ = io.Copy(c, c)
				}
			})
		}
	})
}

// ask connects from h and returns the first answer; the error tells how it was
// refused.
func ask(t *testing.T, h *kerneltest.Host, addr string, wait time.Duration) (string, net.Conn, error) {
	t.Helper()
	c, err := h.Dial(t.Context(), net.Dialer{Timeout: wait}, "tcp", addr)
	if err != nil {
		return "", nil, err
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 100)
	n, err := c.Read(b)
	return strings.TrimSpace(string(b[:n])), c, err
}

func answered(t *testing.T, h *kerneltest.Host, addr, want string) net.Conn {
	t.Helper()
	got, c, err := ask(t, h, addr, 3*time.Second)
	if err != nil || got != want {
		t.Fatalf("%s asks %s: %q, %v; want %q", h.Name, addr, got, err, want)
	}
	return c
}

// refusedTCP wants a RST at once.
func refusedTCP(t *testing.T, h *kerneltest.Host, addr string) {
	t.Helper()
	begin := time.Now()
	got, _, err := ask(t, h, addr, 3*time.Second)
	if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(begin) > time.Second {
		t.Errorf("%s asks %s: %q, %v after %v; want it refused at once", h.Name, addr, got, err, time.Since(begin))
	}
}

// askUDP sends one datagram and waits for an answer or an ICMP error.
func askUDP(t *testing.T, h *kerneltest.Host, addr string) error {
	t.Helper()
	c, err := h.Dial(t.Context(), net.Dialer{}, "udp", addr)
	fatal(t, err)
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte("?")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 10))
	return err
}

// ping sends one echo request and waits for the reply.
func ping(t *testing.T, h *kerneltest.Host, addr string) error {
	t.Helper()
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if strings.Contains(addr, ":") {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c, err := h.Dial(t.Context(), net.Dialer{}, network, addr)
	fatal(t, err)
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	packet := []byte{request, 0, 0, 0, 0x76, 0x69, 0, 1}
	var sum uint32
	for i := 0; i < len(packet); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(packet[i:]))
	}
	binary.BigEndian.PutUint16(packet[2:], ^uint16(sum+sum>>16)) // the kernel writes its own for IPv6
	if _, err := c.Write(packet); err != nil {
		return err
	}
	b := make([]byte, 200)
	for {
		n, _, err := c.(*net.IPConn).ReadFromIP(b) // without the header, unlike Read
		if err != nil {
			return err
		}
		if n >= 8 && b[0] == reply && b[4] == 0x76 {
			return nil
		}
	}
}

// dnat makes the rules that a proxier would: what VIPD-SVC does, and one backend.
func dnat(w *world, t *testing.T, p place, service, backend string) {
	t.Helper()
	set := "vipd-%s4"
	if p.family == netfilter.IPv6 {
		set = "vipd-%s6"
	}
	name := func(s string) string { return fmt.Sprintf(set, s) }
	w.sh(t, fmt.Sprintf(`
		%[1]s -t nat -N SVC
		%[1]s -t nat -A SVC -p tcp ! --syn -j RETURN
		%[1]s -t nat -A SVC -j CONNMARK --set-xmark 0x2000/0x2000
		%[1]s -t nat -A SVC -m set --match-set %[2]s dst,dst -j MARK --set-xmark 0x2000/0x2000
		%[1]s -t nat -A SVC -m set --match-set %[3]s dst,dst,src -j MARK --set-xmark 0x2000/0x2000
		%[1]s -t nat -A SVC -p tcp -d %[4]s --dport 80 -j DNAT --to-destination %[5]s
		%[1]s -t nat -I PREROUTING -m set --match-set %[6]s dst -j SVC
		%[1]s -t nat -I OUTPUT -m set --match-set %[6]s dst -j SVC`,
		p.tool, name("masq"), name("auto"), service, backend, name("vip")))
}

// lab starts a door with a service of one backend on a host whose policy is to
// drop everything, and runs f for each family.
func inLab(t *testing.T, masq lb.Masquerade, backends int, f func(t *testing.T, w *world, lab *kerneltest.Lab, p place)) {
	if !kerneltest.Isolate(t) {
		return
	}
	lab := kerneltest.NewLab(t, backends)
	w := realWorld()
	var list []*lb.Service
	for _, p := range places(lab) {
		list = append(list, svc(at(p.vip, 80), masq, at(p.backends[0], 8080)), svc(at(p.idle, 80), masq))
		for i, b := range lab.Backends {
			serve(t, b, at(p.backends[i], 8080))
		}
	}
	d := w.door(t)
	fatal(t, d.Shut(t.Context(), services(list...), prune))
	for _, p := range places(lab) {
		dnat(w, t, p, p.vip, at(p.backends[0], 8080))
		w.sh(t, fmt.Sprintf("%[1]s -P FORWARD DROP\n%[1]s -P INPUT DROP", p.tool))
		if p.family == netfilter.IPv6 {
			w.sh(t, "ip6tables -A INPUT -p ipv6-icmp -j ACCEPT") // neighbours
		}
	}
	fatal(t, d.Open(t.Context(), services(list...), prune))
	for _, p := range places(lab) {
		t.Run(p.family.String(), func(t *testing.T) { f(t, w, lab, p) })
	}
}

// Ports of a VIP without a service, and services without backends, are refused at
// once, although daemons of the host listen on all addresses and its policy is
// DROP. Ping is answered.
func TestB17_B18_B19_B20_Guard(t *testing.T) {
	inLab(t, always, 1, func(t *testing.T, w *world, lab *kerneltest.Lab, p place) {
		l, err := net.ListenPacket("udp", at("::", 2200+int(p.family)))
		fatal(t, err)
		defer func() { _ = l.Close() }()
		serve(t, lab.LB, at("::", 220+int(p.family)))
		w.sh(t, fmt.Sprintf("%s -I INPUT 2 -d %s -j ACCEPT", p.tool, p.lb))
		answered(t, lab.Client, at(p.lb, 220+int(p.family)), "lb "+p.client) // the daemon is there
		for _, vip := range []string{p.vip, p.idle} {
			refusedTCP(t, lab.Client, at(vip, 220+int(p.family)))
			refusedTCP(t, lab.Backends[0], at(vip, 220+int(p.family)))
			if err := askUDP(t, lab.Client, at(vip, 2200+int(p.family))); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("UDP to %s: %v, want it refused", vip, err)
			}
			if err := ping(t, lab.Client, vip); err != nil {
				t.Errorf("ping %s: %v", vip, err)
			}
		}
		refusedTCP(t, lab.Client, at(p.idle, 80))
	})
}

// The policy of FORWARD is DROP: connections that a VIP took pass, and nothing
// else does, also not to a host beside the VIPs. A backend that picks itself,
// another client on the backends' subnet, and the host itself get answers whose
// way back leads through this host.
func TestB25_B26_B27_ForwardAndSources(t *testing.T) {
	for _, masq := range []lb.Masquerade{always, never, auto} {
		t.Run(string(masq), func(t *testing.T) {
			inLab(t, masq, 2, func(t *testing.T, w *world, lab *kerneltest.Lab, p place) {
				source := p.client
				if masq == always {
					source = p.direct
				}
				answered(t, lab.Client, at(p.vip, 80), "b1 "+source)
				w.sh(t, fmt.Sprintf("%s -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", p.tool)) // of the operator, for the host's own connections
				answered(t, lab.Backends[0], at(p.vip, 80), "b1 "+p.direct)
				answered(t, lab.LB, at(p.vip, 80), "b1 "+p.direct)
				if masq != never { // then the answer to a neighbour goes past this host, as documented
					answered(t, lab.Backends[1], at(p.vip, 80), "b1 "+p.direct)
				}

				prefix := netip.PrefixFrom(netip.MustParseAddr(p.beside), netip.MustParseAddr(p.beside).BitLen()).String()
				lab.Backends[0].Run(t, "ip", "addr", "add", prefix, "dev", "lo")
				lab.LB.Run(t, "ip", "route", "add", prefix, "via", p.backends[0])
				serve(t, lab.Backends[0], at(p.beside, 8080))
				if got, _, err := ask(t, lab.Client, at(p.beside, 8080), 500*time.Millisecond); err == nil {
					t.Errorf("a host beside the VIPs was reached: %s", got)
				}
				w.sh(t, p.tool+" -P FORWARD ACCEPT")
				answered(t, lab.Client, at(p.beside, 8080), "b1 "+p.client) // it was there
				w.sh(t, p.tool+" -P FORWARD DROP")
			})
		})
	}
}

// A connection whose conntrack entry is gone is answered by a RST at its next
// packet, and never sent to another backend.
func TestB38_PacketWithoutConntrackIsReset(t *testing.T) {
	inLab(t, never, 1, func(t *testing.T, w *world, lab *kerneltest.Lab, p place) {
		c := answered(t, lab.Client, at(p.vip, 80), "b1 "+p.client)
		lab.LB.Run(t, "conntrack", "-D", "-f", strings.ToLower(p.family.String()), "-d", p.vip)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read after the entry was deleted: %v, want a reset", err)
		}
	})
}

// The host does not choose a VIP as the source of its own connections. An IPv6
// host without any other address would: deprecated is the last choice, not none
// (RFC 6724, rule 3).
func TestVIPIsNoSource(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := realWorld()
	w.sh(t, `
		ip link add e0 type bridge
		ip link set e0 up
		ip link add e1 type bridge
		ip link set e1 up
		ip addr add fd00:60::1/64 dev e1
		ip route add 10.50.0.0/24 dev e0
		ip -6 route add 2001:db8:50::/64 dev e0`)
	clean(t, w.door(t), pair(), prune)
	h := &kerneltest.Host{Name: "lb"}
	source := func(to string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		out, _ := h.Try(ctx, "ip", "route", "get", to) // no source at all is an error
		return out
	}
	for vip, to := range map[string]string{"192.0.2.10": "10.50.0.9", "2001:db8::10": "2001:db8:50::9"} {
		if got := source(to); strings.Contains(got, vip) {
			t.Errorf("the host calls %s as %s: %s", to, vip, got)
		}
	}
	w.sh(t, "ip addr add 192.0.2.11/32 dev vipd0\nip -6 addr add 2001:db8::11/128 dev vipd0 nodad") // another shape would be
	for control, to := range map[string]string{"192.0.2.11": "10.50.0.9", "2001:db8::11": "2001:db8:50::9"} {
		if got := source(to); !strings.Contains(got, "src "+control) {
			t.Errorf("the negative control was not chosen: %s", got)
		}
	}
}

// A neighbour that takes a VIP for on-link gets an ARP answer, unless ARP is
// ignored.
func TestB70_ARPAnswers(t *testing.T) {
	for policy, answers := range map[ARP]bool{ARPUnmanaged: true, ARPIgnore: false} {
		t.Run(string(policy), func(t *testing.T) {
			if !kerneltest.Isolate(t) {
				return
			}
			lab := kerneltest.NewLab(t, 0)
			w := realWorld()
			clean(t, w.door(t, func(o *Options) { o.ARP = policy }), pair(), prune)
			lab.Client.SetSysctl(t, "net/ipv4/neigh/eth0/retrans_time_ms", "50")
			lab.Client.Run(t, "ip", "route", "add", "192.0.2.10/32", "dev", "eth0")
			_, _, err := ask(t, lab.Client, "192.0.2.10:81", 2*time.Second)
			if errors.Is(err, syscall.ECONNREFUSED) != answers {
				t.Errorf("a neighbour asks: %v", err)
			}
			neigh := lab.Client.Run(t, "ip", "neigh", "show", "192.0.2.10")
			if strings.Contains(neigh, "lladdr") != answers {
				t.Errorf("the neighbour knows %q", neigh)
			}
			if err := ping(t, lab.Client, "10.1.0.1"); err != nil { // the host's own address is answered for
				t.Errorf("ping the host: %v", err)
			}
		})
	}
}
