// Package e2e tests the vipd program itself with real packets: a client, backends
// and a load balancer in network namespaces, traffic with an account of every
// connection and datagram (internal/loss), and the command line as a user has it.
//
// The tests need root and run with the build tag kernel. They build the program,
// unless VIPD_BIN_DIR names a directory that has it. VIPD_SOAK=1 asks for the long
// figures. The virtual machine (VIPD_LANE=vm) is some twenty times slower and runs
// a few of them only.
//
// Trap: what a service drains, it still has. A test that takes a service or a
// backend away and wants to see it gone says drain_timeout = "0s", or waits.
package e2e
