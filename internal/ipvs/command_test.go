package ipvs

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Commands are spelt so that ipvsadm takes them.
func TestCommandString(t *testing.T) {
	web := Server{Key: key(t, "192.0.2.10:80"), Scheduler: "wrr"}
	gue := Destination{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Forward: Tunnel, Weight: 2, Tunnel: GUE, TunnelPort: 6080}
	for _, tt := range []struct {
		want string
		c    Command
	}{
		{"-A -t 192.0.2.10:80 -s wrr", Command{Op: AddServer, Server: web}},
		{"-D -t 192.0.2.10:80", Command{Op: DeleteServer, Server: web}},
		{"-E -u [2001:db8::1]:53 -s sh -b sh-fallback,sh-port -o", Command{Op: EditServer,
			Server: Server{Key: key(t, "[2001:db8::1]:53/udp"), Scheduler: "sh", Flags: FlagFallback | FlagPort | FlagOnePacket}}},
		{"-A --sctp-service 192.0.2.1:5 -s mh -b mh-port -p 300 -M 255.255.255.0", Command{Op: AddServer, Server: Server{
			Key: key(t, "192.0.2.1:5/sctp"), Scheduler: "mh", Flags: FlagPort | FlagPersistent, Timeout: 5 * time.Minute, HostBits: 8}}},
		{"-A -t [2001:db8::1]:80 -s lc -b flag-3 -p 1 -M 64", Command{Op: AddServer, Server: Server{
			Key: key(t, "[2001:db8::1]:80"), Scheduler: "lc", Flags: FlagSched3 | FlagPersistent, Timeout: time.Second, HostBits: 64}}},
		{"-a -t 192.0.2.10:80 -r 10.0.0.1:8080 -m -w 1", Command{Op: AddDestination, Server: web, Destination: Destination{Addr: netip.MustParseAddrPort("10.0.0.1:8080"), Weight: 1}}},
		{"-e -t 192.0.2.10:80 -r 10.0.0.1:80 -g -w 0 -x 9 -y 3", Command{Op: EditDestination, Server: web,
			Destination: Destination{Addr: gue.Addr, Forward: DirectRoute, Upper: 9, Lower: 3}}},
		{"-a -t 192.0.2.10:80 -r 10.0.0.1:80 -i -w 2 --tun-type gue --tun-port 6080", Command{Op: AddDestination, Server: web, Destination: gue}},
		{"-d -t 192.0.2.10:80 -r 10.0.0.1:80", Command{Op: DeleteDestination, Server: web, Destination: gue}},
	} {
		if got := tt.c.String(); got != tt.want {
			t.Errorf("%s\nwant %s", got, tt.want)
		}
	}
}

// What the kernel answers is an error that says what to do.
func TestFailuresAreToldApart(t *testing.T) {
	s := Server{Key: key(t, "192.0.2.10:80"), Scheduler: "lblcr"}
	for _, tt := range []struct {
		op    Op
		errno unix.Errno
		is    error
		says  string
	}{
		{AddServer, unix.EEXIST, ErrExists, "-A -t 192.0.2.10:80 -s lblcr"},
		{AddServer, unix.ENOENT, ErrNoScheduler, "modprobe ip_vs_lblcr"},
		{EditServer, unix.ENOENT, ErrNoScheduler, "modprobe ip_vs_lblcr"},
		{EditServer, unix.ESRCH, ErrNotFound, "-E"},
		{AddDestination, unix.ESRCH, ErrNotFound, "-a"},
		{EditDestination, unix.ENOENT, ErrNotFound, "-e"},
		{DeleteDestination, unix.ENOENT, ErrNotFound, "-d"},
		{AddDestination, unix.EPERM, ErrPermission, "CAP_NET_ADMIN"},
		{AddServer, unix.EAFNOSUPPORT, unix.EAFNOSUPPORT, "CONFIG_IP_VS_IPV6"},
		{AddDestination, unix.EINVAL, unix.EINVAL, "unicast"},
		{AddServer, unix.ENOMEM, unix.ENOMEM, "cannot allocate memory"},
	} {
		err := Command{Op: tt.op, Server: s}.failure(tt.errno)
		if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("operation %d, %v: %v", tt.op, tt.errno, err)
		}
	}
}
