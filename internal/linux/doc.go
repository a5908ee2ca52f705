// Package linux is what every line to the kernel needs, whatever it is that it talks
// to: a netlink socket, the reading and writing of netlink attributes, a network
// namespace to try something in, and sysctls. It knows no object of vipd.
//
// Invariants:
//   - A Socket belongs to one goroutine, and to the network namespace of the thread
//     that opened it.
//   - No bytes of the kernel make anything here panic; what cannot be read is an error.
//   - A batch is done when its last message is acknowledged: an error that the kernel
//     reports for a message before is queued before, and is not lost without the last
//     one (see [Socket.Batch]).
//
// Traps:
//   - A dump that is left before its end leaves its rest in the socket: close it.
//   - What [InScratch] runs must not start goroutines that are to be in the namespace.
package linux
