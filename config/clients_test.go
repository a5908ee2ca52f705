package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"vipd/lb"
)

const clientsHead = "[vip]\nallowed = [\"192.0.2.0/24\", \"2001:db8::/64\"]\n"

func service(name, vips string, more ...string) string {
	return fmt.Sprintf("[[service]]\nname = %q\nvips = [%s]\nport = 80\nbackends = []\n%s\n", name, vips, strings.Join(more, "\n"))
}

// TestWhatAModeCannotDoIsRefused: with a mode that knows neither affinity nor
// client ranges, where it is in force and where a service names it.
func TestWhatAModeCannotDoIsRefused(t *testing.T) {
	poor := map[lb.Mode]Capability{
		lb.IPTables:  {Schedulers: []lb.Scheduler{lb.WRR}, Protocols: []lb.Protocol{lb.TCP}},
		lb.Userspace: {Schedulers: []lb.Scheduler{lb.WRR}, Protocols: []lb.Protocol{lb.TCP, lb.SCTP}, Affinity: true, Clients: true},
	}
	for name, c := range map[string]struct{ text, want string }{
		"affinity of a service": {
			"[proxy]\nmode = \"iptables\"\n" + service("a", `"192.0.2.10"`, `affinity_timeout = "5s"`),
			`10:20: mode iptables cannot do affinity_timeout; write "0s"`,
		},
		"ranges of a service": {
			"[proxy]\nmode = \"iptables\"\n" + service("a", `"192.0.2.10"`, `allow = ["10.0.0.0/8"]`),
			"10:9: mode iptables cannot do allow; write []",
		},
		"sctp": {
			"[proxy]\nmode = \"iptables\"\n" + service("a", `"192.0.2.10"`, `protocol = "sctp"`),
			"10:12: mode iptables cannot do protocol sctp; it knows tcp",
		},
		"affinity by default": {
			"[proxy]\nmode = \"iptables\"\n[defaults]\naffinity_timeout = \"5s\"\n" + service("a", `"192.0.2.10"`) + service("b", `"192.0.2.11"`),
			"6:20: mode iptables cannot do affinity_timeout",
		},
		"ranges by default": {
			"[proxy]\nmode = \"iptables\"\n[defaults]\nallow = [\"10.0.0.0/8\"]\n" + service("a", `"192.0.2.10"`) + service("b", `"192.0.2.11"`),
			"6:9: mode iptables cannot do allow",
		},
		"inherited by a service with a mode of its own": {
			"[defaults]\naffinity_timeout = \"5s\"\n" + service("a", `"192.0.2.10"`) + service("b", `"192.0.2.11"`, `mode = "iptables"`),
			"11:3: mode iptables cannot do affinity_timeout",
		},
		"some mode can":     {service("a", `"192.0.2.10"`, `affinity_timeout = "5s"`, `allow = ["10.0.0.0/8"]`, `protocol = "sctp"`), ""},
		"a mode that can":   {"[defaults]\nallow = [\"10.0.0.0/8\"]\n" + service("b", `"192.0.2.11"`, `mode = "userspace"`), ""},
		"what says nothing": {"[proxy]\nmode = \"iptables\"\n" + service("a", `"192.0.2.10"`, `affinity_timeout = "0s"`, "allow = []"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]File{{"f.toml", []byte(clientsHead + c.text)}}, poor)
			var errs Errors
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (!errors.As(err, &errs) || len(errs) != 1 || !strings.Contains(err.Error(), c.want)):
				t.Errorf("want one error with %q, got:\n%v", c.want, err)
			}
		})
	}
}

// TestRangesGoToTheVIPsOfTheirFamily: a VIP is never open to everybody because
// its ranges are of the other family.
func TestRangesGoToTheVIPsOfTheirFamily(t *testing.T) {
	c, err := parse("clients.toml", readText(t, "testdata/good/clients.toml"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"192.0.2.10:80/tcp": "[198.51.100.0/24]", "[2001:db8::10]:80/tcp": "[2001:db8:1::/48]",
		"192.0.2.11:80/tcp": "[198.51.100.0/24]",
		"192.0.2.12:80/tcp": "[]", "[2001:db8::12]:80/tcp": "[]",
		"192.0.2.13:80/sctp": "[10.0.0.0/8]", "[2001:db8::13]:80/sctp": "[]",
		"192.0.2.14:80/tcp": "[]", "[2001:db8::14]:80/tcp": "[]",
	}
	for _, s := range c.Services {
		if got := fmt.Sprint(s.Clients); got != want[s.Key.String()] {
			t.Errorf("%s is open to %s, want %s", s.Key, got, want[s.Key.String()])
		}
		delete(want, s.Key.String())
	}
	if len(want) > 0 {
		t.Errorf("not there: %v", want)
	}
}

// TestInheritedRangesMustFitEveryFamily: a service cannot be closed, or opened, to a
// family by what [defaults] forgot.
func TestInheritedRangesMustFitEveryFamily(t *testing.T) {
	defaults := clientsHead + "[defaults]\nallow = [\"198.51.100.0/24\"]\n"
	_, err := parse("f.toml", defaults+service("v6", `"2001:db8::10"`)+service("both", `"192.0.2.10", "2001:db8::11"`))
	want := []string{
		`f.toml:7:9: VIP 2001:db8::10 is IPv6 and "allow" of service "v6" has no range of that family`,
		`f.toml:13:23: VIP 2001:db8::11 is IPv6 and "allow" of service "both" has no range of that family`,
	}
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != len(want) {
		t.Fatalf("want two errors, got:\n%v", err)
	}
	for i, w := range want {
		if !strings.HasPrefix(errs[i].Error(), w) {
			t.Errorf("got %v, want %s", errs[i], w)
		}
	}
	if _, err := parse("f.toml", defaults+service("v6", `"2001:db8::10"`, "allow = []")+service("v4", `"192.0.2.10"`)); err != nil {
		t.Errorf("refused: %v", err)
	}
}

func TestRangesHaveLimits(t *testing.T) {
	var list strings.Builder
	for i := range maxRanges + 1 {
		fmt.Fprintf(&list, "\"%s\",\n", netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 15), byte(i >> 7), byte(i << 1)}), 32))
	}
	all := list.String()
	e := refused(t, clientsHead+service("a", `"192.0.2.10"`, "allow = [\n"+all+"]"))
	if !strings.Contains(e.Message, "allow has at most 10000 ranges, this one 10001") || e.Line != 8+maxRanges+1 {
		t.Error(e)
	}
	most := all[:strings.LastIndexByte(strings.TrimSpace(all), '\n')]
	var ports []string
	for i := range 101 {
		ports = append(ports, fmt.Sprint(i+1))
	}
	file := clientsHead + strings.Replace(service("a", `"192.0.2.10"`, "allow = [\n"+most+"]"), "port = 80", "ports = ["+strings.Join(ports, ", ")+"]", 1)
	if e := refused(t, file); !strings.Contains(e.Message, "more than 1000000 client ranges") {
		t.Error(e)
	}
	c, err := parse("f.toml", strings.Replace(file, ", 101", "", 1))
	if err != nil {
		t.Fatal(err)
	}
	if first, last := c.Services[0].Clients, c.Services[99].Clients; len(last) != maxRanges || &first[0] != &last[0] {
		t.Errorf("the specs of one service do not share their %d ranges", len(last))
	}
}
