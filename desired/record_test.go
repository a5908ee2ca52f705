package desired

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"vipd/lb"
)

// midDrain is a world in which one backend drains, one service drains, one has
// moved to another mode and one has lost to another source.
func midDrain(t *testing.T) *world {
	w := newWorld(t, "static", "etcd")
	w.states("static", svc("1:80 a*1 b*2"), svc("2:80 c*1"), svc("3:80 d*1"), svc("4:53/udp e*1"))
	w.states("etcd", svc("4:53/udp f*1"))
	w.now()
	w.states("static", svc("1:80 a*1"), inMode(svc("3:80 d*1"), ipvs), svc("4:53/udp e*1")).now()
	return w
}

func TestB64_RestartInMidDrainTouchesNothing(t *testing.T) {
	for _, down := range []time.Duration{0, time.Second, 10 * time.Second} {
		w := midDrain(t)
		before := w.after(10 * time.Second)
		w.restart(down)
		r := w.now()
		if len(r.Touched) != 0 || len(r.Claims) != 0 {
			t.Errorf("down for %s: touched %v, claims %v", down, r.Touched, r.Claims)
		}
		for _, mode := range []lb.Mode{ipt, ipvs} {
			w.wants("after "+down.String(), r.Place[mode], show(before.Place[mode])...)
		}
		w.wants("door", r.Door, show(before.Door)...)
		if left, want := r.Due.Sub(w.facts.Now), 20*time.Second-down; left != want {
			t.Errorf("down for %s: %s left of the drain, want %s", down, left, want)
		}
		if !r.Door.Get(svc("4:53/udp").Key).Equal(before.Door.Get(svc("4:53/udp").Key)) {
			t.Error("the owner changed")
		}
		w.rest()
	}
}

func TestB41_RestartKeepsWeights(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*7 b*0 c*65535"))
	w.now()
	w.restart(time.Hour)
	r := w.now()
	w.wants("weights", r.Place[ipt], "1:80 a*7 b*0 c*65535")
	if len(r.Touched) != 0 {
		t.Errorf("touched %v", r.Touched)
	}
}

func TestB64_RestartAfterTheDeadlineEndsTheDrain(t *testing.T) {
	w := midDrain(t)
	w.restart(time.Hour)
	w.wants("the drains are over", w.rest().Place[ipt], "1:80 a*1", "4:53/udp e*1")
}

func TestB63_RestartDuringTheRefusingPass(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1"))
	w.now()
	w.states("static").now()
	w.wants("refuses", w.after(30 * time.Second).Place[ipt], "1:80")
	w.restart(time.Second)
	w.wants("gone", w.rest().Place[ipt])
}

func TestClockThatJumpsNeverGivesADrainMoreThanItHad(t *testing.T) {
	for _, jump := range []time.Duration{10 * 365 * 24 * time.Hour, time.Minute, 5 * time.Second, -time.Second, -24 * time.Hour} {
		w := midDrain(t)
		w.restart(jump)
		r := w.now()
		if left := r.Due.Sub(w.facts.Now); left > 30*time.Second {
			t.Errorf("a clock that jumped by %s left %s of a drain of 30s", jump, left)
		}
		w.wants("in the end", w.rest().Place[ipt], "1:80 a*1", "4:53/udp e*1")
	}
}

func TestRestartWithoutTheSourcesKeepsWhatTheyHad(t *testing.T) {
	w := midDrain(t) // the sources have not spoken: the hub serves their seeds
	w.restart(time.Second)
	r := w.after(time.Second)
	w.wants("serves", r.Place[ipt], "1:80 a*1 b*drain", "2:80 c*drain", "3:80 d*drain", "4:53/udp e*1")
}

func TestRestartWithOtherFactsDrainsWhatWent(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1 b*2"), svc("2:80 c*1"))
	w.now()
	w.restart(time.Minute)
	w.states("static", svc("1:80 a*1"))
	w.wants("edited while down", w.now().Place[ipt], "1:80 a*1 b*drain", "2:80 c*drain")
}

// A record of a version that wrote none of the later words is that of the same
// service: an update of vipd changes nothing in the kernel.
func TestB64_RecordsOfAnEarlierVersion(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1 b*2"), svc("2:80 c*1"))
	w.now()
	w.states("static", svc("1:80 a*1"), svc("2:80 c*1")).now()
	w.memo.Stand(ipt, w.memo.place[ipt])
	w.memo.Stand(ipvs, w.memo.place[ipt])
	for k := range w.record {
		raw, err := w.memo.Record(k, w.facts.Now)
		if err != nil {
			t.Fatal(err)
		}
		former := strings.ReplaceAll(string(raw), `"mode":"iptables","scheduler"`, `"scheduler"`)
		if len(former) == len(raw) {
			t.Fatalf("no mode in %s", raw)
		}
		w.record[k] = []byte(former)
	}
	w.restart(time.Second)
	if r := w.now(); len(r.Touched) != 0 || len(r.Claims) != 0 {
		t.Errorf("touched %v, claims %v", r.Touched, r.Claims)
	}
	for s := range w.memo.Standing(ipvs).All() {
		if s.Mode != ipvs {
			t.Errorf("%s stands in mode ipvs as of mode %q", s.Key, s.Mode)
		}
	}
}

// Every word of a spec reaches the service, and stays with it while it leaves.
func TestServiceSaysWhatItsSpecSays(t *testing.T) {
	spec := with(svc("1:80 a*1"), func(s *lb.Spec) {
		s.Mode, s.Scheduler, s.Flags, s.Affinity = ipvs, lb.MH, lb.FlagPort, time.Minute
		s.Forward, s.Tunnel, s.Masquerade = lb.ForwardTunnel, lb.Tunnel{Type: lb.TunnelGUE, Port: 6080}, lb.MasqueradeNever
		s.Clients = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	})
	want := &lb.Service{
		Key: spec.Key, Mode: ipvs, Scheduler: lb.MH, Flags: lb.FlagPort, Affinity: time.Minute, Forward: lb.ForwardTunnel,
		Tunnel: spec.Tunnel, Masquerade: lb.MasqueradeNever, Clients: spec.Clients,
		Backends: []lb.Backend{{Addr: spec.Backends[0].Addr, Weight: 1}},
	}
	w := newWorld(t, "static").states("static", spec)
	if got := w.now().Door.Get(spec.Key); !got.Equal(want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	leaving := *want
	leaving.Backends = []lb.Backend{{Addr: spec.Backends[0].Addr, Draining: true}}
	if got := w.states("static").now().Door.Get(spec.Key); !got.Equal(&leaving) {
		t.Errorf("while it leaves: %+v, want %+v", got, leaving)
	}
	w.restart(time.Second)
	if r := w.now(); len(r.Touched) != 0 {
		t.Errorf("a restart touches %v", r.Touched)
	}
}

func TestRestoreLeavesOutWhatItCannotUse(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1"), svc("2:80 b*1"), svc("3:80 c*1"))
	w.now()
	good := string(w.record[svc("1:80").Key])
	records := map[lb.Key][]byte{
		svc("1:80").Key: []byte(good),
		svc("2:80").Key: []byte(good),                     // of another service
		svc("3:80").Key: []byte(`{"served":`),             // broken
		svc("5:80").Key: []byte(strings.Clone("null")),    // nothing
		svc("6:80").Key: []byte(`{"served":{"ipvs":{}}}`), // no service
	}
	accepted := []Source{{Name: "static", Services: []*lb.Spec{svc("1:80 a*1"), svc("2:80 b*1")}}}
	m, err := Restore(records, accepted, w.facts.Now)
	if m.Len() != 1 || err == nil {
		t.Fatalf("%d entries, error %v", m.Len(), err)
	}
	for _, k := range []string{"192.0.2.2:80/tcp", "192.0.2.3:80/tcp", "192.0.2.5:80/tcp", "192.0.2.6:80/tcp"} {
		if !strings.Contains(err.Error(), k) {
			t.Errorf("the error does not name %s: %v", k, err)
		}
	}
	m, err = Restore(map[lb.Key][]byte{svc("1:80").Key: []byte(good)}, nil, w.facts.Now)
	if m.Len() != 0 || err == nil {
		t.Errorf("a service without an accepted set behind it: %d entries, error %v", m.Len(), err)
	}
}

func TestB59_WhatStandsInPlaceOfTheDecidedIsRemembered(t *testing.T) {
	w := newWorld(t, "static").states("static", svc("1:80 a*1"), svc("2:80 b*1"))
	w.now()
	v1 := w.memo.place[ipt]
	w.states("static", svc("1:80 a*2"), svc("2:80 b*1"), inMode(svc("3:80 c*1"), ipvs)).now()
	stand := func(mode lb.Mode, stands lb.Snapshot, news int) {
		t.Helper()
		keys := w.memo.Stand(mode, stands)
		if len(keys) != news {
			t.Fatalf("%d news %v, want %d", len(keys), keys, news)
		}
		for _, k := range keys {
			w.record[k], _ = w.memo.Record(k, w.facts.Now)
		}
	}
	e := v1.Edit() // 1 stands as it was, 2 does not stand at all, 3 stands in the wrong mode
	e.Delete(svc("2:80").Key)
	e.Put(w.memo.place[ipvs].Get(svc("3:80").Key))
	stands := e.Snapshot()
	stand(ipt, stands, 3)
	stand(ipvs, lb.Snapshot{}, 1)
	stand(ipt, stands, 0)
	w.restart(time.Second)
	w.wants("decided", w.now().Place[ipt], "1:80 a*2", "2:80 b*1")
	w.wants("stands", w.memo.Standing(ipt), "1:80 a*1", "3:80 c*1")
	w.wants("stands", w.memo.Standing(ipvs))
	if n := len(w.memo.Clone().Stand(ipt, w.memo.place[ipt])); n != 3 {
		t.Errorf("the clone has %d news", n)
	}
	stand(ipt, w.memo.place[ipt], 3)
	stand(ipvs, w.memo.place[ipvs], 1)
	w.restart(time.Second)
	w.wants("stands when it was taken", w.memo.Standing(ipt), "1:80 a*2", "2:80 b*1")
	w.wants("stands when it was taken", w.memo.Standing(ipvs), "3:80 c*1")
	stand(ipt, v1, 1)
	w.states("static").now()
	w.rest()
	if n := len(w.memo.stands[ipt]); n != 0 {
		t.Errorf("of services that are gone %d are remembered", n)
	}
}
