package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"vipd/lb"
)

// TOML returns the configuration in its one canonical spelling, with every
// default filled in. Parsing it gives an equal Config.
func (c *Config) TOML() string {
	var b strings.Builder
	table := ""
	for _, k := range newParser(nil).settings() {
		i := strings.LastIndexByte(k.path, '.')
		if k.path[:i] != table {
			if table != "" {
				b.WriteByte('\n')
			}
			table = k.path[:i]
			fmt.Fprintf(&b, "[%s]\n", table)
		}
		fmt.Fprintf(&b, "%s = %s\n", k.path[i+1:], k.show(c))
	}
	for _, specs := range byName(c.Services) {
		writeService(&b, specs)
	}
	return b.String()
}

// byName groups the specs that one [[service]] made.
func byName(services []*lb.Spec) [][]*lb.Spec {
	index := map[string]int{}
	var groups [][]*lb.Spec
	for _, s := range services {
		i, found := index[s.Name]
		if !found {
			i = len(groups)
			index[s.Name] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], s)
	}
	return groups
}

// writeService writes one [[service]], which has every port on every VIP.
func writeService(b *strings.Builder, specs []*lb.Spec) {
	s := specs[0]
	vips := distinct(specs, func(k lb.Key) string { return showText(k.Addr.String()) })
	ports := distinct(specs, func(k lb.Key) string { return fmt.Sprint(k.Port) })
	fmt.Fprintf(b, "\n[[service]]\nname = %s\n", showText(s.Name))
	writePlural(b, "vip", vips)
	writePlural(b, "port", ports)
	fmt.Fprintf(b, "protocol = %s\n", showText(s.Key.Protocol.String()))
	if s.Mode != "" {
		fmt.Fprintf(b, "mode = %s\n", showText(s.Mode))
	}
	fmt.Fprintf(b, "scheduler = %s\n", showText(s.Scheduler))
	if s.Scheduler.Hashes() {
		fmt.Fprintf(b, "scheduler_flags = %s\n", showFlags(s.Scheduler, s.Flags))
	}
	fmt.Fprintf(b, "affinity_timeout = %s\ndrain_timeout = %s\nallow = %s\nforward = %s\n",
		showDuration(s.Affinity), showDuration(s.DrainTimeout), showPrefixes(clientsOf(specs)), showForward(s.Forward))
	if s.Forward == lb.ForwardTunnel {
		fmt.Fprintf(b, "tunnel = %s\n", showText(s.Tunnel.Type.String()))
	}
	if s.Tunnel.Type == lb.TunnelGUE {
		fmt.Fprintf(b, "tunnel_port = %d\n", s.Tunnel.Port)
	}
	fmt.Fprintf(b, "masquerade = %s\n", showText(s.Masquerade))
	writeBackends(b, backendsOf(specs, len(ports) > 1))
}

// distinct returns what text makes of the keys, each value once, in their order.
func distinct(specs []*lb.Spec, text func(lb.Key) string) []string {
	var all []string
	seen := map[string]bool{}
	for _, s := range specs {
		if t := text(s.Key); !seen[t] {
			seen[t] = true
			all = append(all, t)
		}
	}
	return all
}

func writePlural(b *strings.Builder, key string, values []string) {
	if len(values) == 1 {
		fmt.Fprintf(b, "%s = %s\n", key, values[0])
		return
	}
	fmt.Fprintf(b, "%ss = [%s]\n", key, strings.Join(values, ", "))
}

// clientsOf returns the ranges of both families. If one has some and the other one
// takes everybody, that has to be written.
func clientsOf(specs []*lb.Spec) []netip.Prefix {
	var all []netip.Prefix
	some := slices.ContainsFunc(specs, func(s *lb.Spec) bool { return len(s.Clients) > 0 })
	seen := map[bool]bool{} // families
	for _, s := range specs {
		a := s.Key.Addr
		if !some || seen[a.Is4()] {
			continue
		}
		seen[a.Is4()] = true
		if len(s.Clients) == 0 {
			all = append(all, everybody(a))
		}
		all = append(all, s.Clients...)
	}
	return all
}

// backendsOf returns the backends as they have to be written. With several ports
// one that is not the same on all of them is one that inherits the port.
func backendsOf(specs []*lb.Spec, severalPorts bool) []lb.BackendSpec {
	perAddr := map[netip.AddrPort]int{} // how many ports of the service it is behind
	firstVIP := map[bool]netip.Addr{}   // of each family
	ports := 0
	for _, s := range specs {
		is4 := s.Key.Addr.Is4()
		if _, seen := firstVIP[is4]; !seen {
			firstVIP[is4] = s.Key.Addr
		}
		if s.Key.Addr == specs[0].Key.Addr {
			ports++
		}
		if s.Key.Addr != firstVIP[is4] {
			continue
		}
		for _, b := range s.Backends {
			perAddr[b.Addr]++
		}
	}
	var all []lb.BackendSpec
	seen := map[netip.AddrPort]bool{}
	for _, s := range specs {
		if s.Key.Addr != firstVIP[s.Key.Addr.Is4()] {
			continue
		}
		for _, b := range s.Backends {
			if severalPorts && perAddr[b.Addr] < ports {
				b.Addr = netip.AddrPortFrom(b.Addr.Addr(), 0)
			}
			if !seen[b.Addr] {
				seen[b.Addr] = true
				all = append(all, b)
			}
		}
	}
	slices.SortFunc(all, func(a, b lb.BackendSpec) int { return a.Addr.Compare(b.Addr) })
	return all
}

// writeBackends writes plain backends in the short form and the others in the
// long one.
func writeBackends(b *strings.Builder, backends []lb.BackendSpec) {
	var short []string
	var long []lb.BackendSpec
	for _, be := range backends {
		if be.Weight == 1 && be.State == lb.Active {
			short = append(short, showText(showBackend(be.Addr)))
		} else {
			long = append(long, be)
		}
	}
	if len(short) > 0 || len(long) == 0 {
		fmt.Fprintf(b, "backends = [%s]\n", strings.Join(short, ", "))
	}
	for _, be := range long {
		fmt.Fprintf(b, "\n[[service.backend]]\naddress = %s\nweight = %d\nstate = %s\n",
			showText(showBackend(be.Addr)), be.Weight, showText(be.State.String()))
	}
}

// showBackend is "address:port", or the address alone where it inherits the port.
func showBackend(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}
