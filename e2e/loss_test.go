//go:build kernel

package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
)

// rate is how many new connections a second the tests of loss make, over both
// families.
const rate = 500

// farm is the world of the tests of loss: a service whose backends change, others
// that do not, and traffic for all of them.
type farm struct {
	*world
	random  *rand.Rand
	servers int
	now     []int // the backends of the service that changes

	changing *loss.Load // new connections to the service that changes
	steady   *loss.Load // everything, to services that do not change
}

func newFarm(t *testing.T) *farm {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	f := &farm{world: newWorld(t, 6), random: rand.New(rand.NewPCG(seed, 0)), servers: 6, now: []int{1, 2, 3}}
	f.serveAll(8080)
	return f
}

// config is the configuration with the present backends. Twenty services more make
// the tree of chains a tree.
func (f *farm) config() string {
	services := []service{
		{name: "changing", port: 80, more: []string{`drain_timeout = "1s"`}, backends: f.at(8080, f.now...)},
		{name: "changing-udp", port: 80, protocol: "udp", backends: f.at(8080, f.now...)},
		{name: "steady", port: 81, backends: f.at(8080, 1, 2, 3, 4, 5, 6)},
		{name: "steady-udp", port: 81, protocol: "udp", backends: f.at(8080, 1, 2, 3, 4, 5, 6)},
	}
	for n := range 20 {
		services = append(services, service{
			name: fmt.Sprintf("other%d", n), vips: []string{fmt.Sprintf("192.0.2.%d", 20+n), fmt.Sprintf("2001:db8::%d", 20+n)},
			port: 80, backends: f.at(8080, 1+n%6, 1+(n+1+f.now[0]%5)%6),
		})
	}
	return config(services...)
}

// traffic starts all loads.
func (f *farm) traffic() {
	f.changing, f.steady = f.load(f.Client), f.load(f.Client)
	for i, target := range targets(80) {
		f.changing.Connect(loss.Connections{Target: target, Rate: fewer(fewer(rate / 2))})
		f.steady.Connect(loss.Connections{Target: targets(81)[i], Rate: fewer(25)})
		f.steady.Hold(loss.Hold{Target: targets(81)[i], Count: fewer(10), Every: slower(50 * time.Millisecond)})
		f.steady.Hold(loss.Hold{Target: targets(81)[i], Count: 10})
		f.steady.Send(loss.Flows{Target: targets(81)[i], Count: fewer(10), Every: slower(50 * time.Millisecond)})
	}
}

// shuffle chooses other backends, one to five of them, and writes the file. The
// backends that come are allowed from here on; those that go are returned.
func (f *farm) shuffle() (gone []int) {
	before := f.now
	for slices.Equal(before, f.now) {
		f.now = f.random.Perm(f.servers)[:1+f.random.IntN(f.servers-1)]
		for i := range f.now {
			f.now[i]++
		}
		slices.Sort(f.now)
	}
	for _, n := range f.now {
		f.changing.Allow(f.Backends[n-1].Name)
	}
	f.write(f.config())
	return slices.DeleteFunc(slices.Clone(before), func(n int) bool { return slices.Contains(f.now, n) })
}

// settled says that the change is in force: the backends that went must not get
// anything new from now on.
func (f *farm) settled(gone []int) {
	for _, n := range gone {
		f.changing.Forbid(f.Backends[n-1].Name)
	}
}

// nothingLost ends the traffic.
func (f *farm) nothingLost(what string) {
	f.t.Helper()
	lossless(f.t, what+": the service that changed", f.changing.Stop())
	lossless(f.t, what+": the services that did not", f.steady.Stop())
}

//lane:vm ipvs
func TestB16_ReloadsThatChangeBackendsLoseNothing(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	f := newFarm(t)
	f.write(f.config())
	f.start()
	f.traffic()
	count := soak(max(5, fewer(20)), 200)
	for range count {
		gone := f.shuffle()
		f.must(0, "reload")
		f.settled(gone)
	}
	f.nothingLost(fmt.Sprintf("%d reloads", count))
	f.must(0, "plan")
}

// TestB63 kills vipd at random moments, most of them within a pass, and starts it
// with another configuration than the one it died over.
//
//lane:vm ipvs
func TestB63_F75_KilledAtAnyPointAndStartedAgainLosesNothing(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	f := newFarm(t)
	f.write(f.config())
	f.start()
	f.traffic()
	count := soak(fewer(25), 500)
	for range count {
		gone := f.shuffle()
		// A reload takes some 300 ms, of which the last part changes the kernel.
		after := slower(time.Duration(f.random.IntN(400)) * time.Millisecond)
		f.hup()
		time.Sleep(after)
		f.kill()
		gone = append(gone, f.shuffle()...)
		f.start()
		f.settled(slices.DeleteFunc(gone, func(n int) bool { return slices.Contains(f.now, n) }))
	}
	f.nothingLost(fmt.Sprintf("%d kills", count))
	f.must(0, "plan")
}
