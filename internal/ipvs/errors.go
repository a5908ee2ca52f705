package ipvs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
)

// Errors, to be asked for with errors.Is.
var (
	ErrExists      = errors.New("it exists already")
	ErrNotFound    = errors.New("it does not exist, or its virtual server does not")
	ErrNoScheduler = errors.New("the kernel lacks the scheduler")
	ErrUnsupported = errors.New("the kernel has no IPVS")
	ErrPermission  = errors.New("IPVS may not be used; CAP_NET_ADMIN is needed, in the first user namespace")
)

// failure names the command that failed with err, an answer of the kernel or another.
func (c Command) failure(err error) error {
	if errno := unix.Errno(0); errors.As(err, &errno) {
		err = c.cause(errno)
	}
	return fmt.Errorf("ipvsadm %s: %w", c, err)
}

// cause translates the errors of ip_vs_genl_set_cmd (net/netfilter/ipvs/ip_vs_ctl.c).
func (c Command) cause(errno unix.Errno) error {
	switch errno {
	case unix.EEXIST:
		return ErrExists
	case unix.ESRCH:
		return ErrNotFound
	case unix.ENOENT:
		if c.Op == AddServer || c.Op == EditServer {
			return fmt.Errorf("%w %s; load its module (modprobe ip_vs_%s), or choose another one", ErrNoScheduler, c.Server.Scheduler, c.Server.Scheduler)
		}
		return ErrNotFound
	case unix.EPERM:
		return ErrPermission
	case unix.EAFNOSUPPORT:
		return fmt.Errorf("IPVS has no such address family; the kernel needs CONFIG_IP_VS_IPV6, and to run with IPv6 (%w)", errno)
	case unix.EINVAL:
		return fmt.Errorf("the kernel refuses what it says: an address that is no unicast one, or another family than the virtual server's (%w)", errno)
	}
	return errno
}

// unsupported says why the kernel has no IPVS, as far as it shows.
func unsupported() error {
	const key = "kernel/modules_disabled"
	if value, err := linux.ProcSys().Get(key); err == nil && value == "1" {
		return fmt.Errorf("%w, and loads no modules any more (%s is 1); have ip_vs loaded at boot, by a file in /etc/modules-load.d",
			ErrUnsupported, linux.Dotted(key))
	}
	return fmt.Errorf("%w; load its module (modprobe ip_vs), or install a kernel with CONFIG_IP_VS", ErrUnsupported)
}
