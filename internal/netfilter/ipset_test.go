package netfilter

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"vipd/lb"
)

func setAddr(s string) netip.Addr  { return netip.MustParseAddr(s) }
func setNet(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// setCases is a set of every type and family with entries it must hold.
func setCases() map[Set][]Entry {
	v4, v6 := setAddr("192.0.2.1"), setAddr("2001:db8::1")
	return map[Set][]Entry{
		{SetPrefix + "vip4", HashIP, IPv4}: {{Addr: v4}, {Addr: setAddr("255.255.255.254")}},
		{SetPrefix + "vip6", HashIP, IPv6}: {{Addr: v6}, {Addr: setAddr("fd00::")}},
		{SetPrefix + "masq4", HashIPPort, IPv4}: {
			{Addr: v4, Protocol: lb.TCP, Port: 80}, {Addr: v4, Protocol: lb.UDP, Port: 80}, {Addr: v4, Protocol: lb.TCP, Port: 65535},
		},
		{SetPrefix + "masq6", HashIPPort, IPv6}: {{Addr: v6, Protocol: lb.TCP, Port: 1}, {Addr: v6, Protocol: lb.SCTP, Port: 53}},
		{SetPrefix + "auto4", HashIPPortNet, IPv4}: {
			{Addr: v4, Protocol: lb.TCP, Port: 80, Net: setNet("10.0.0.0/8")},
			{Addr: v4, Protocol: lb.TCP, Port: 80, Net: setNet("10.0.0.0/24")},
			{Addr: v4, Protocol: lb.TCP, Port: 80, Net: setNet("0.0.0.0/1")},
			{Addr: v4, Protocol: lb.UDP, Port: 80, Net: setNet("10.0.0.7/32")},
		},
		{SetPrefix + "auto6", HashIPPortNet, IPv6}: {
			{Addr: v6, Protocol: lb.TCP, Port: 80, Net: setNet("fd00:2::/64")},
			{Addr: v6, Protocol: lb.TCP, Port: 80, Net: setNet("8000::/1")},
		},
		{SetPrefix + "hair4", HashIPPortIP, IPv4}: {{Addr: v4, Protocol: lb.TCP, Port: 8080, Net: setNet("192.0.2.1/32")}},
		{SetPrefix + "hair6", HashIPPortIP, IPv6}: {{Addr: v6, Protocol: lb.UDP, Port: 8080, Net: setNet("2001:db8::1/128")}},
	}
}

// testSets is the contract of Sets, for the fake and for the kernel.
func testSets(t *testing.T, sets Sets) {
	ctx := t.Context()
	for set, entries := range setCases() {
		t.Run(set.Name, func(t *testing.T) {
			if err := sets.Add(ctx, set, entries); !errors.Is(err, ErrNoSet) {
				t.Fatalf("Add to no set = %v, want ErrNoSet", err)
			}
			if err := sets.Delete(ctx, set, entries); !errors.Is(err, ErrNoSet) {
				t.Fatalf("Delete from no set = %v, want ErrNoSet", err)
			}
			if err := sets.Entries(ctx, set, func(Entry) {}); !errors.Is(err, ErrNoSet) {
				t.Fatalf("Entries of no set = %v, want ErrNoSet", err)
			}
			for range 2 { // every write twice: the second is no error
				setOK(t, sets.Create(ctx, set))
				setOK(t, sets.Add(ctx, set, entries))
			}
			setHolds(t, sets, set, entries)
			for range 2 {
				setOK(t, sets.Delete(ctx, set, entries[:1]))
			}
			setHolds(t, sets, set, entries[1:])
			other := Set{set.Name, HashIP, IPv4}
			if set.Type == HashIP {
				other.Type = HashIPPort
			}
			if err := sets.Create(ctx, other); !errors.Is(err, ErrSetType) {
				t.Fatalf("Create with another type = %v, want ErrSetType", err)
			}
			setHolds(t, sets, set, entries[1:])
			list, err := sets.List(ctx)
			setOK(t, err)
			if len(list) != 1 || list[0].Set != set || list[0].Odd != "" || list[0].Entries != len(entries)-1 || list[0].Max != maxElements {
				t.Fatalf("List = %v, want %v", list, set)
			}
			setOK(t, sets.Replace(ctx, set, entries))
			setHolds(t, sets, set, entries)
			if err := sets.Replace(ctx, other, nil); !errors.Is(err, ErrSetType) {
				t.Fatalf("Replace with another type = %v, want ErrSetType", err)
			}
			setHolds(t, sets, set, entries)
			for range 2 {
				setOK(t, sets.Destroy(ctx, set.Name))
			}
			if list, err := sets.List(ctx); err != nil || len(list) != 0 {
				t.Fatalf("List after Destroy = %v, %v", list, err)
			}
		})
	}
	t.Run("many", func(t *testing.T) { testManyEntries(t, sets) })
}

// testManyEntries needs many batches and makes the kernel grow the hash.
func testManyEntries(t *testing.T, sets Sets) {
	set := Set{SetPrefix + "masq4", HashIPPort, IPv4}
	var entries []Entry
	for i := range 30_000 {
		entries = append(entries, Entry{Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Protocol: lb.TCP, Port: uint16(i)})
	}
	setOK(t, sets.Create(t.Context(), set))
	setOK(t, sets.Add(t.Context(), set, entries))
	setHolds(t, sets, set, entries)
	setOK(t, sets.Delete(t.Context(), set, entries[1:]))
	setHolds(t, sets, set, entries[:1])
	setOK(t, sets.Destroy(t.Context(), set.Name))
}

func setHolds(t *testing.T, sets Sets, set Set, want []Entry) {
	t.Helper()
	var have []Entry
	setOK(t, sets.Entries(t.Context(), set, func(e Entry) { have = append(have, e) }))
	slices.SortFunc(have, Entry.Compare)
	sorted := slices.SortedFunc(slices.Values(want), Entry.Compare)
	if !slices.Equal(have, sorted) {
		t.Fatalf("set %s holds %d entries, want %d:\n%.500v\nwant\n%.500v", set.Name, len(have), len(want), have, sorted)
	}
}

func setOK(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFakeSets(t *testing.T) { testSets(t, NewFakeSets()) }

func TestFakeSetsAreStrict(t *testing.T) {
	ctx := t.Context()
	sets := NewFakeSets()
	for _, set := range []Set{{"a", HashIP, IPv4}, {"b", HashIPPort, IPv4}, {"c", HashIPPortNet, IPv4}, {"d", HashIPPortIP, IPv4}} {
		setOK(t, sets.Create(ctx, set))
	}
	v4, tcp := setAddr("192.0.2.1"), lb.TCP
	bad := []struct {
		set   Set
		entry Entry
	}{
		{Set{"a", HashIP, IPv4}, Entry{}},
		{Set{"a", HashIP, IPv4}, Entry{Addr: setAddr("2001:db8::1")}},
		{Set{"a", HashIP, IPv4}, Entry{Addr: setAddr("::ffff:192.0.2.1")}},
		{Set{"a", HashIP, IPv4}, Entry{Addr: v4, Protocol: tcp, Port: 80}},
		{Set{"b", HashIPPort, IPv4}, Entry{Addr: v4}},
		{Set{"b", HashIPPort, IPv4}, Entry{Addr: v4, Protocol: tcp, Port: 80, Net: setNet("10.0.0.0/8")}},
		{Set{"c", HashIPPortNet, IPv4}, Entry{Addr: v4, Protocol: tcp, Port: 80}},
		{Set{"c", HashIPPortNet, IPv4}, Entry{Addr: v4, Protocol: tcp, Port: 80, Net: setNet("0.0.0.0/0")}},
		{Set{"c", HashIPPortNet, IPv4}, Entry{Addr: v4, Protocol: tcp, Port: 80, Net: setNet("10.0.0.1/8")}},
		{Set{"d", HashIPPortIP, IPv4}, Entry{Addr: v4, Protocol: tcp, Port: 80, Net: setNet("10.0.0.0/8")}},
	}
	for _, b := range bad {
		if err := sets.Add(ctx, b.set, []Entry{b.entry}); err == nil {
			t.Errorf("set %s took %s", b.set.Type, b.entry)
		}
	}
	sets.InUse = func(name string) bool { return name == "a" }
	if err := sets.Destroy(ctx, "a"); !errors.Is(err, ErrSetInUse) {
		t.Errorf("Destroy of a set in use = %v", err)
	}
	sets.Fail = func(op, set string) error { return fmt.Errorf("no %s on %s", op, set) }
	if err := sets.Destroy(ctx, "b"); err == nil || err.Error() != "no destroy on b" {
		t.Errorf("injected failure = %v", err)
	}
}

func TestSplitNet(t *testing.T) {
	for in, want := range map[string][]netip.Prefix{
		"0.0.0.0/0":   {setNet("0.0.0.0/1"), setNet("128.0.0.0/1")},
		"::/0":        {setNet("::/1"), setNet("8000::/1")},
		"10.1.2.3/8":  {setNet("10.0.0.0/8")},
		"fd00::1/128": {setNet("fd00::1/128")},
	} {
		if got := SplitNet(setNet(in)); !slices.Equal(got, want) {
			t.Errorf("SplitNet(%s) = %v, want %v", in, got, want)
		}
	}
}

func TestEntryString(t *testing.T) {
	for want, e := range map[string]Entry{
		"192.0.2.1":                   {Addr: setAddr("192.0.2.1")},
		"192.0.2.1,udp:53":            {Addr: setAddr("192.0.2.1"), Protocol: lb.UDP, Port: 53},
		"2001:db8::1,tcp:80,fd00::/8": {Addr: setAddr("2001:db8::1"), Protocol: lb.TCP, Port: 80, Net: setNet("fd00::/8")},
		"192.0.2.1,tcp:80,192.0.2.1":  {Addr: setAddr("192.0.2.1"), Protocol: lb.TCP, Port: 80, Net: setNet("192.0.2.1/32")},
	} {
		if got := e.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
