//go:build kernel

//lane:vm

package vip

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
	"vipd/lb"
)

// inDirect serves a VIP by direct routing and another by a tunnel, with a backend that
// has them, too, and answers past the load balancer. The client is its neighbour, since
// answers with a VIP as the source cannot pass a host that has it.
func inDirect(t *testing.T, f func(t *testing.T, w *world, lab *kerneltest.Lab, p place, all lb.Snapshot)) {
	if !kerneltest.Isolate(t) {
		return
	}
	kerneltest.Need(t, kerneltest.IPVS())
	kerneltest.InMode(t, "ipvs")
	lab := kerneltest.NewLab(t, 2)
	w := realWorld()
	b := lab.Backends[0]
	b.SetSysctl(t, "net.ipv4.conf.all.arp_ignore", "1")
	b.SetSysctl(t, "net.ipv4.conf.all.arp_announce", "2")
	var list []*lb.Service
	for _, p := range places(lab) {
		tunnel := map[netfilter.Family]string{netfilter.IPv4: "ipip", netfilter.IPv6: "ip6tnl mode ip6ip6"}[p.family]
		b.Run(t, "sh", "-c", fmt.Sprintf("ip link add tunnel%d type %s local %s && ip link set tunnel%[1]d up", p.family, tunnel, p.backends[0]))
		for _, protocol := range []string{"tcp", "udp"} {
			list = append(list, direct(p, p.vip, protocol), direct(p, p.idle, protocol))
		}
		for _, vip := range []string{p.vip, p.idle} {
			b.Run(t, "ip", "addr", "add", vip, "dev", "lo")
			serve(t, b, at(vip, 80))
			serveUDP(t, b, at(vip, 80))
		}
	}
	all := services(list...)
	serveIPVS(t, w, lab, w.door(t, atInput), all)
	for _, p := range places(lab) {
		t.Run(p.family.String(), func(t *testing.T) { f(t, w, lab, p, all) })
	}
}

// direct is a service of inDirect.
func direct(p place, vip, protocol string) *lb.Service {
	forward := lb.ForwardDR
	if vip == p.idle {
		forward = lb.ForwardTunnel
	}
	return byIPVS(svc(at(vip, 80)+"/"+protocol, always, at(p.backends[0], 80)), forward)
}

// Of these connections this host sees one direction only: to conntrack their packets
// are invalid, or new although they begin nothing. They pass, also when all backends
// drain, and nothing is masqueraded.
func TestB1_B2_B17_DirectRoutingAndTunnel(t *testing.T) {
	inDirect(t, func(t *testing.T, w *world, lab *kerneltest.Lab, p place, all lb.Snapshot) {
		for _, vip := range []string{p.vip, p.idle} {
			answersPastUs(t, w, lab, p, all, vip)
		}
	})
}

func answersPastUs(t *testing.T, w *world, lab *kerneltest.Lab, p place, all lb.Snapshot, vip string) {
	client, source, addr := lab.Backends[1], p.backends[1], at(vip, 80)
	answeredUDP(t, client, addr, "b1 "+source)
	refusedTCP(t, client, at(vip, 81))
	c := answered(t, client, addr, "b1 "+source)
	goesOn := func() {
		t.Helper()
		for range 3 {
			echoes(t, c)
		}
		// As after 120 s.
		_, _ = lab.LB.Try(t.Context(), "conntrack", "-D", "-f", strings.ToLower(p.family.String()), "-p", "tcp", "-d", vip)
		for range 3 {
			echoes(t, c)
		}
	}
	goesOn()

	d := w.door(t, atInput)
	pass := func(s *lb.Service) {
		t.Helper()
		edit := all.Edit()
		edit.Put(s)
		clean(t, d, edit.Snapshot(), prune)
	}
	pass(ranged(direct(p, vip, "tcp"), "198.51.100.0/24"))
	timesOut(t, client, addr)
	s := direct(p, vip, "tcp")
	pass(drained(s))
	w.sh(t, fmt.Sprintf("ipvsadm -e %s -r %s %s -w 0", ipvsService(s), s.Backends[0].Addr, ipvsMethod(s)))
	refusedTCP(t, client, addr)
	goesOn()
	w.sh(t, fmt.Sprintf("ipset flush vipd-direct%d", p.family)) // the control
	if _, err := c.Write([]byte("x")); err == nil {
		_ = c.SetDeadline(time.Now().Add(700 * time.Millisecond))
		if _, err = c.Read(make([]byte, 1)); err == nil {
			t.Error("without the set of the guard the connection goes on")
		}
	}
	clean(t, d, all, fresh)
}
