//go:build kernel

package netfilter

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/lb"
)

func TestKernelSets(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	setTool(t, "ipset", "create", "foreign", "hash:net") // what does not bear our prefix is not listed
	testSets(t, KernelSets{})
	if out := setTool(t, "ipset", "list", "-n"); out != "foreign\n" {
		t.Errorf("sets left behind: %q", out)
	}
}

// What ipset(8) shows proves that the entries mean what they say, not only that
// they are read back as they were written.
func TestKernelSetsAsIPSetShowsThem(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	for set, entries := range setCases() {
		setOK(t, KernelSets{}.Create(t.Context(), set))
		setOK(t, KernelSets{}.Add(t.Context(), set, entries))
		shown := setTool(t, "ipset", "save", set.Name)
		if family := map[Family]string{IPv4: " family inet ", IPv6: " family inet6 "}[set.Family]; !strings.Contains(shown, family) {
			t.Errorf("%s: no%sin %q", set.Name, family, shown)
		}
		for _, e := range entries {
			if line := "add " + set.Name + " " + e.String() + "\n"; !strings.Contains(shown, line) {
				t.Errorf("ipset save %s has no %q:\n%s", set.Name, line, shown)
			}
		}
	}
}

func TestKernelSetsInUseAndForeign(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	var sets KernelSets
	set := Set{SetPrefix + "vip4", HashIP, IPv4}
	setOK(t, sets.Create(t.Context(), set))
	setTool(t, "iptables-nft", "-A", "INPUT", "-m", "set", "--match-set", set.Name, "dst")
	if err := sets.Destroy(t.Context(), set.Name); !errors.Is(err, ErrSetInUse) {
		t.Errorf("Destroy of a set in use = %v, want ErrSetInUse", err)
	}
	setTool(t, "iptables-nft", "-F", "INPUT")
	setOK(t, sets.Destroy(t.Context(), set.Name))

	setTool(t, "ipset", "create", set.Name, "hash:ip", "maxelem", "5000") // another size is no other set
	setOK(t, sets.Create(t.Context(), set))

	small := Set{SetPrefix + "masq4", HashIPPort, IPv4} // made by somebody else
	setTool(t, "ipset", "create", small.Name, "hash:ip,port", "maxelem", "1")
	setOK(t, sets.Create(t.Context(), small))
	if err := sets.Add(t.Context(), small, setCases()[small]); !errors.Is(err, ErrSetFull) {
		t.Errorf("Add to a full set = %v, want ErrSetFull", err)
	}

	list, err := sets.List(t.Context())
	if setOK(t, err); len(list) != 2 || list[0].Odd != "maxelem 1" || list[1].Odd != "maxelem 5000" {
		t.Errorf("the list is %+v, want both as odd", list)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sets.Add(ctx, set, []Entry{{Addr: setAddr("192.0.2.1")}}); !errors.Is(err, context.Canceled) {
		t.Errorf("Add after the end of ctx = %v", err)
	}
	if err := ipsetError(syscall.EPERM); !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("EPERM is told as %v", err)
	}
}

// 105 services with 10,000 ranges each are more than a million entries: the next
// service is not to fail for it, nor all others with it.
func TestKernelSetsTakeMillions(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	var sets KernelSets
	set := Set{SetPrefix + "allow4", HashIPPortNet, IPv4}
	setOK(t, sets.Create(t.Context(), set))
	vip := setAddr("192.0.2.1")
	entries := make([]Entry, 1_100_000)
	for i := range entries {
		net := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 12), byte(i >> 4), byte(i << 4)}), 28)
		entries[i] = Entry{Addr: vip, Protocol: lb.TCP, Port: uint16(i >> 20), Net: net}
	}
	begin := time.Now()
	setOK(t, sets.Add(t.Context(), set, entries))
	t.Logf("%d entries added in %v", len(entries), time.Since(begin).Round(time.Millisecond))
	if n, err := sets.Size(t.Context(), set); n != len(entries) || err != nil {
		t.Errorf("the set holds %d entries, %v; want %d", n, err, len(entries))
	}
	setOK(t, sets.Destroy(t.Context(), set.Name))
}

func setTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
