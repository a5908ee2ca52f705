//go:build kernel

package kerneltest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

//lane:vm
func TestIsolatedProcessSeesOnlyItsOwn(t *testing.T) {
	if !Isolate(t) {
		return
	}
	if os.Getpid() != 1 {
		t.Errorf("process number is %d, want 1: a process namespace of its own", os.Getpid())
	}
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Name() != "lo" {
		t.Errorf("links in /sys: %v, want lo alone", links)
	}
	run, err := os.ReadDir("/run")
	if err != nil {
		t.Fatal(err)
	}
	if len(run) != 0 {
		t.Errorf("/run holds %v, want nothing", run)
	}
}

func TestIsolateReportsSubtests(t *testing.T) {
	t.Run("in a subtest", func(t *testing.T) {
		if !Isolate(t) {
			return
		}
		if links, err := net.Interfaces(); err != nil || len(links) != 1 {
			t.Errorf("interfaces %v, %v; want lo alone", links, err)
		}
	})
}

//lane:vm
func TestLabForwardsBothFamilies(t *testing.T) {
	if !Isolate(t) {
		return
	}
	lab := NewLab(t, 2)
	for _, b := range lab.Backends {
		for _, addr := range []string{b.Addr4.String(), b.Addr6.String()} {
			t.Run(b.Name+" "+addr, func(t *testing.T) { exchange(t, lab.Client, b, addr) })
		}
	}
	t.Run("backend to backend", func(t *testing.T) {
		exchange(t, lab.Backends[0], lab.Backends[1], lab.Backends[1].Addr4.String())
	})
	t.Run("lb to backend", func(t *testing.T) { exchange(t, lab.LB, lab.Backends[0], lab.Backends[0].Addr6.String()) })
	t.Run("client routes VIPs to the lb", func(t *testing.T) {
		for _, vip := range []string{"192.0.2.10", "2001:db8::10"} {
			if out := lab.Client.Run(t, "ip", "route", "get", vip); !strings.Contains(out, " via "+gatewayFor(lab, vip)+" ") {
				t.Errorf("route to %s: %s", vip, out)
			}
		}
	})
}

func gatewayFor(lab *Lab, vip string) string {
	if strings.Contains(vip, ":") {
		return lab.LB.Addr6.String()
	}
	return lab.LB.Addr4.String()
}

// exchange sends a word from one host to another and back over TCP.
func exchange(t *testing.T, from, to *Host, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	l, err := to.Listen(ctx, net.ListenConfig{}, "tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		_, err = fmt.Fprint(c, to.Name)
		_ = c.Close()
		served <- err
	}()
	c, err := from.Dial(ctx, net.Dialer{}, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != to.Name {
		t.Errorf("read %q, %v; want %q", got, err, to.Name)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestHostSysctlIsOfItsNamespace(t *testing.T) {
	if !Isolate(t) {
		return
	}
	h := NewHost(t, "other")
	h.SetSysctl(t, "net.ipv4.ip_forward", "1")
	if got := h.Sysctl(t, "net/ipv4/ip_forward"); got != "1" {
		t.Errorf("ip_forward of the host is %q, want 1", got)
	}
	lb := &Host{Name: "lb"}
	if got := lb.Sysctl(t, "net.ipv4.ip_forward"); got != "0" {
		t.Errorf("ip_forward of the process is %q, want 0: the write went to the wrong namespace", got)
	}
}
