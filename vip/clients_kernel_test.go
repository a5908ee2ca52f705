//go:build kernel

package vip

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/netfilter"
)

// timesOut wants no answer at all: neither a connection nor a refusal.
func timesOut(t *testing.T, h *kerneltest.Host, addr string) {
	t.Helper()
	if got, _, err := ask(t, h, addr, 700*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) && !isTimeout(err) {
		t.Errorf("%s asks %s: %q, %v; want no answer", h.Name, addr, got, err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// echoes proves that a connection lives.
func echoes(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		t.Errorf("an established connection: %v", err)
		return
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Errorf("an established connection: %v", err)
	}
}

// Only clients of the ranges get in, by TCP and UDP; others get no answer. This
// host itself is not asked. A connection that stands goes on when the ranges
// change, also if its client would not get in any more.
//
//lane:vm
func TestB21_B22_ClientRanges(t *testing.T) {
	inLab(t, never, 2, func(t *testing.T, w *world, lab *kerneltest.Lab, p place) {
		d := w.door(t)
		mine, others := p.client+"/32", "198.51.100.0/24"
		if p.family == netfilter.IPv6 {
			mine, others = p.client+"/128", "2001:db8:9::/48"
		}
		all := map[netfilter.Family]string{netfilter.IPv4: "0.0.0.0/0", netfilter.IPv6: "::/0"}[p.family]
		with := func(ranges ...string) {
			t.Helper()
			clean(t, d, services(ranged(svc(at(p.vip, 80), never, at(p.backends[0], 8080)), ranges...),
				ranged(svc(at(p.vip, 80)+"/udp", never, at(p.backends[0], 8080)), ranges...), svc(at(p.idle, 80), never)), fresh)
		}
		with()
		before := answered(t, lab.Client, at(p.vip, 80), "b1 "+p.client)
		with(others)
		timesOut(t, lab.Client, at(p.vip, 80))
		if err := askUDP(t, lab.Client, at(p.vip, 80)); !isTimeout(err) {
			t.Errorf("UDP of a client that is not allowed: %v", err)
		}
		refusedTCP(t, lab.Client, at(p.vip, 81)) // another port of the VIP
		refusedTCP(t, lab.Client, at(p.idle, 80))
		if err := ping(t, lab.Client, p.vip); err != nil {
			t.Errorf("ping: %v", err)
		}
		w.sh(t, fmt.Sprintf("%s -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", p.tool)) // of the operator, for the host's own connections
		answered(t, lab.LB, at(p.vip, 80), "b1 "+p.direct)
		echoes(t, before)

		with(mine)
		c := answered(t, lab.Client, at(p.vip, 80), "b1 "+p.client)
		timesOut(t, lab.Backends[1], at(p.vip, 80))
		with(mine, others)
		echoes(t, c)
		answered(t, lab.Client, at(p.vip, 80), "b1 "+p.client)
		with(others)
		echoes(t, c)
		timesOut(t, lab.Client, at(p.vip, 80))
		with(all)
		answered(t, lab.Client, at(p.vip, 80), "b1 "+p.client)
		echoes(t, before)
	})
}

// Changing ranges never refuses a client that is in the old ones and the new ones,
// and never lets in one that is in neither, however often it happens.
func TestB22_RangesChangeWithoutAGap(t *testing.T) {
	inLab(t, never, 2, func(t *testing.T, w *world, lab *kerneltest.Lab, p place) {
		d := w.door(t)
		wide, narrow := "10.1.0.0/16", "10.1.0.0/24"
		if p.family == netfilter.IPv6 {
			wide, narrow = "fd00:1::/32", "fd00:1::/64"
		}
		change := func(r string) error {
			_, err := tryPass(t.Context(), d, services(ranged(svc(at(p.vip, 80), never, at(p.backends[0], 8080)), r), svc(at(p.idle, 80), never)), prune)
			return err
		}
		fatal(t, change(wide))
		stop, done := make(chan struct{}), make(chan error)
		changes := 0
		go func() {
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				if err := change([]string{narrow, wide}[changes%2]); err != nil {
					done <- err
					return
				}
				changes++
			}
		}()
		for i := range 60 {
			got, c, err := ask(t, lab.Client, at(p.vip, 80), 900*time.Millisecond)
			if err != nil {
				t.Errorf("connection %d from inside both ranges: %q, %v", i, got, err)
				break
			}
			_ = c.Close()
			if i%20 != 0 {
				continue
			}
			if got, _, err := ask(t, lab.Backends[1], at(p.vip, 80), 100*time.Millisecond); err == nil {
				t.Errorf("a client outside all ranges got in: %s", got)
			}
		}
		close(stop)
		fatal(t, <-done)
		t.Logf("%d changes", changes)
	})
}

// After `iptables -t nat -F` a new connection waits for the rules to be mended; it
// is neither refused nor given to a daemon of this host. What has no backend is
// refused at once, as ever.
//
//lane:vm
func TestNewConnectionsWaitForFlushedRules(t *testing.T) {
	inLab(t, never, 1, func(t *testing.T, w *world, lab *kerneltest.Lab, p place) {
		serve(t, lab.LB, at("::", 80)) // a daemon of the host
		w.sh(t, p.tool+" -t nat -F")
		timesOut(t, lab.Client, at(p.vip, 80))
		refusedTCP(t, lab.Client, at(p.idle, 80))
		refusedTCP(t, lab.LB, at(p.vip, 80)) // trying again would not help this host
		type result struct {
			answer string
			took   time.Duration
			err    error
		}
		done := make(chan result)
		go func() {
			begin := time.Now()
			got, _, err := ask(t, lab.Client, at(p.vip, 80), 10*time.Second)
			done <- result{got, time.Since(begin), err}
		}()
		waitForSYN(t, lab.Client, p)
		w.sh(t, p.tool+" -t nat -F SVC\n"+p.tool+" -t nat -X SVC")
		dnat(w, t, p, p.vip, at(p.backends[0], 8080))
		if r := <-done; r.err != nil || r.answer != "b1 "+p.client {
			t.Errorf("a connection that began while the rules were gone: %q, %v", r.answer, r.err)
		} else {
			t.Logf("answered after %v", r.took)
		}
	})
}

// waitForSYN waits until the host has sent the first packet of a connection.
func waitForSYN(t *testing.T, h *kerneltest.Host, p place) {
	t.Helper()
	for range 500 {
		if out := h.Run(t, "ss", "-Htn", "state", "syn-sent", "dst", "["+p.vip+"]"); out != "" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("no connection is being made")
}
