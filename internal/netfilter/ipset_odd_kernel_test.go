//go:build kernel

package netfilter

import (
	"errors"
	"strings"
	"testing"

	"vipd/internal/kerneltest"
)

// A set of our name that somebody made otherwise is known by that, and made anew under
// the rules that name it.
func TestSetsThatSomebodyElseMadeAreMadeAnew(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	var sets KernelSets
	for options, want := range map[string]string{
		"":                               "maxelem 65536", // the default of ipset(8)
		"maxelem 16777216":               "",
		"maxelem 16777216 hashsize 64":   "", // it grows
		"maxelem 16777216 timeout 300":   "timeout 300",
		"maxelem 16777216 counters":      "counters",
		"maxelem 16777216 forceadd":      "forceadd",
		"maxelem 5 netmask 24 comment":   "netmask, maxelem 5, comment",
		"maxelem 5 timeout 300 counters": "maxelem 5, counters, timeout 300",
	} {
		set := Set{SetPrefix + "vip4", HashIP, IPv4}
		setTool(t, "ipset", append([]string{"create", set.Name, "hash:ip"}, strings.Fields(options)...)...)
		setTool(t, "ipset", "add", set.Name, "192.0.2.0")
		setTool(t, "iptables-nft", "-A", "INPUT", "-m", "set", "--match-set", set.Name, "dst")
		list, err := sets.List(t.Context())
		if setOK(t, err); len(list) != 1 || !sameWords(list[0].Odd, want) {
			t.Errorf("%q is listed as %+v, want %q", options, list, want)
		}
		entries := []Entry{{Addr: setAddr("192.0.2.1")}, {Addr: setAddr("192.0.2.2")}}
		setOK(t, sets.Replace(t.Context(), set, entries))
		setHolds(t, sets, set, entries)
		if list, err = sets.List(t.Context()); err != nil || len(list) != 1 || list[0].Odd != "" || list[0].Max != maxElements {
			t.Errorf("%q becomes %+v, %v", options, list, err)
		}
		if err := sets.Destroy(t.Context(), set.Name); !errors.Is(err, ErrSetInUse) {
			t.Errorf("%q: the rule does not name the new set: %v", options, err)
		}
		setTool(t, "iptables-nft", "-F", "INPUT")
		setOK(t, sets.Destroy(t.Context(), set.Name))
	}
	if err := sets.Replace(t.Context(), Set{SetPrefix + "vip4", HashIP, IPv4}, nil); !errors.Is(err, ErrNoSet) {
		t.Errorf("Replace of no set = %v, want ErrNoSet", err)
	}
	if out := setTool(t, "ipset", "list", "-n"); out != "" {
		t.Errorf("sets left behind: %q", out)
	}
}

// A set of clients with few buckets, or whose entries stay, would lose clients, or
// keep them for ever.
func TestSetsOfClientsThatSomebodyElseMadeAreMadeAnew(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	var sets KernelSets
	for options, fits := range map[string]bool{
		"maxelem 1048576 timeout 600 hashsize 4096": true,
		"maxelem 1048576 timeout 600 hashsize 8192": true,
		"maxelem 1048576 timeout 600 hashsize 64":   false,
		"maxelem 1048576 hashsize 4096":             false,
		"maxelem 100 timeout 600 hashsize 4096":     false,
	} {
		set := Set{SetPrefix + SetClients + "4-0", HashIPPortIP, IPv4}
		setTool(t, "ipset", append([]string{"create", set.Name, "hash:ip,port,ip"}, strings.Fields(options)...)...)
		setTool(t, "ipset", "add", set.Name, "192.0.2.1,tcp:80,192.0.2.1")
		setOK(t, sets.CreateExpiring(t.Context(), set, 4096))
		list, err := sets.List(t.Context())
		if err != nil || len(list) != 1 || list[0].Odd != "" || list[0].Buckets < 4096 || list[0].Room() < 4*4096 || (list[0].Entries == 1) != fits {
			t.Errorf("%q is %+v, %v", options, list, err)
		}
		setOK(t, sets.Destroy(t.Context(), set.Name))
	}
	other := Set{SetPrefix + SetClients + "4-0", HashIPPort, IPv4}
	setOK(t, sets.Create(t.Context(), other))
	if err := sets.CreateExpiring(t.Context(), Set{other.Name, HashIPPortIP, IPv4}, 4096); !errors.Is(err, ErrSetType) {
		t.Errorf("another type: %v, want ErrSetType", err)
	}
}

func sameWords(a, b string) bool {
	in := func(x, y string) bool {
		for w := range strings.SplitSeq(x, ", ") {
			if !strings.Contains(y, w) {
				return false
			}
		}
		return true
	}
	return in(a, b) && in(b, a)
}
