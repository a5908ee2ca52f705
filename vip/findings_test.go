package vip

import (
	"strings"
	"testing"

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
