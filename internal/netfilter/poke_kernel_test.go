//go:build kernel

package netfilter

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
	"vipd/lb"
)

// own returns the address of a host in the family of the lab.
func (l *flowLab) own(h *kerneltest.Host) netip.Addr {
	if FamilyOf(l.vip) == IPv6 {
		return h.Addr6
	}
	return h.Addr4
}

// ofPokeLine tells an entry that carried a poke: a TCP entry without NAT.
func ofPokeLine(line string) bool {
	word := map[string][]string{}
	for _, w := range strings.Fields(line) {
		name, value, _ := strings.Cut(w, "=")
		word[name] = append(word[name], value)
	}
	src, dst := word["src"], word["dst"]
	return strings.HasPrefix(line, "tcp") && len(src) == 2 && src[0] == dst[1] && dst[0] == src[1] &&
		word["sport"][0] == word["dport"][1] && word["dport"][0] == word["sport"][1]
}

// Both ends of an idle connection are reset once its entry is evicted: masqueraded
// or not, from a remote client, from the load balancer itself, to a backend on it.
//
//lane:vm
func TestDrainedConnectionIsResetAtBothEnds(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		for _, from := range []*kerneltest.Host{l.Client, l.LB} {
			for _, to := range []*kerneltest.Host{l.Backends[0], l.LB} {
				for _, masq := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s to %s masq %t", from.Name, to.Name, masq), func(t *testing.T) {
						l := *l
						l.t = t
						target := netip.AddrPortFrom(l.own(to), 8080)
						server := l.tcpServer(to, target)
						l.serve(masq, "80/tcp", target.String())
						client1, backend1 := l.connect(from, 0, 80, server)
						client2, backend2 := l.connect(from, 0, 80, server)
						done := l.evict(2, Eviction{Key: l.key(80, lb.TCP), Backend: target})
						if done.Poked != 2 {
							t.Errorf("%d of 2 connections poked", done.Poked)
						}
						isReset(t, "client 1", client1)
						isReset(t, "backend 1", backend1)
						isReset(t, "client 2", client2)
						isReset(t, "backend 2", backend2)
					})
				}
			}
		}
	})
}

// So they are where conntrack takes up no connection that it did not see begin
// (nf_conntrack_tcp_loose=0), and what is INVALID is dropped, of backends as well:
// the answers to a poke belong to the entry that carried it.
//
//lane:vm
func TestDrainedConnectionIsResetWithoutLooseTracking(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		l.LB.SetSysctl(t, "net.netfilter.nf_conntrack_tcp_loose", "0")
		l.rules("mangle", "\n-A PREROUTING -m conntrack --ctstate INVALID -j DROP")
		server := l.tcpServer(l.Backends[0], l.at(0, 8080))
		for _, from := range []*kerneltest.Host{l.Client, l.LB} {
			for _, masq := range []bool{false, true} {
				l.serve(masq, "80/tcp", l.at(0, 8080).String())
				client, backend := l.connect(from, 0, 80, server)
				l.evict(1, Eviction{Key: l.key(80, lb.TCP), Backend: l.at(0, 8080)})
				isReset(t, fmt.Sprintf("client %s masq %t", from.Name, masq), client)
				isReset(t, fmt.Sprintf("backend of %s masq %t", from.Name, masq), backend)
			}
		}
	})
}

// The connections of another backend do not notice.
func TestDrainSparesOtherConnections(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		one, two := l.tcpServer(l.Backends[0], l.at(0, 8080)), l.tcpServer(l.Backends[0], l.at(0, 8081))
		l.serve(false, "80/tcp", l.at(0, 8080).String())
		client, backend := l.connect(l.Client, 0, 80, one)
		l.serve(false, "80/tcp", l.at(0, 8081).String())
		keptClient, keptBackend := l.connect(l.Client, 0, 80, two)
		l.evict(1, Eviction{Key: l.key(80, lb.TCP), Backend: l.at(0, 8080)})
		isReset(t, "client", client)
		isReset(t, "backend", backend)
		exchange(t, keptClient, keptBackend)
		exchange(t, keptBackend, keptClient)
	})
}

// What the pokes leave in conntrack does not swallow a new connection from the
// same source port: not while the pokes are under way, not right after them.
func TestClientMayUseItsPortAgainAfterTheDrain(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		for _, masq := range []bool{false, true} {
			for _, same := range []bool{false, true} {
				t.Run(fmt.Sprintf("masq %t same backend %t", masq, same), func(t *testing.T) {
					l := *l
					l.t = t
					next := l.at(1, 8080)
					one := l.tcpServer(l.Backends[0], l.at(0, 8080))
					two := l.tcpServer(l.Backends[1], next)
					if same {
						next, two = l.at(0, 8080), one
					}
					const port = 7777
					for round := range 5 {
						l.serve(masq, "80/tcp", l.at(0, 8080).String())
						client, backend := l.connect(l.Client, port, 80, one)
						l.serve(masq, "80/tcp", next.String())
						l.evict(1, Eviction{Key: l.key(80, lb.TCP), Backend: l.at(0, 8080)})
						if round%2 == 0 { // else the SYN comes as early as can be
							isReset(t, "backend", backend)
							isReset(t, "client", client)
						}
						check(t, client.(*net.TCPConn).SetLinger(0))
						closeAny(client)
						again, backendAgain := l.connect(l.Client, port, 80, two)
						exchange(t, again, backendAgain)
						exchange(t, backendAgain, again)
						check(t, again.(*net.TCPConn).SetLinger(0))
						check(t, again.Close())
						closeAny(backend)
						closeAny(backendAgain)
					}
				})
			}
		}
	})
}

// Without CAP_NET_RAW entries are still deleted, connections end at the client's
// next packet, and the log says so once.
func TestDrainWithoutRawSockets(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		server := l.tcpServer(l.Backends[0], l.at(0, 8080))
		l.serve(false, "80/tcp", l.at(0, 8080).String())
		for range 2 {
			client, _ := l.connect(l.Client, 0, 80, server)
			var done Evicted
			err := withoutCapability(unix.CAP_NET_RAW, func() (err error) {
				done, err = l.ct.Evict(t.Context(), Eviction{Key: l.key(80, lb.TCP), Backend: l.at(0, 8080)})
				return err
			})
			if err != nil || done.Deleted != 1 || done.Poked != 0 {
				t.Errorf("%+v, %v", done, err)
			}
			_, err = client.Write([]byte("x"))
			check(t, err)
			isReset(t, "client", client)
		}
		if n := strings.Count(l.logs.String(), "CAP_NET_RAW"); n != 1 {
			t.Errorf("the log says it %d times: %s", n, l.logs)
		}
	})
}

// Also where nobody answered the poke: the entry that carried it, which is then as
// it was made, gives way to a SYN.
//
//lane:vm
func TestEntryOfAPokeGivesWayToANewConnection(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *flowLab) {
		server := l.tcpServer(l.Backends[0], l.at(0, 8080))
		l.serve(false, "80/tcp", l.at(0, 8080).String())
		client := netip.AddrPortFrom(l.own(l.Client), 7777)
		for _, dst := range []netip.AddrPort{netip.AddrPortFrom(l.vip, 80), l.at(0, 8080)} {
			check(t, l.ct.writer.request(t.Context(), createRequest(tuple{lb.TCP, client, dst}, testMark, 0, pokeLifetime)))
		}
		l.connect(l.Client, client.Port(), 80, server)
		l.evict(1, Eviction{Key: l.key(80, lb.TCP), Backend: l.at(0, 8080)})
	})
}
