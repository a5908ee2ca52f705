package main

import (
	"os"
	"runtime/debug"
)

// garbagePercent is how much garbage may gather before it is collected, in percent
// of what is in use. What vipd has in use is what it knows of its services, which
// is little to look through (16 ms of one core at 10,000 services), and a resync
// makes nearly as
// much garbage: with Go's 100 the process would be a third larger all the time.
const garbagePercent = 50

// thrift has the collector keep the process small, unless the environment has
// something to say about it (GOGC, see package runtime).
func thrift() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent)
	}
}

// giveBack returns unused memory to the kernel. A start, a reload and a plan need
// several times what stays of them, for the text of the files and what is parsed of
// it, and the collector would keep most of that for the next time, which may never
// come.
func giveBack() { debug.FreeOSMemory() }
