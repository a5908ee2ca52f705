package ipvs

import (
	"strings"
	"testing"

	vs "vipd/internal/ipvs"
	"vipd/lb"
	"vipd/proxier"
)

// A scheduler that the kernel lacks costs the services that want it, and no other.
func TestF90_MissingSchedulerQuarantinesOnlyItsServices(t *testing.T) {
	fake := vs.NewFake()
	fake.Lack("mh", true)
	h := newHarness(fake)
	p := h.proxier()
	was := services("192.0.2.1:80 10.0.0.1:80", "192.0.2.2:80 10.0.0.1:80")
	h.sync(t, p, prune, was)
	stood := h.State(t)
	want := services("192.0.2.1:80 10.0.0.1:80*2 10.0.0.3:80 scheduler=mh", "192.0.2.2:80 10.0.0.1:80*2", "192.0.2.3:80 10.0.0.1:80 scheduler=mh")
	err := p.Sync(t.Context(), lb.NewSnapshot(want...), prune)
	if failed, _ := proxier.FailedServices(err); len(failed) != 2 || failed[want[1].Key] != nil {
		t.Fatalf("failed: %v", failed)
	}
	if !strings.Contains(err.Error(), "modprobe ip_vs_mh") {
		t.Errorf("the error does not say what to run: %v", err)
	}
	if got, want := h.State(t), strings.Replace(stood, "192.0.2.2:80 -r 10.0.0.1:80 -m -w 1", "192.0.2.2:80 -r 10.0.0.1:80 -m -w 2", 1); got != want {
		t.Errorf("is\n%s\nwant\n%s", got, want)
	}
	if h.journal.keys[want[2].Key] {
		t.Error("what was not made is in the journal")
	}
	fake.Lack("mh", false)
	h.sync(t, p, prune, want)
	if got := h.sync(t, p, fresh, want); got != "" {
		t.Errorf("left to be done: %s", got)
	}
}

// A kernel that takes IPIP in the place of GUE would send packets that no backend awaits.
func TestKernelWithoutGUEQuarantinesOnlyItsServices(t *testing.T) {
	h := newHarness(vs.NewFake())
	p := h.proxier()
	p.NoGUE = true
	for range 2 {
		h.sync(t, p, fresh, services("192.0.2.1:80 10.0.0.1:80 gue", "192.0.2.2:80 10.0.0.1:80 tunnel", "192.0.2.3:80 10.0.0.1:80"), "192.0.2.1:80")
	}
	if got := h.State(t); strings.Contains(got, "192.0.2.1:80") || !strings.Contains(got, "192.0.2.2:80") {
		t.Errorf("is\n%s", got)
	}
}

// A destination that the kernel refuses takes back what its service got before it.
func TestB58_RefusedServiceGoesBackToWhatStood(t *testing.T) {
	h := newHarness(vs.NewFake())
	p := h.proxier()
	was := services("192.0.2.1:80 10.0.0.1:80 10.0.0.2:80 10.0.0.3:80*draining", "192.0.2.9:80 10.0.0.1:80")
	h.sync(t, p, prune, was)
	stood := h.State(t)
	h.evictor.asked()
	for _, bad := range []string{
		"192.0.2.1:80 10.0.0.1:80*7 10.0.0.4:80 224.0.0.1:80 scheduler=lc",           // the kernel refuses it
		"192.0.2.1:80 10.0.0.1:80 10.0.0.4:80 [fd00::1]:80",                          // we do
		"192.0.2.2:80 10.0.0.1:80 224.0.0.1:80",                                      // never stood
		"[2001:db8::1]:53/udp 10.0.0.4:53*0",                                         // another family, though nothing is to stand
		"192.0.2.1:80 10.0.0.1:80*7 10.0.0.4:81 dr",                                  // another port
		"[2001:db8::1]:80 10.0.0.4:80 tunnel",                                        // another family
		"192.0.2.1:80 10.0.0.1:80*7 10.0.0.4:80 224.0.0.1:80 dr affinity=1m",         // all at once
		"192.0.2.1:80 10.0.0.1:80*7 10.0.0.4:80 224.0.0.1:80 affinity=1500ms dr",     // and what we refuse
		"192.0.2.1:80 10.0.0.1:80*7 10.0.0.4:80 224.0.0.1:80 scheduler=toolongaword", // no such
	} {
		e := lb.NewSnapshot(was...).Edit()
		e.Put(svc(bad))
		for _, how := range []proxier.How{prune, prune, gated, fresh} {
			failed, only := proxier.FailedServices(p.Sync(t.Context(), e.Snapshot(), how))
			if !only || len(failed) != 1 || failed[svc(bad).Key] == nil {
				t.Errorf("%s: failed %v", bad, failed)
			}
			if now := h.State(t); now != stood {
				t.Errorf("%s, %+v: was\n%s\nis\n%s", bad, how, stood, now)
			}
			if asked := h.evictor.asked(); strings.Contains(asked, "end") {
				t.Errorf("%s, %+v: asked %s", bad, how, asked)
			}
		}
		h.sync(t, p, prune, was)
	}
	if got := h.sync(t, p, fresh, was); got != "" {
		t.Errorf("left to be done: %s", got)
	}
}
