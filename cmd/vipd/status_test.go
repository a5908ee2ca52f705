package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"vipd/desired"
	"vipd/lb"
	"vipd/reconciler"
)

// status is one of three services: with nothing special, with all of it, and one
// that is drained.
func status() reconciler.Status {
	at := netip.MustParseAddrPort
	svc := func(name, key string, s desired.Service) reconciler.ServiceStatus {
		k, _ := lb.ParseKey(key)
		s.Name, s.Key, s.Mode = name, k, lb.IPTables
		return reconciler.ServiceStatus{Service: s, State: "serving"}
	}
	return reconciler.Status{Services: []reconciler.ServiceStatus{
		svc("plain", "192.0.2.10:80/tcp", desired.Service{Backends: []desired.Backend{
			{Addr: at("10.0.0.1:80"), Weight: 1, State: "active"}, {Addr: at("10.0.0.2:80"), State: "drained"},
		}}),
		svc("rich", "192.0.2.11:80/sctp", desired.Service{
			Affinity: 10 * time.Minute,
			Clients:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("198.51.100.0/24")},
		}),
		svc("one", "[2001:db8::10]:80/udp", desired.Service{Clients: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}}),
	}}
}

func TestExplainTellsAffinityAndRanges(t *testing.T) {
	s := status()
	rich := s.Services[1]
	rich.Source, rich.Scheduler, rich.Masquerade = "static", lb.WRR, lb.MasqueradeNever
	var b strings.Builder
	err := explain(&b, explanation{
		Services: []reconciler.ServiceStatus{rich},
		Problems: []reconciler.ProblemStatus{{Key: rich.Key, Source: "static", Name: "other", Reason: "it came later"}},
	})
	want := `192.0.2.11:80/sctp is service rich of source static, in mode iptables: serving
  clients: 10.0.0.0/8, 198.51.100.0/24; others get no answer, but for this host itself
  choice: at random, by weight (wrr); a client comes back to the backend of its last connection for 10m
  source address: backends see the client and must answer through this host (masquerade never)
  no backend may get a new connection: it is refused
other of source static claims 192.0.2.11:80/sctp and is not served: it came later
`
	if err != nil || b.String() != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, b.String(), want)
	}
}

// Of a service in mode ipvs it is told how packets get to the backends, and of one
// for which another mode stands in, what it lacks.
func TestB67_ExplainAndStatusTellOfModes(t *testing.T) {
	backends := []desired.Backend{{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Weight: 1, State: "active"}}
	for _, tt := range []struct {
		svc  desired.Service
		want []string
	}{
		{desired.Service{Mode: lb.IPVS, Scheduler: lb.MH, Flags: lb.FlagPort, Masquerade: lb.MasqueradeAlways},
			[]string{"choice: maglev-hashing (mh, mh-port)\n", "source address: backends see this host"}},
		{desired.Service{Mode: lb.IPVS, Scheduler: lb.WRR, Forward: lb.ForwardDR, Masquerade: lb.MasqueradeNever},
			[]string{"choice: by weight (wrr)\n", "forwarding: each packet as it came, over the link that this host shares with the backend (dr)"}},
		{desired.Service{Mode: lb.IPVS, Scheduler: lb.RR, Forward: lb.ForwardTunnel, Tunnel: lb.Tunnel{Type: lb.TunnelGUE, Port: 6080}},
			[]string{"choice: in turn (rr)\n", "inside another one (tunnel, gue to UDP port 6080); backends have the VIP"}},
		{desired.Service{Mode: lb.IPVS, Scheduler: lb.RR, Forward: lb.ForwardTunnel}, []string{"(tunnel, ipip);"}},
		{desired.Service{Mode: lb.IPTables, Scheduler: lb.WRR, Note: "scheduler lc is wrr here"},
			[]string{"choice: at random, by weight (wrr)\n", "  scheduler lc is wrr here\n"}},
	} {
		tt.svc.Key, _ = lb.ParseKey("192.0.2.10:80/tcp")
		tt.svc.Backends = backends
		services := []reconciler.ServiceStatus{{Service: tt.svc, State: "serving"}}
		var b strings.Builder
		if err := explain(&b, explanation{Services: services}); err != nil {
			t.Fatal(err)
		}
		for _, want := range tt.want {
			if !strings.Contains(b.String(), want) {
				t.Errorf("it does not say %q:\n%s", want, b.String())
			}
		}
		b.Reset()
		if err := printStatus(&b, reconciler.Status{Services: services}, false); err != nil {
			t.Fatal(err)
		}
		if said := strings.Contains(b.String(), "degraded:  192.0.2.10:80/tcp: "+tt.svc.Note); said != (tt.svc.Note != "") {
			t.Errorf("degraded: %t in\n%s", said, b.String())
		}
	}
}

func TestStatusTellsAffinityAndRanges(t *testing.T) {
	var b strings.Builder
	if err := printStatus(&b, status(), true); err != nil {
		t.Fatal(err)
	}
	want := `
SERVICE  VIP                    MODE      STATE    AFFINITY  CLIENTS   BACKEND      WEIGHT  STATE
plain    192.0.2.10:80/tcp      iptables  serving  -         all       10.0.0.1:80  1       active
                                                                       10.0.0.2:80  0       drained
rich     192.0.2.11:80/sctp     iptables  serving  10m       2 ranges  -                    
one      [2001:db8::10]:80/udp  iptables  serving  -         fd00::/8  -                    

clients of rich 192.0.2.11:80/sctp:
  10.0.0.0/8
  198.51.100.0/24
`
	if got := "\n" + b.String(); !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	b.Reset()
	if err := printStatus(&b, status(), false); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "198.51.100.0/24") {
		t.Errorf("the table of all services lists every range:\n%s", b.String())
	}
}
