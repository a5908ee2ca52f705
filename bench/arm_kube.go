package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"vipd/lb"
)

// kube is the arm that has IPVS programmed as kube-proxy does (pkg/proxy/ipvs,
// syncProxyRules, syncService and syncEndpoint), with the library that it uses: every
// change goes through all services, asks for each virtual server twice and for its
// destinations once, and makes what is missing, one message a round trip. What else
// kube-proxy writes (addresses, ipsets, iptables) is left out, and a destination that
// goes is deleted at once: this is its best case.
type kube struct {
	handle   *ipvs.Handle
	catalog  *catalog
	messages uint64 // sent so far: each call of the library is one
}

func (k *kube) do(ctx context.Context, r request) (reply, error) {
	switch r.Op {
	case "load":
		return k.load(ctx, r)
	case "change":
		k.catalog.alter(r.Kind, int(r.Seed)) //nolint:gosec // a small number
		return k.timed(ctx, r.Limit)
	}
	return reply{}, fmt.Errorf("the arm of kube-proxy's way does not know %q", r.Op)
}

// load makes everything in an empty namespace.
func (k *kube) load(ctx context.Context, r request) (answer reply, err error) {
	kernel, err := openIPVS(ctx) // has the kernel load what it needs
	if err != nil {
		return answer, err
	}
	if err := kernel.Close(); err != nil {
		return answer, err
	}
	if k.handle, err = ipvs.New(""); err != nil {
		return answer, err
	}
	k.catalog = newCatalog(r.Size)
	return k.timed(ctx, r.Limit)
}

// timed makes one pass.
func (k *kube) timed(ctx context.Context, limit time.Duration) (answer reply, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start, messages := time.Now(), k.messages
	err = k.pass(ctx)
	if ctx.Err() != nil {
		answer.Over = true
		return answer, nil
	}
	answer.addTime("sync", time.Since(start))
	answer.add("messages", float64(k.messages-messages))
	return answer, err
}

// pass makes IPVS equal to the catalog (syncProxyRules). All services are looked at,
// whatever has changed.
func (k *kube) pass(ctx context.Context) error {
	wanted := map[string]bool{}
	for _, s := range k.catalog.services {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		server := kubeServer(s)
		wanted[server.Address.String()] = true
		if err := k.service(server); err != nil {
			return fmt.Errorf("%s: %w", s.Key, err)
		}
		if err := k.endpoints(server, s); err != nil {
			return fmt.Errorf("endpoints of %s: %w", s.Key, err)
		}
	}
	k.messages++
	all, err := k.handle.GetServices() // cleanLegacyService
	if err != nil {
		return err
	}
	for _, server := range all {
		if wanted[server.Address.String()] {
			continue
		}
		k.messages++
		if err := k.handle.DelService(server); err != nil {
			return err
		}
	}
	return nil
}

// service has the virtual server made, if it is not there (syncService).
func (k *kube) service(server *ipvs.Service) error {
	k.messages++
	there, _ := k.handle.GetService(server) // an error is taken for "it is not there"
	switch {
	case there == nil:
		k.messages++
		return k.handle.NewService(server)
	case there.SchedName != server.SchedName || there.Timeout != server.Timeout:
		k.messages++
		return k.handle.UpdateService(server)
	}
	return nil
}

// endpoints has the destinations made and deleted that differ (syncEndpoint).
func (k *kube) endpoints(server *ipvs.Service, s *lb.Spec) error {
	k.messages += 2
	if _, err := k.handle.GetService(server); err != nil {
		return err
	}
	list, err := k.handle.GetDestinations(server)
	if err != nil {
		return err
	}
	stand := map[string]*ipvs.Destination{}
	for _, d := range list {
		stand[net.JoinHostPort(d.Address.String(), fmt.Sprint(d.Port))] = d
	}
	for _, b := range s.Backends {
		name := b.Addr.String()
		d := stand[name]
		delete(stand, name)
		if d != nil && d.Weight == int(b.Weight) {
			continue
		}
		put := k.handle.NewDestination
		if d != nil {
			put = k.handle.UpdateDestination
		}
		k.messages++
		err := put(server, &ipvs.Destination{Address: b.Addr.Addr().AsSlice(), Port: b.Addr.Port(), Weight: int(b.Weight), AddressFamily: unix.AF_INET})
		if err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(stand)) {
		k.messages++
		if err := k.handle.DelDestination(server, stand[name]); err != nil {
			return err
		}
	}
	return nil
}

// kubeServer returns the virtual server of a service.
func kubeServer(s *lb.Spec) *ipvs.Service {
	return &ipvs.Service{
		Address: s.Key.Addr.AsSlice(), Port: s.Key.Port, Protocol: unix.IPPROTO_TCP,
		SchedName: string(s.Scheduler), AddressFamily: unix.AF_INET, Netmask: 0xffffffff,
	}
}
