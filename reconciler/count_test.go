package reconciler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vipd/lb"
	"vipd/proxier"
)

// counting is a mode that counts connections. A backend of which nothing is said has
// one.
type counting struct {
	*fakeMode
	mu    sync.Mutex
	has   map[string]proxier.Count // by service and backend
	fail  error
	took  time.Duration
	asked []int // of how many services, each time
}

func (c *counting) Counters(_ context.Context, services []lb.Key) ([]proxier.Count, error) {
	defer c.last()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, len(services))
	if c.fail != nil {
		return nil, c.fail
	}
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	var all []proxier.Count
	for _, k := range services {
		svc := c.kernel[k]
		if svc == nil {
			continue
		}
		for _, b := range svc.Backends {
			count, said := c.has[fmt.Sprintf("%d %s", k.Port, b.Addr.Addr())]
			if !said {
				count.Active = 1
			}
			count.Service, count.Backend = k, b.Addr
			all = append(all, count)
		}
	}
	return all, nil
}

// last lets a count take its time, unlocked.
func (c *counting) last() {
	c.mu.Lock()
	took := c.took
	c.mu.Unlock()
	time.Sleep(took)
}

// now sets the connections to a backend.
func (c *counting) now(service string, active, inactive uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.has[service] = proxier.Count{Active: active, Inactive: inactive}
}

// counted returns of how many services connections were counted, since it was asked last.
func (c *counting) counted() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.asked
	c.asked = nil
	return n
}

func newCounting(t *testing.T) (*world, *counting) {
	w := newWorld(t, []string{"static"}, ipt, ipvs)
	w.s.SyncPeriod = 24 * time.Hour
	w.s.Mode = ipvs
	mode := &counting{fakeMode: w.modes[ipvs], has: map[string]proxier.Count{}}
	w.watches = map[lb.Mode]proxier.Proxier{ipvs: mode}
	w.start()
	return w, mode
}

func TestB39_ADrainEndsWithItsLastConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, mode := newCounting(t)
		w.says(svc("1:80 a*1 b*1 c*1"), svc("1:81 a*1"), svc("1:53/udp a*1 b*1"))
		w.wait(time.Minute)
		if n := mode.counted(); len(n) != 0 {
			t.Errorf("counted %v services though nothing drains", n)
		}
		w.says(svc("1:80 a*1 b*draining"), svc("1:53/udp a*1")) // c goes, b drains, and 81 goes
		w.wait(5 * time.Second)
		w.wants("UDP at once, TCP while there are connections", "ipvs 1:53/udp a*1 open", "ipvs 1:80 a*1 b*drain c*drain open", "ipvs 1:81 a*drain open")
		if n := mode.counted(); len(n) < 3 || slices.Max(n) != 2 {
			t.Errorf("counted the services %v times", n)
		}
		mode.now("80 10.0.0.3", 0, 2)
		w.wait(5 * time.Second)
		w.wants("one that ends is one", "ipvs 1:53/udp a*1 open", "ipvs 1:80 a*1 b*drain c*drain open", "ipvs 1:81 a*drain open")
		if got := w.connections(); got != "80 b 1/0, 80 c 0/2, 81 a 1/0" {
			t.Errorf("status tells of the connections %q", got)
		}
		mode.now("80 10.0.0.3", 0, 0)
		mode.now("80 10.0.0.2", 0, 0)
		w.wait(countInterval + w.s.MinSyncPeriod)
		w.wants("they are gone at the next count", "ipvs 1:53/udp a*1 open", "ipvs 1:80 a*1 open", "ipvs 1:81 a*drain open")
		if s := w.r.Status().Services[1]; s.Backends[1].State != "drained" {
			t.Errorf("b is %+v", s.Backends[1])
		}
		mode.now("81 10.0.0.1", 0, 0)
		w.wait(3 * time.Second)
		w.wants("and so is the service", "ipvs 1:53/udp a*1 open", "ipvs 1:80 a*1 open")
		mode.counted()
		w.says(svc("1:80 a*1 b*draining"), svc("1:53/udp a*1"), svc("2:80 d*1"))
		w.pass()
		w.restart()
		w.wait(time.Minute)
		w.wants("what is drained stays so", "ipvs 1:53/udp a*1 open", "ipvs 1:80 a*1 open", "ipvs 2:80 d*1 open")
		if n := mode.counted(); len(n) != 0 {
			t.Errorf("counted %v services though nothing drains any more", n)
		}
	})
}

// connections returns what Status tells of them: "80 b 1/0".
func (w *world) connections() string {
	var all []string
	for _, s := range w.r.Status().Services {
		for _, b := range s.Backends {
			if c := b.Connections; c != nil {
				all = append(all, fmt.Sprintf("%d %c %d/%d", s.Key.Port, 'a'+b.Addr.Addr().As4()[3]-1, c.Active, c.Inactive))
			}
		}
	}
	return strings.Join(all, ", ")
}

// A backend that returns takes its weight back, and what was counted before is
// forgotten; without counts a drain lasts until its deadline.
func TestB40_CountsOfADrainThatEndedOtherwiseAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, mode := newCounting(t)
		w.says(svc("1:80 a*1 b*1"))
		w.wait(5 * time.Second)
		mode.now("80 10.0.0.2", 0, 0)
		w.says(svc("1:80 a*1"))
		w.wait(countInterval / 2)
		w.says(svc("1:80 a*1 b*1")) // before it was counted
		w.wait(5 * time.Second)
		w.wants("back", "ipvs 1:80 a*1 b*1 open")
		mode.mu.Lock()
		mode.fail = errors.New("no answer")
		mode.mu.Unlock()
		w.says(svc("1:80 a*1"))
		w.wait(29 * time.Second)
		w.wants("nobody knows", "ipvs 1:80 a*1 b*drain open")
		w.wait(3 * time.Second)
		w.wants("the deadline", "ipvs 1:80 a*1 open")
	})
}

// What a count that lasts finds is not believed of a drain that began meanwhile, nor does
// it hold up a pass, nor the end.
func TestACountRunsBesidePasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, mode := newCounting(t)
		w.says(svc("1:80 a*1 b*1"), svc("2:80 a*1"))
		w.wait(5 * time.Second)
		mode.now("80 10.0.0.2", 0, 0)
		mode.mu.Lock()
		mode.took = 10 * time.Second
		mode.mu.Unlock()
		w.says(svc("1:80 a*1"), svc("2:80 a*1"))
		w.wait(5 * time.Second) // a count is under way
		w.says(svc("1:80 a*1 b*1"), svc("2:80 a*1"))
		w.pass()
		mode.now("80 10.0.0.2", 3, 0)
		w.says(svc("1:80 a*1"), svc("2:80 a*2"))
		w.pass()
		w.wants("a pass is made", "ipvs 1:80 a*1 b*drain open", "ipvs 2:80 a*2 open")
		w.wait(22 * time.Second)
		w.wants("the drain lasts", "ipvs 1:80 a*1 b*drain open", "ipvs 2:80 a*2 open")
		w.wait(time.Minute)
		if n := len(mode.counted()); n > 3 {
			t.Errorf("counted %d times in a minute and a half, though each takes ten seconds", n)
		}
		w.says(svc("2:80 a*2"))
		w.wait(2 * time.Second)
		w.kill()
	})
}

// A mode that refused the drain has the backend in use as before: that it has no
// connection just now says nothing.
func TestOnlyADrainThatIsInPlaceEndsEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, mode := newCounting(t)
		w.says(svc("1:80 a*1 b*1"))
		w.wait(5 * time.Second)
		w.inject(func() { w.modes[ipvs].reject = reject("1:80") })
		mode.now("80 10.0.0.2", 0, 0)
		w.says(svc("1:80 a*1"))
		w.wait(10 * time.Second)
		w.wants("refused", "ipvs 1:80 a*1 b*1 open")
		if s := w.r.Status().Services[0]; s.Backends[1].State != "draining" {
			t.Errorf("decided of b: %+v", s.Backends[1])
		}
	})
}

// However many services drain, a count asks the kernel for a bounded number of them,
// and comes to each in turn; and passes that follow each other closely do not keep it
// from counting.
func TestCountsAreBoundedAndComeToEveryService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, mode := newCounting(t)
		var before, after []*lb.Spec
		for port := range 3*countAtOnce - 50 {
			before = append(before, svc(fmt.Sprintf("1:%d a*1 b*1", 1000+port)))
			after = append(after, svc(fmt.Sprintf("1:%d a*1", 1000+port)))
			mode.now(fmt.Sprintf("%d 10.0.0.2", 1000+port), 0, 0)
		}
		w.says(before...)
		w.wait(5 * time.Second)
		w.says(after...)
		for range 40 {
			w.wait(100 * time.Millisecond)
			w.r.Trigger("")
		}
		w.wait(5 * time.Second)
		if n := mode.counted(); len(n) < 6 || slices.Max(n) > countAtOnce {
			t.Errorf("counted %v services", n)
		}
		for _, line := range w.shows() {
			if strings.Contains(line, "drain") {
				t.Fatalf("it never came to %s", line)
			}
		}
	})
}
