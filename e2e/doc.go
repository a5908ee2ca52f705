// Package e2e tests the vipd program itself with real packets: a client, backends
// and a load balancer in network namespaces, traffic with an account of every
// connection and datagram (internal/loss), and the command line as a user has it.
//
// The tests need root and run with the build tag kernel. They build the program,
// unless VIPD_BIN_DIR names a directory that has it. VIPD_SOAK=1 asks for the long
// figures. The mode is that of the lane (kerneltest.Mode): here iptables, and in the
// virtual machine ipvs for all that are marked with it. There all is some twenty times
// slower, so counts are smaller (fewer), and most tests share a world (TestTour).
//
// Trap: what a service drains, it still has. A test that takes a service or a
// backend away and wants to see it gone says drain_timeout = "0s", or waits.
package e2e
