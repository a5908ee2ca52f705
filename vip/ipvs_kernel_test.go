//go:build kernel

//lane:vm

package vip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
)

// nat makes a service of the mode ipvs.
func nat(key string, masq lb.Masquerade, backends ...string) *lb.Service {
	return byIPVS(svc(key, masq, backends...), lb.ForwardNAT)
}

// ipvsService are the words of ipvsadm for a service: "-t 192.0.2.10:80".
func ipvsService(s *lb.Service) string {
	return map[lb.Protocol]string{lb.TCP: "-t ", lb.UDP: "-u ", lb.SCTP: "--sctp-service "}[s.Key.Protocol] + s.Key.AddrPort().String()
}

// virtual makes the virtual server of a service, as a proxier would.
func virtual(t *testing.T, w *world, s *lb.Service) {
	t.Helper()
	w.sh(t, fmt.Sprintf("ipvsadm -A %s -s rr", ipvsService(s)))
	for _, b := range s.Backends {
		w.sh(t, fmt.Sprintf("ipvsadm -a %s -r %s %s", ipvsService(s), b.Addr, ipvsMethod(s)))
	}
}

// ipvsMethod is the word of ipvsadm for a way of forwarding.
func ipvsMethod(s *lb.Service) string {
	return map[lb.Forward]string{lb.ForwardNAT: "-m", lb.ForwardDR: "-g", lb.ForwardTunnel: "-i"}[s.Forward]
}

// serveIPVS makes virtual servers for all that the services are, and opens the door
// as a pass does, on a host whose policy is to drop everything.
func serveIPVS(t *testing.T, w *world, lab *kerneltest.Lab, d *Door, want lb.Snapshot) {
	t.Helper()
	kerneltest.Need(t, kerneltest.IPVS())
	lab.LB.SetSysctl(t, "net.ipv4.vs.conntrack", "1")
	lab.LB.SetSysctl(t, "net.ipv4.vs.expire_nodest_conn", "1")
	fatal(t, d.Shut(t.Context(), want, prune))
	for s := range want.All() {
		virtual(t, w, s)
	}
	for _, p := range places(lab) {
		w.sh(t, fmt.Sprintf("%[1]s -P FORWARD DROP\n%[1]s -P INPUT DROP", p.tool))
		if p.family == netfilter.IPv6 {
			w.sh(t, "ip6tables -A INPUT -p ipv6-icmp -j ACCEPT") // neighbours
		}
	}
	fatal(t, d.Open(t.Context(), want, prune))
}

// inIPVS is inLab with virtual servers in place of rules, which serve UDP and SCTP as
// well, and at port 81 a backend that is the load balancer itself.
func inIPVS(t *testing.T, masq lb.Masquerade, backends int, f func(t *testing.T, w *world, lab *kerneltest.Lab, p place, all lb.Snapshot)) {
	if !kerneltest.Isolate(t) {
		return
	}
	kerneltest.Need(t, kerneltest.IPVS())
	kerneltest.InMode(t, "ipvs")
	lab := kerneltest.NewLab(t, backends)
	w := realWorld()
	var list []*lb.Service
	for _, p := range places(lab) {
		to, idle := at(p.backends[0], 8080), at(p.idle, 80)
		list = append(list, nat(at(p.vip, 80), masq, to), nat(at(p.vip, 80)+"/udp", masq, to), nat(at(p.vip, 80)+"/sctp", masq, to),
			nat(at(p.vip, 81), masq, at(p.direct, 8081)), nat(idle, masq), nat(idle+"/udp", masq))
		for i, b := range lab.Backends {
			serve(t, b, at(p.backends[i], 8080))
			serveUDP(t, b, at(p.backends[i], 8080))
			serveOn(t, b, listenSCTP(t, b, at(p.backends[i], 8080)))
		}
		serve(t, lab.LB, at(p.direct, 8081))
	}
	all := services(list...)
	serveIPVS(t, w, lab, w.door(t, atInput), all)
	for _, p := range places(lab) {
		t.Run(p.family.String(), func(t *testing.T) { f(t, w, lab, p, all) })
	}
}

// serveUDP answers each datagram with "NAME PEER".
func serveUDP(t *testing.T, h *kerneltest.Host, addr string) {
	t.Helper()
	c, err := h.ListenPacket(t.Context(), net.ListenConfig{}, "udp", addr)
	fatal(t, err)
	var serving sync.WaitGroup
	t.Cleanup(func() { _ = c.Close(); serving.Wait() })
	serving.Go(func() {
		for b := make([]byte, 100); ; {
			_, peer, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(writerTo{c, peer}, "%s %s", h.Name, netip.MustParseAddrPort(peer.String()).Addr().Unmap())
		}
	})
}

type writerTo struct {
	c    net.PacketConn
	peer net.Addr
}

func (w writerTo) Write(b []byte) (int, error) { return w.c.WriteTo(b, w.peer) }

// answeredUDP wants that answer to a datagram.
func answeredUDP(t *testing.T, h *kerneltest.Host, addr, want string) {
	t.Helper()
	c, err := h.Dial(t.Context(), net.Dialer{}, "udp", addr)
	fatal(t, err)
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	_, err = c.Write([]byte("?"))
	fatal(t, err)
	b := make([]byte, 100)
	n, err := c.Read(b)
	if got := string(b[:n]); err != nil || got != want {
		t.Errorf("%s asks %s by UDP: %q, %v; want %q", h.Name, addr, got, err, want)
	}
}

// socketSCTP opens a socket that is bound to one address: the others of a host would
// be offered, too, and no NAT can translate them.
func socketSCTP(h *kerneltest.Host, at netip.AddrPort) (f *os.File, err error) {
	family := unix.AF_INET6
	if at.Addr().Is4() {
		family = unix.AF_INET
	}
	err = h.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "sctp")
		return errors.Join(unix.Bind(fd, sockaddr(at)), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 3}))
	})
	return f, err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func listenSCTP(t *testing.T, h *kerneltest.Host, addr string) net.Listener {
	t.Helper()
	f, err := socketSCTP(h, netip.MustParseAddrPort(addr))
	fatal(t, err)
	defer func() { _ = f.Close() }()
	fatal(t, unix.Listen(int(f.Fd()), 16))
	l, err := net.FileListener(f) // which takes it for TCP
	fatal(t, err)
	return l
}

// answeredSCTP wants that answer in an association.
func answeredSCTP(t *testing.T, h *kerneltest.Host, source, addr, want string) {
	t.Helper()
	f, err := socketSCTP(h, netip.MustParseAddrPort(at(source, 0)))
	fatal(t, err)
	defer func() { _ = f.Close() }()
	fatal(t, os.NewSyscallError("connect", unix.Connect(int(f.Fd()), sockaddr(netip.MustParseAddrPort(addr)))))
	c, err := net.FileConn(f)
	fatal(t, err)
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	b := make([]byte, 100)
	n, err := c.Read(b)
	if got := strings.TrimSpace(string(b[:n])); err != nil || got != want {
		t.Errorf("%s asks %s by SCTP: %q, %v; want %q", h.Name, addr, got, err, want)
	}
}

// Every protocol is served from elsewhere, and by TCP from everywhere: from a backend
// that picks itself, its neighbour, and the host itself. The policies of INPUT and
// FORWARD are DROP, and nothing else gets through.
func TestB1_B2_B5_B12_B25_B26_B27_IPVSServes(t *testing.T) {
	for _, masq := range []lb.Masquerade{always, never, auto} {
		t.Run(string(masq), func(t *testing.T) {
			inIPVS(t, masq, 2, func(t *testing.T, w *world, lab *kerneltest.Lab, p place, _ lb.Snapshot) {
				source := p.client
				if masq == always {
					source = p.direct
				}
				answered(t, lab.Client, at(p.vip, 80), "b1 "+source)
				answeredUDP(t, lab.Client, at(p.vip, 80), "b1 "+source)
				answeredSCTP(t, lab.Client, p.client, at(p.vip, 80), "b1 "+source)
				answered(t, lab.Client, at(p.vip, 81), "lb "+p.client) // to a backend on this host nothing is masqueraded
				answered(t, lab.Backends[0], at(p.vip, 80), "b1 "+p.direct)
				if masq != never { // then the answer to a neighbour goes past this host, as documented
					answered(t, lab.Backends[1], at(p.vip, 80), "b1 "+p.direct)
				}
				w.sh(t, fmt.Sprintf("%s -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", p.tool)) // of the operator, for the host's own connections
				answered(t, lab.LB, at(p.vip, 80), "b1 "+p.direct)
				answeredUDP(t, lab.LB, at(p.vip, 80), "b1 "+p.direct)
				w.sh(t, fmt.Sprintf("%s -A INPUT -i lo -j ACCEPT", p.tool)) // likewise, for the backend that is the host
				if got, _, err := ask(t, lab.LB, at(p.vip, 81), 3*time.Second); err != nil || !strings.HasPrefix(got, "lb ") {
					t.Errorf("the host asks itself: %q, %v", got, err)
				}
				timesOut(t, lab.Client, at(p.backends[0], 8080)) // past the VIP: FORWARD
			})
		})
	}
}

// What no service uses and what has no backend is refused at once, although daemons
// of the host listen on all addresses; so is what begins at a service whose backends
// all drain, while its connections go on.
func TestB17_B18_B19_B20_IPVSGuard(t *testing.T) {
	inIPVS(t, never, 1, func(t *testing.T, w *world, lab *kerneltest.Lab, p place, all lb.Snapshot) {
		for _, port := range []int{80, 2200} {
			serve(t, lab.LB, at(daemons(p), port))
			serveUDP(t, lab.LB, at(daemons(p), port))
		}
		for _, addr := range []string{at(p.vip, 2200), at(p.idle, 2200), at(p.idle, 80)} {
			refusedTCP(t, lab.Client, addr)
		}
		if err := askUDP(t, lab.Client, at(p.idle, 80)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("UDP without a backend: %v, want it refused", err)
		}
		fatal(t, ping(t, lab.Client, p.vip))
		old := answered(t, lab.Client, at(p.vip, 80), "b1 "+p.client)
		s := nat(at(p.vip, 80), never, at(p.backends[0], 8080))
		d, edit := w.door(t, atInput), all.Edit()
		edit.Put(drained(s))
		want := edit.Snapshot()
		fatal(t, d.Shut(t.Context(), want, prune))
		w.sh(t, fmt.Sprintf("ipvsadm -e %s -r %s -m -w 0", ipvsService(s), at(p.backends[0], 8080)))
		fatal(t, d.Open(t.Context(), want, prune))
		refusedTCP(t, lab.Client, at(p.vip, 80))
		// The host's own call meets the virtual server, which refuses by ICMP.
		if _, _, err := ask(t, lab.LB, at(p.vip, 80), 3*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the host's own call: %v, want it refused", err)
		}
		echoes(t, old)
	})
}

// daemons is the address on which daemons of the host listen.
func daemons(p place) string {
	return map[netfilter.Family]string{netfilter.IPv4: "0.0.0.0", netfilter.IPv6: "::"}[p.family]
}

// Only clients of the ranges get in; what stands when they change goes on.
func TestB21_B22_IPVSClientRanges(t *testing.T) {
	inIPVS(t, never, 1, func(t *testing.T, w *world, lab *kerneltest.Lab, p place, all lb.Snapshot) {
		d := w.door(t, atInput)
		mine, others := p.client+"/32", "198.51.100.0/24"
		if p.family == netfilter.IPv6 {
			mine, others = p.client+"/128", "2001:db8:9::/48"
		}
		with := func(ranges ...string) {
			t.Helper()
			edit := all.Edit()
			edit.Put(ranged(nat(at(p.vip, 80), never, at(p.backends[0], 8080)), ranges...))
			clean(t, d, edit.Snapshot(), fresh)
		}
		with()
		before := answered(t, lab.Client, at(p.vip, 80), "b1 "+p.client)
		with(others)
		timesOut(t, lab.Client, at(p.vip, 80))
		echoes(t, before)
		with(mine)
		answered(t, lab.Client, at(p.vip, 80), "b1 "+p.client)
	})
}

// A stray segment of either end, far out of the window, ends no connection.
func TestB52_IPVSInvalidPacketsResetNothing(t *testing.T) {
	by := way{
		func(key string, backends ...string) *lb.Service { return nat(key, always, backends...) },
		func(t *testing.T, w *world, p place, backend string) {
			s := ipvsService(nat(at(p.vip, 80), always))
			w.sh(t, fmt.Sprintf("ipvsadm -d %[1]s -r %[2]s\nipvsadm -a %[1]s -r %[3]s -m", s, at(p.backends[0], 8080), backend))
		},
	}
	for name, send := range map[string]func(t *testing.T, lab *kerneltest.Lab, client, backend *net.TCPConn){
		"of the backend": func(t *testing.T, lab *kerneltest.Lab, _, b *net.TCPConn) { strayFrom(t, lab.Backends[0], b) },
		"of the client":  func(t *testing.T, lab *kerneltest.Lab, c, _ *net.TCPConn) { strayFrom(t, lab.Client, c) },
	} {
		t.Run(name, func(t *testing.T) {
			inIPVS(t, always, 1, func(t *testing.T, w *world, lab *kerneltest.Lab, p place, _ lb.Snapshot) {
				stray(t, w, lab, p, by, func(client, backend *net.TCPConn) { send(t, lab, client, backend) })
			})
		})
	}
}
