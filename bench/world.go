package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// world is a load balancer between a client and a host that answers at the
// addresses of all backends:
//
//	client 10.1.0.10 -- c0 [lb] b0 -- backend 10.2.0.10 and all of backendNet
//
// The namespace of the process is the load balancer. The client routes everything
// to it.
type world struct {
	client, backend namespace
}

// newWorld builds the world around the namespace of the process.
func newWorld() (*world, error) {
	w := &world{}
	if err := forward(); err != nil {
		return nil, err
	}
	var err error
	if w.client, err = newHost("c0", "10.1.0.1/24", "10.1.0.10/24"); err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	if w.backend, err = newHost("b0", "10.2.0.1/24", "10.2.0.10/24"); err != nil {
		return nil, fmt.Errorf("backend: %w", err)
	}
	err = w.backend.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{
			LinkIndex: lo.Attrs().Index, Dst: ipNet(backendNet), Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL,
		})
	})
	if err != nil {
		return nil, fmt.Errorf("addresses of the backends: %w", err)
	}
	b0, err := netlink.LinkByName("b0")
	if err != nil {
		return nil, err
	}
	route := &netlink.Route{LinkIndex: b0.Attrs().Index, Dst: ipNet(backendNet), Gw: net.IPv4(10, 2, 0, 10)}
	if err := netlink.RouteAdd(route); err != nil {
		return nil, fmt.Errorf("route to the backends: %w", err)
	}
	return w, nil
}

// forward makes the load balancer a router, and has connection tracking forget
// what was reset at once: the benchmark makes more connections than fit otherwise.
func forward() error {
	// Where connection tracking is a module, to ask for its table loads it, and with it
	// come its settings.
	if _, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET); err != nil {
		return fmt.Errorf("connection tracking: %w", err)
	}
	return sysctls(map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0",
		"net/netfilter/nf_conntrack_tcp_timeout_close": "1",
	})
}

func sysctls(values map[string]string) error {
	var errs []error
	for key, value := range values {
		errs = append(errs, os.WriteFile("/proc/sys/"+key, []byte(value), 0o644)) //nolint:gosec // the mode of a sysctl is the kernel's
	}
	return errors.Join(errs...)
}

// namespace is a network namespace, by a descriptor that is never closed: it goes
// with the process.
type namespace int

// newHost makes a namespace that is linked with that of the process, by the
// interface near here and eth0 there, which it routes everything by.
func newHost(near, nearAddr, farAddr string) (namespace, error) {
	ns, err := newNamespace()
	if err != nil {
		return 0, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = near
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}); err != nil {
		return 0, fmt.Errorf("link %s: %w", near, err)
	}
	if err := up(near, nearAddr); err != nil {
		return 0, err
	}
	return ns, ns.do(func() error {
		if err := errors.Join(up("lo", ""), up("eth0", farAddr)); err != nil {
			return err
		}
		gateway := netip.MustParsePrefix(nearAddr).Addr()
		return netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()})
	})
}

func newNamespace() (namespace, error) {
	var fd int
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, see do
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		var err error
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		done <- err
	}()
	err := <-done
	return namespace(fd), err
}

// do runs f on a thread that is in the namespace and waits for it. Sockets that f
// makes stay there.
func (ns namespace) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and no other
		// goroutine ever runs in the namespace.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("setns: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

func up(link, addr string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find %s: %w", link, err)
	}
	if addr != "" {
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(addr))}); err != nil {
			return fmt.Errorf("address %s: %w", addr, err)
		}
	}
	return netlink.LinkSetUp(l)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
