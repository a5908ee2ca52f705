package vip

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vipd/internal/netfilter"
	"vipd/lb"
)

func TestF104_FindingsNameSettingsThatHinder(t *testing.T) {
	for name, c := range map[string]struct {
		set  map[string]string
		arp  ARP
		want string // part of the one finding; empty: none
	}{
		"all well":                      {nil, ARPUnmanaged, ""},
		"no forwarding":                 {map[string]string{"net/ipv4/ip_forward": "0"}, ARPUnmanaged, "net.ipv4.ip_forward is 0"},
		"no IPv6 forwarding":            {map[string]string{"net/ipv6/conf/all/forwarding": "0"}, ARPUnmanaged, "net.ipv6.conf.all.forwarding is 0"},
		"strict everywhere":             {map[string]string{"net/ipv4/conf/all/rp_filter": "1"}, ARPUnmanaged, "strict (1) on eth0, eth1"},
		"strict on one":                 {map[string]string{"net/ipv4/conf/eth1/rp_filter": "1"}, ARPUnmanaged, "strict (1) on eth1:"},
		"loose wins":                    {map[string]string{"net/ipv4/conf/all/rp_filter": "2", "net/ipv4/conf/eth1/rp_filter": "1"}, ARPUnmanaged, ""},
		"route_localnet":                {map[string]string{"net/ipv4/conf/all/route_localnet": "1"}, ARPUnmanaged, "route_localnet is 1 on all:"},
		"route_localnet on a device":    {map[string]string{"net/ipv4/conf/eth1/route_localnet": "1"}, ARPUnmanaged, "route_localnet is 1 on eth1:"},
		"a full conntrack table":        {map[string]string{"net/netfilter/nf_conntrack_count": "900", "net/netfilter/nf_conntrack_max": "1000"}, ARPUnmanaged, "holds 900 of 1000"},
		"a conntrack table with room":   {map[string]string{"net/netfilter/nf_conntrack_count": "899", "net/netfilter/nf_conntrack_max": "1000"}, ARPUnmanaged, ""},
		"no conntrack figures":          {map[string]string{"net/netfilter/nf_conntrack_count": "?", "net/netfilter/nf_conntrack_max": "1000"}, ARPUnmanaged, ""},
		"arp drifted":                   {map[string]string{"net/ipv4/conf/all/arp_announce": "0"}, ARPIgnore, "net.ipv4.conf.all.arp_announce is 0 although"},
		"arp unmanaged is none of ours": {map[string]string{"net/ipv4/conf/all/arp_announce": "1"}, ARPUnmanaged, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFakeWorld()
			w.sh(t, "ip link add eth0 type veth\nip addr add 10.0.0.1/24 dev eth0\nip link add eth1 type veth\nip addr add 10.0.1.1/24 dev eth1")
			d := w.door(t, func(o *Options) { o.ARP = c.arp })
			if found := d.Findings(t.Context()); len(found) > 0 {
				t.Errorf("before any pass: %q", found)
			}
			clean(t, d, pair(), prune)
			for k, v := range c.set {
				w.fake.sys.values[k] = v
			}
			w.taken()
			found := d.Findings(t.Context())
			if c.want == "" && len(found) > 0 || c.want != "" && (len(found) != 1 || !strings.Contains(found[0], c.want)) {
				t.Errorf("findings %q, want %q", found, c.want)
			}
			if wrote := w.taken(); len(wrote) > 0 {
				t.Errorf("wrote %v", wrote)
			}
			clean(t, d, lb.Snapshot{}, prune)
			if found := d.Findings(t.Context()); len(found) > 0 {
				t.Errorf("without services: %q", found)
			}
			for _, wrote := range w.taken() {
				if strings.Contains(wrote, "route_localnet") {
					t.Errorf("route_localnet was set: %s", wrote)
				}
			}
		})
	}
}

func TestFindingsTellOfSetsThatAreNearlyFull(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t)
	clean(t, d, pair(), prune)
	clients := netfilter.Set{Name: "vipd-aff4-0", Type: netfilter.HashIPPortIP, Family: netfilter.IPv4}
	fatal(t, w.fake.sets.CreateExpiring(t.Context(), clients, 256)) // room for 1,024
	fill := func(from, to int) {
		var entries []netfilter.Entry
		for i := from; i < to; i++ {
			entries = append(entries, netfilter.Entry{Addr: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), Protocol: lb.TCP, Port: 80, Net: netip.MustParsePrefix("192.0.2.10/32")})
		}
		fatal(t, w.fake.sets.Add(t.Context(), clients, entries))
	}
	fill(0, 921)
	if found := d.Findings(t.Context()); len(found) > 0 {
		t.Errorf("with room: %q", found)
	}
	fill(921, 922)
	w.fake.sets.Full["vipd-vip6"] = 1
	found := d.Findings(t.Context())
	if len(found) != 2 || !strings.Contains(found[0], "vipd-aff4-0 holds 922 clients of session affinity and is made for 1024") ||
		!strings.Contains(found[1], "vipd-vip6 holds 1 of 1 entries") {
		t.Errorf("found %q", found)
	}
}

// The log tells once that a set fills up, and again after it had room.
func TestFullSetsAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWorld()
		var log strings.Builder
		d := w.door(t, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		clean(t, d, pair(), prune)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.watchSetRoom(ctx, nil) }()
		for _, entries := range []int{0, 1, 1, 0, 1} {
			w.fake.sets.SetFull("vipd-vip6", entries)
			time.Sleep(setRoomInterval)
			synctest.Wait()
		}
		cancel()
		fatal(t, <-ended)
		if n := strings.Count(log.String(), "vipd-vip6 holds 1 of 1"); n != 2 {
			t.Errorf("told %d times, want 2:\n%s", n, log.String())
		}
	})
}

// A resync in a host where nobody wrote to the tables does not read them to look
// for marks of others.
func TestMarksAreLookedForWhenSomebodyWrote(t *testing.T) {
	w := newFakeWorld()
	d := w.door(t)
	clean(t, d, pair(), fresh)
	reads := func() int {
		before := w.fake.tables[0].reads
		d.state.families[0].standing = true
		p := &pass{d: d, s: d.state, how: fresh}
		fatal(t, p.noteMarks(t.Context()))
		return w.fake.tables[0].reads - before
	}
	if n := reads(); n != 0 {
		t.Errorf("%d tables read although nobody wrote", n)
	}
	w.sh(t, "iptables -t filter -I INPUT 1 -m mark --mark 0x2000/0x2000 -j ACCEPT")
	if n := reads(); n != 2 || len(d.marks) != 1 {
		t.Errorf("%d tables read after somebody wrote, found %q", n, d.marks)
	}
	if n := reads(); n != 0 || len(d.marks) != 1 {
		t.Errorf("%d tables read, found %q", n, d.marks)
	}
}
