// Package kerneltest runs tests against the running kernel without touching the
// host: every test gets network, mount and process namespaces of its own, and a
// lab of hosts joined by veth pairs in them.
//
// A test begins with
//
//	if !kerneltest.Isolate(t) {
//		return
//	}
//	lab := kerneltest.NewLab(t, 3)
//
// Invariants:
//   - The code under test runs in a process that is born in the new namespaces, so
//     every goroutine and every child of it is in the namespace of the load
//     balancer. There is no thread to lock, except in [Host.Do].
//   - Nothing survives a test. The process is number 1 of a process namespace: when
//     it ends, for whatever reason, the kernel kills all that it started, and with
//     the last of them go the mounts, the named namespaces and their links. So the
//     names ("client", "b1") need not be unique on the host.
//   - A skip must prove itself: [Need] skips only where the kernel was asked and said
//     no and nothing else on the host contradicts it; in the VM lane
//     (VIPD_LANE=vm), whose kernel has everything, it fails.
//
// Traps:
//   - Isolated tests do not run in parallel: t.Parallel mixes up their output.
//   - Profiles and coverage of the inner process are not collected.
//   - A thread that entered a namespace is never given back to the Go runtime. What
//     [Host.Do] runs must not start goroutines that are to be in the namespace:
//     sockets stay where they were made, goroutines do not.
package kerneltest
