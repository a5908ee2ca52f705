package ipvs

import (
	"slices"
	"strings"
	"testing"

	vs "vipd/internal/ipvs"
	"vipd/lb"
)

func TestFlowsEndWithTheirDestination(t *testing.T) {
	h := newHarness(vs.NewFake())
	p := h.proxier()
	for _, step := range []struct{ name, service, want string }{
		{"new TCP", "192.0.2.1:1 10.0.0.1:1 10.0.0.2:1", "keep 192.0.2.1:1/tcp>10.0.0.1:1; keep 192.0.2.1:1/tcp>10.0.0.2:1"},
		{"TCP drains", "192.0.2.1:1 10.0.0.1:1 10.0.0.2:1*draining", ""},
		{"TCP drain is over", "192.0.2.1:1 10.0.0.1:1", "end 192.0.2.1:1/tcp>10.0.0.2:1; note 192.0.2.1:1/tcp>10.0.0.2:1"},
		{"TCP target port changes", "192.0.2.1:1 10.0.0.1:2", "end 192.0.2.1:1/tcp>10.0.0.1:1; keep 192.0.2.1:1/tcp>10.0.0.1:2; note 192.0.2.1:1/tcp>10.0.0.1:1"},
		{"TCP gone, new UDP", "192.0.2.1:1/udp 10.0.0.1:1 10.0.0.2:1",
			"end 192.0.2.1:1/tcp>10.0.0.1:2; end 192.0.2.1:1/udp>192.0.2.1:1; keep 192.0.2.1:1/udp>10.0.0.1:1; keep 192.0.2.1:1/udp>10.0.0.2:1; note 192.0.2.1:1/tcp>10.0.0.1:2"},
		{"UDP drains", "192.0.2.1:1/udp 10.0.0.1:1 10.0.0.2:1*draining", "end 192.0.2.1:1/udp>10.0.0.2:1"},
		{"UDP comes back", "192.0.2.1:1/udp 10.0.0.1:1 10.0.0.2:1", "keep 192.0.2.1:1/udp>10.0.0.2:1"},
		{"UDP to no usable backend", "192.0.2.1:1/udp 10.0.0.1:1*0 10.0.0.2:1*0", "end 192.0.2.1:1/udp>10.0.0.1:1; end 192.0.2.1:1/udp>10.0.0.2:1"},
		{"UDP usable again", "192.0.2.1:1/udp 10.0.0.1:1", "end 192.0.2.1:1/udp>192.0.2.1:1; keep 192.0.2.1:1/udp>10.0.0.1:1"},
		{"UDP by dr", "192.0.2.1:1/udp 10.0.0.1:1 10.0.0.2:1 dr", "keep 192.0.2.1:1/udp>10.0.0.2:1"},
		{"one of dr goes", "192.0.2.1:1/udp 10.0.0.1:1 dr", "end 192.0.2.1:1/udp>192.0.2.1:1"},
		{"TCP by dr", "192.0.2.1:1 10.0.0.1:1 dr", "end 192.0.2.1:1/udp>192.0.2.1:1; keep 192.0.2.1:1/tcp>10.0.0.1:1"},
		{"that goes", "192.0.2.1:1 dr", ""},
	} {
		h.sync(t, p, prune, services(step.service))
		if got := h.evictor.asked(); got != step.want {
			t.Errorf("%s:\n got %s\nwant %s", step.name, got, step.want)
		}
		h.sync(t, p, fresh, services(step.service))
		if got := h.evictor.asked(); got != "" {
			t.Errorf("%s, again: %s", step.name, got)
		}
	}
}

// Who called while the virtual servers were gone ("ipvsadm -C") is to be served at the
// next try; by dr the flows that stand cannot be told apart, and are left alone.
func TestF86_FlowsThatMetTheHostEndAfterTheRepair(t *testing.T) {
	fake := vs.NewFake()
	h := newHarness(fake)
	want := services("192.0.2.1:1 10.0.0.1:1", "192.0.2.2:1 10.0.0.1:1 dr", "192.0.2.3:1 10.0.0.1:1*draining", "192.0.2.4:1/udp 10.0.0.1:1")
	p := h.proxier()
	h.sync(t, p, prune, want)
	for name, next := range map[string]*Proxier{"by the same": p, "by the next": h.proxier()} {
		h.evictor.asked()
		fake.Clear()
		h.sync(t, next, fresh, want)
		got := strings.Split(h.evictor.asked(), "; ")
		got = slices.DeleteFunc(got, func(w string) bool { return strings.HasPrefix(w, "keep") })
		if want := []string{"end 192.0.2.1:1/tcp>192.0.2.1:1", "end 192.0.2.4:1/udp>192.0.2.4:1"}; !slices.Equal(got, want) {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestB50_RestartEndsOnlyFlowsOfUnknownBackends(t *testing.T) {
	h := newHarness(vs.NewFake())
	want := services("192.0.2.1:53/udp 10.0.0.1:53 10.0.0.2:53*draining", "192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*draining",
		"192.0.2.2:53/udp", "192.0.2.3:53/udp 10.0.0.1:53 dr", "192.0.2.4:80 10.0.0.1:80")
	h.sync(t, h.proxier(), prune, want)
	h.evictor.asked()

	p := h.proxier()
	h.evictor.keep = nil
	h.sync(t, p, gated, want)
	if got := h.evictor.asked(); got != "" || h.evictor.keep != nil {
		t.Errorf("before the gate opens: %s, sweep %v", got, h.evictor.keep != nil)
	}
	want[4] = svc("192.0.2.4:80 10.0.0.1:80 224.0.0.1:80") // refused: what stood stands
	h.sync(t, p, prune, want, "192.0.2.4:80")
	if got := h.evictor.asked(); strings.Contains(got, "end") || h.evictor.keep == nil {
		t.Fatalf("at the first pass that may remove: %s, sweep %v", got, h.evictor.keep != nil)
	}
	keep := h.evictor.keep
	for _, tc := range []struct {
		key, backend string
		want         bool
	}{
		{"192.0.2.1:53/udp", "10.0.0.1:53", true},
		{"192.0.2.1:53/udp", "10.0.0.2:53", false}, // draining
		{"192.0.2.1:53/udp", "10.0.0.1:54", false},
		{"192.0.2.1:53/udp", "192.0.2.1:53", false}, // went nowhere, and has a backend now
		{"192.0.2.2:53/udp", "192.0.2.2:53", true},  // goes nowhere still
		{"192.0.2.3:53/udp", "192.0.2.3:53", true},  // by dr, or nowhere
		{"192.0.2.1:80", "10.0.0.2:80", true},       // draining
		{"192.0.2.1:80", "10.0.0.3:80", false},
		{"192.0.2.4:80", "10.0.0.1:80", true},
		{"192.0.2.4:80", "224.0.0.1:80", false},
		{"192.0.2.9:80", "10.0.0.1:80", false},
	} {
		if got := keep(svc(tc.key).Key, backend(tc.backend).Addr); got != tc.want {
			t.Errorf("keep %s > %s: %v", tc.key, tc.backend, got)
		}
	}
	h.evictor.keep = nil
	h.sync(t, p, fresh, want, "192.0.2.4:80")
	if h.evictor.keep != nil {
		t.Error("swept twice")
	}
	// Of a kernel that is not known everything is kept.
	if p := h.proxier(); !p.keep(svc("192.0.2.9:80").Key, backend("10.0.0.1:80").Addr) {
		t.Error("a proxier that has not read the kernel lets flows end")
	}
}

func TestCountersFollowTheKernel(t *testing.T) {
	fake := vs.NewFake()
	h := newHarness(fake)
	p := h.proxier()
	s, other := svc("192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*draining"), svc("192.0.2.2:80 10.0.0.1:80")
	keys := []lb.Key{s.Key, svc("192.0.2.3:80").Key, svc("198.51.100.1:80").Key}
	h.foreign(t, stranger("198.51.100.1:80 10.0.0.1:80")...)
	if counts, err := p.Counters(t.Context(), keys); err != nil || len(counts) > 0 {
		t.Errorf("before the first pass: %v, %v", counts, err)
	}
	h.sync(t, p, prune, []*lb.Service{s, other})
	fake.Connect(s.Key, s.Backends[1].Addr, 3, 5)
	lists := h.kernel.lists.Load()
	counts, err := p.Counters(t.Context(), keys)
	if err != nil || len(counts) != 2 || h.kernel.lists.Load()-lists != 1 {
		t.Fatalf("%v, %v, after %d dumps", counts, err, h.kernel.lists.Load()-lists)
	}
	for _, c := range counts {
		if c.Service != s.Key || (c.Backend == s.Backends[1].Addr) != (c.Active == 3 && c.Inactive == 5) {
			t.Errorf("%+v", c)
		}
	}
}
