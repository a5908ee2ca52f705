package ipvs

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vipd/lb"
)

// line is what a Handle and a Fake have in common.
type line interface {
	Do(ctx context.Context, commands []Command) []error
	Servers(ctx context.Context, each func(Server) error) error
	Server(ctx context.Context, k lb.Key) (Server, bool, error)
	Destinations(ctx context.Context, k lb.Key, each func(Entry) error) error
	Messages() uint64
}

var (
	_ line = (*Handle)(nil)
	_ line = (*Fake)(nil)
)

// noScheduler is one that neither the fake of these tests has nor the kernel.
const noScheduler = "nonesuch"

func TestTheFakeConforms(t *testing.T) {
	for name, test := range conformance() {
		t.Run(name, func(t *testing.T) {
			f := NewFake()
			f.Lack(noScheduler, true)
			test(t, f)
		})
	}
}

// conformance is what the kernel does, and the fake too. Each begins without servers.
func conformance() map[string]func(*testing.T, line) {
	return map[string]func(*testing.T, line){
		"what is written is read":         readBack,
		"edits change what stands":        edits,
		"refusals harm nothing":           refusals,
		"many commands":                   manyCommands,
		"a reader may ask while it reads": readWhileReading,
	}
}

// must carries out commands that go well.
func must(t testing.TB, l line, commands ...Command) {
	t.Helper()
	if errs := l.Do(t.Context(), commands); errs != nil {
		t.Fatal(errors.Join(errs...))
	}
}

// all reads everything: every server, and the destinations of each.
func all(t testing.TB, l line) map[Server]map[Destination]bool {
	t.Helper()
	found := map[Server]map[Destination]bool{}
	err := l.Servers(t.Context(), func(s Server) error {
		if found[s] != nil {
			t.Errorf("%s is told twice", s)
		}
		found[s] = map[Destination]bool{}
		return l.Destinations(t.Context(), s.Key, func(e Entry) error {
			found[s][e.Destination] = true
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func same(a, b map[Server]map[Destination]bool) bool {
	return maps.EqualFunc(a, b, func(x, y map[Destination]bool) bool { return maps.Equal(x, y) })
}

// everything is a server of each shape, each with every destination that it can have.
func everything(t testing.TB) (want map[Server]map[Destination]bool, add []Command) {
	want = map[Server]map[Destination]bool{}
	for _, s := range servers(t) {
		want[s] = map[Destination]bool{}
		add = append(add, Command{Op: AddServer, Server: s})
		for _, d := range destinations() {
			if d.Addr.Addr().Is4() == s.Key.Addr.Is4() || d.Forward == Tunnel {
				want[s][d] = true
				add = append(add, Command{Op: AddDestination, Server: s, Destination: d})
			}
		}
	}
	return want, add
}

func readBack(t *testing.T, l line) {
	want, add := everything(t)
	before := l.Messages()
	must(t, l, add...)
	if n := l.Messages() - before; n != uint64(len(add)) {
		t.Errorf("%d messages for %d commands", n, len(add))
	}
	before = l.Messages()
	if got := all(t, l); !same(got, want) {
		t.Errorf("read %v\nwant %v", got, want)
	}
	if n := l.Messages() - before; n != uint64(1+len(want)) {
		t.Errorf("%d messages to read %d servers, want one and one for each", n, len(want))
	}
	for s := range want {
		if got, found, err := l.Server(t.Context(), s.Key); err != nil || !found || got != s {
			t.Errorf("read %+v, %v, %v; want %+v", got, found, err, s)
		}
		must(t, l, Command{Op: DeleteServer, Server: Server{Key: s.Key}})
	}
	if left := all(t, l); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}

func edits(t *testing.T, l line) {
	s := Server{Key: key(t, "192.0.2.10:80"), Scheduler: "wrr"}
	d, other := destinations()["nat"], destinations()["heavy"]
	must(t, l, Command{Op: AddServer, Server: s}, Command{Op: AddDestination, Server: s, Destination: d},
		Command{Op: AddDestination, Server: s, Destination: other})
	for _, edited := range []Server{
		{Key: s.Key, Scheduler: "sh", Flags: FlagPort},
		{Key: s.Key, Scheduler: "sh", Flags: FlagFallback | FlagPersistent, Timeout: time.Minute},
		{Key: s.Key, Scheduler: "rr", Flags: FlagPersistent, Timeout: time.Hour, HostBits: 8},
		s,
	} {
		must(t, l, Command{Op: EditServer, Server: edited})
		want := map[Server]map[Destination]bool{edited: {d: true, other: true}}
		if got := all(t, l); !same(got, want) {
			t.Errorf("read %v\nwant %v", got, want)
		}
	}
	at := d.Addr
	for _, edited := range []Destination{
		{Addr: at, Weight: 0},
		{Addr: at, Weight: 7},
		{Addr: at, Weight: 7, Forward: Tunnel, Tunnel: GUE, TunnelPort: 6080},
		{Addr: at, Weight: 7, Forward: DirectRoute},
		{Addr: at, Weight: 7, Forward: Tunnel},
		{Addr: at, Weight: 1, Upper: 10, Lower: 5},
		d,
	} {
		must(t, l, Command{Op: EditDestination, Server: s, Destination: edited})
		if got, want := all(t, l), (map[Server]map[Destination]bool{s: {edited: true, other: true}}); !same(got, want) {
			t.Errorf("read %v\nwant %v", got, want)
		}
	}
	must(t, l, Command{Op: DeleteDestination, Server: s, Destination: Destination{Addr: at}})
	if got, want := all(t, l), (map[Server]map[Destination]bool{s: {other: true}}); !same(got, want) {
		t.Errorf("read %v\nwant %v", got, want)
	}
}

func refusals(t *testing.T, l line) {
	s, missing := Server{Key: key(t, "192.0.2.10:80"), Scheduler: "wrr"}, Server{Key: key(t, "192.0.2.99:80"), Scheduler: "wrr"}
	d, at := destinations()["nat"], netip.MustParseAddrPort
	must(t, l, Command{Op: AddServer, Server: s}, Command{Op: AddDestination, Server: s, Destination: d})
	before := all(t, l)
	for _, tt := range []struct {
		c    Command
		want error
	}{
		{Command{Op: AddServer, Server: Server{Key: s.Key, Scheduler: "rr"}}, ErrExists},
		{Command{Op: EditServer, Server: missing}, ErrNotFound},
		{Command{Op: DeleteServer, Server: missing}, ErrNotFound},
		{Command{Op: AddServer, Server: Server{Key: missing.Key, Scheduler: noScheduler}}, ErrNoScheduler},
		{Command{Op: EditServer, Server: Server{Key: s.Key, Scheduler: noScheduler}}, ErrNoScheduler},
		{Command{Op: AddDestination, Server: missing, Destination: d}, ErrNotFound},
		{Command{Op: AddDestination, Server: s, Destination: Destination{Addr: d.Addr, Weight: 9}}, ErrExists},
		{Command{Op: EditDestination, Server: s, Destination: destinations()["heavy"]}, ErrNotFound},
		{Command{Op: EditDestination, Server: missing, Destination: d}, ErrNotFound},
		{Command{Op: DeleteDestination, Server: s, Destination: destinations()["heavy"]}, ErrNotFound},
		{Command{Op: DeleteDestination, Server: missing, Destination: d}, ErrNotFound},
		{Command{Op: AddDestination, Server: s, Destination: destinations()["IPv6"]}, unix.EINVAL},
		{Command{Op: AddDestination, Server: s, Destination: Destination{Addr: at("224.0.0.1:80"), Weight: 1}}, unix.EINVAL},
		{Command{Op: AddDestination, Server: s, Destination: Destination{Addr: at("10.0.0.9:80"), Weight: 1 << 31}}, unix.ERANGE},
		{Command{Op: AddDestination, Server: s, Destination: Destination{Addr: at("10.0.0.9:80"), Upper: 1, Lower: 2}}, unix.ERANGE},
		{Command{Op: AddDestination, Server: s, Destination: Destination{Addr: at("10.0.0.9:80"), Forward: Tunnel, Tunnel: GUE}}, unix.EINVAL},
	} {
		errs := l.Do(t.Context(), []Command{tt.c})
		if len(errs) != 1 || !errors.Is(errs[0], tt.want) {
			t.Errorf("%s: %v, want %v", tt.c, errs, tt.want)
		}
	}
	if after := all(t, l); !same(before, after) {
		t.Errorf("read %v\nwant %v", after, before)
	}
	if err := l.Destinations(t.Context(), missing.Key, func(Entry) error { return errors.New("there is one") }); err != nil {
		t.Errorf("the destinations of a server that is not there: %v", err)
	}
	if got, found, err := l.Server(t.Context(), missing.Key); found || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	errs := l.Do(ctx, []Command{{Op: DeleteServer, Server: s}})
	if len(errs) != 1 || !errors.Is(errs[0], context.Canceled) || !same(all(t, l), before) {
		t.Errorf("after the end of the context: %v", errs)
	}
}

// manyCommands fills some batches in which every third command is refused.
func manyCommands(t *testing.T, l line) {
	const n = 500
	s := Server{Key: key(t, "192.0.2.10:80"), Scheduler: "wrr"}
	commands := []Command{{Op: AddServer, Server: s}}
	want := map[Destination]bool{}
	for i := range n {
		d := Destination{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 80), Weight: 1}
		if i%3 == 0 {
			d.Addr = netip.AddrPortFrom(netip.MustParseAddr("224.0.0.1"), 80)
		} else {
			want[d] = true
		}
		commands = append(commands, Command{Op: AddDestination, Server: s, Destination: d})
	}
	errs := l.Do(t.Context(), commands)
	if len(errs) != len(commands) || errs[0] != nil {
		t.Fatalf("%d errors for %d commands, the first %v", len(errs), len(commands), slices.Concat(errs, []error{nil})[0])
	}
	for i, err := range errs[1:] {
		if (i%3 == 0) != errors.Is(err, unix.EINVAL) || i%3 != 0 && err != nil {
			t.Errorf("%s: %v", commands[i+1], err)
		}
	}
	if got := all(t, l); !same(got, map[Server]map[Destination]bool{s: want}) {
		t.Errorf("%d destinations stand, want %d", len(got[s]), len(want))
	}
}

// readWhileReading asks from within what is being told; an error of the asker comes back.
func readWhileReading(t *testing.T, l line) {
	_, add := everything(t)
	must(t, l, add...)
	stop := errors.New("stop")
	told := 0
	err := l.Servers(t.Context(), func(s Server) error {
		return l.Destinations(t.Context(), s.Key, func(e Entry) error {
			if _, found, err := l.Server(t.Context(), s.Key); !found || err != nil {
				t.Errorf("%s: %v, %v", s, found, err)
			}
			if told++; told == 5 {
				return stop
			}
			return nil
		})
	})
	if !errors.Is(err, stop) || told != 5 {
		t.Errorf("%d told, %v", told, err)
	}
}
