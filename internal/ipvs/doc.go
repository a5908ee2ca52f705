// Package ipvs is the line to IPVS, the load balancer of the kernel: virtual servers
// and their destinations, over generic netlink (net/netfilter/ipvs/ip_vs_ctl.c,
// include/uapi/linux/ip_vs.h). It knows nothing of services and modes. Why it is
// written here stands in docs/adr/0008-ipvs-by-its-own-line.md.
//
// Invariants:
//   - One [Command] is one netlink message, and so are one [Handle.Server], one dump of
//     all servers and one dump of the destinations of a server.
//   - Commands take effect one by one, in order. One that fails does not stop those
//     behind it; a destination whose server was refused is refused with [ErrNotFound].
//   - A Server or a Destination that was read compares equal (==) with the one that was
//     written.
//   - Server.Flags holds the flags that userspace may set, and no others.
//
// Traps:
//   - A kernel without IPVS answers a list with success and nothing in it where the
//     number of the family is not looked at: that IPVS is there is known by its family
//     and by what is read back, never by a list. [Open] and [Probe] do so.
//   - The kernel answers a dump of the destinations of a server that does not exist with
//     none, and no error.
//   - Most kernels (6.1, say) do not tell when a dump is not of a piece because
//     somebody else added or deleted a server meanwhile: one may be missing in it, and
//     adding it is ErrExists then.
//   - Servers by firewall mark have no address; no list here has them.
//   - Active and inactive connections are exact at any time; [Stats] are summed up by an
//     estimator of the kernel every two seconds, and never where
//     net.ipv4.vs.run_estimation is 0.
//   - A deleted destination stays in the kernel's trash for two minutes or more, and
//     every AddDestination walks the trash of its namespace (ip_vs_trash_get_dest): after
//     100,000 deletions an addition takes some milliseconds in place of microseconds.
//   - A change of the scheduler waits for all readers (synchronize_rcu): some
//     milliseconds of each such command.
//   - A command that needs the module of a scheduler waits for modprobe in the kernel,
//     and does not hear its context.
package ipvs
