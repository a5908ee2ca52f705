//lane:vm

//go:build kernel

package ipvs

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	moby "github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
	"vipd/lb"
)

// many returns n servers with ten destinations each.
func many(n int) (commands []Command) {
	for i := range n {
		s := Server{Key: lb.Key{Addr: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Port: 80, Protocol: lb.TCP}, Scheduler: "wrr"}
		commands = append(commands, Command{Op: AddServer, Server: s})
		for j := range 10 {
			commands = append(commands, Command{Op: AddDestination, Server: s, Destination: Destination{
				Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, byte(i * 10 >> 8), byte(i*10 + j)}), uint16(8000+j)), Weight: 1}})
		}
	}
	return commands
}

// mobyAdds does the same by moby/ipvs: a message a round trip.
func mobyAdds(t *testing.T, m *moby.Handle, commands []Command) {
	t.Helper()
	var s *moby.Service
	for _, c := range commands {
		var err error
		if c.Op == AddServer {
			s = &moby.Service{Address: net.IP(c.Server.Key.Addr.AsSlice()), Protocol: unix.IPPROTO_TCP, Port: c.Server.Key.Port,
				SchedName: c.Server.Scheduler, Netmask: ^uint32(0), AddressFamily: unix.AF_INET}
			err = m.NewService(s)
		} else {
			err = m.NewDestination(s, &moby.Destination{Address: net.IP(c.Destination.Addr.Addr().AsSlice()), Port: c.Destination.Addr.Port(),
				Weight: 1, AddressFamily: unix.AF_INET})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// What a load, a resync and a change cost, beside moby/ipvs in the same kernel: the
// messages count, the times are only printed. Each load is in a namespace of its own, for
// deleted destinations make the next ones slow: see the traps of the package.
// VIPD_SOAK=1: 10,000 servers.
func TestLoadOfManyServers(t *testing.T) {
	n := 100
	if os.Getenv("VIPD_SOAK") == "1" {
		n = 10_000
	}
	commands := many(n)
	for _, turn := range []string{"1", "2"} {
		t.Run("moby "+turn, func(t *testing.T) {
			if kerneltest.Isolate(t) {
				kerneltest.Need(t, kerneltest.IPVS())
				loadByMoby(t, commands)
			}
		})
		t.Run("vipd "+turn, func(t *testing.T) {
			if kerneltest.Isolate(t) {
				load(t, open(t), n, commands)
			}
		})
	}
}

func loadByMoby(t *testing.T, commands []Command) {
	m, err := moby.New("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	begin := time.Now()
	mobyAdds(t, m, commands)
	t.Logf("%d objects loaded by moby/ipvs: %s, a round trip each", len(commands), time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	found, err := m.GetServices()
	for _, s := range found {
		if _, err := m.GetDestinations(s); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("all of %d servers read by moby/ipvs: %s (%v)", len(found), time.Since(begin).Round(time.Millisecond), err)
}

func load(t *testing.T, h *Handle, n int, commands []Command) {
	measure := func(what string, messages int, f func()) {
		t.Helper()
		before, begin := h.Messages(), time.Now()
		f()
		took := time.Since(begin)
		if got := int(h.Messages() - before); got != messages {
			t.Errorf("%s: %d messages, want %d", what, got, messages)
		}
		t.Logf("%d objects: %s: %s, %d messages", len(commands), what, took.Round(10*time.Microsecond), messages)
	}
	measure("loaded", len(commands), func() { must(t, h, commands...) })
	servers := 0
	measure("the servers read", 1, func() {
		if err := h.Servers(t.Context(), func(Server) error { servers++; return nil }); err != nil {
			t.Fatal(err)
		}
	})
	if servers != n {
		t.Errorf("%d servers are read", servers)
	}
	measure("all read", 1+n, func() { all(t, h) })
	edit := commands[1]
	for i := range uint32(3) {
		edit.Op, edit.Destination.Weight = EditDestination, 2+i
		measure("one weight changed", 1, func() { must(t, h, edit) })
	}
	edit.Op = DeleteDestination
	measure("one destination deleted", 1, func() { must(t, h, edit) })
	edit.Op = AddDestination
	measure("and added", 1, func() { must(t, h, edit) })
	measure("one server asked for", 1, func() {
		if _, found, err := h.Server(t.Context(), edit.Server.Key); !found || err != nil {
			t.Error(found, err)
		}
	})
	var deletions []Command
	for _, c := range commands {
		if c.Op == AddServer {
			deletions = append(deletions, Command{Op: DeleteServer, Server: c.Server})
		}
	}
	measure("all deleted", n, func() { must(t, h, deletions...) })
}
