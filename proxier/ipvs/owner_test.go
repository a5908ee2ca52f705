package ipvs

import (
	"context"
	"errors"
	"strings"
	"testing"

	vs "vipd/internal/ipvs"
	"vipd/lb"
)

// A virtual server is in the journal before it is made, and until after it is deleted.
func TestJournalComesFirst(t *testing.T) {
	h := newHarness(vs.NewFake())
	p := h.proxier()
	for _, step := range []struct {
		services []string
		want     string
	}{
		{[]string{"192.0.2.1:80 10.0.0.1:80", "192.0.2.2:80"},
			"own 192.0.2.1:80/tcp; -A -t 192.0.2.1:80 -s wrr; -a -t 192.0.2.1:80 -r 10.0.0.1:80 -m -w 1"},
		{[]string{"192.0.2.1:80 10.0.0.1:80*2"}, "-e -t 192.0.2.1:80 -r 10.0.0.1:80 -m -w 2"},
		{nil, "-D -t 192.0.2.1:80; disown 192.0.2.1:80/tcp"},
		{nil, ""},
	} {
		h.did(true)
		if err := p.Sync(t.Context(), lb.NewSnapshot(services(step.services...)...), prune); err != nil {
			t.Fatal(err)
		}
		if got := h.did(true); got != step.want {
			t.Errorf("%v: did\n%s\nwant\n%s", step.services, got, step.want)
		}
	}
}

func TestJournalThatCannotBeWrittenStopsNothing(t *testing.T) {
	h := newHarness(vs.NewFake())
	h.journal.full = errors.New("no space left on device")
	if got := h.sync(t, h.proxier(), prune, services("192.0.2.1:80 10.0.0.1:80")); got == "" {
		t.Error("nothing was done")
	}
}

// A plan writes nothing to the journal either.
func TestPlanLeavesTheJournal(t *testing.T) {
	h := newHarness(vs.NewFake())
	p := h.proxier()
	h.journal.keys[svc("192.0.2.9:9").Key] = true // which was never made
	if _, err := p.Plan(t.Context(), lb.NewSnapshot(svc("192.0.2.1:80 10.0.0.1:80")), prune); err != nil {
		t.Fatal(err)
	}
	if len(h.log) > 0 {
		t.Errorf("Plan did %s", h.did(true))
	}
	h.sync(t, p, prune, nil)
	if len(h.journal.keys) > 0 {
		t.Errorf("what was never made is in the journal still: %v", h.journal.keys)
	}
}

// stranger is a virtual server with a destination that somebody else made.
func stranger(text string) []vs.Command {
	s := svc(text)
	all := []vs.Command{{Op: vs.AddServer, Server: serverOf(s)}}
	for _, b := range s.Backends {
		all = append(all, vs.Command{Op: vs.AddDestination, Server: serverOf(s), Destination: destinationOf(s, b, weights(s))})
	}
	return all
}

func TestF93_StrangersAreLeftAlone(t *testing.T) {
	h := newHarness(vs.NewFake())
	h.foreign(t, stranger("192.0.2.1:80 10.9.0.1:80 scheduler=sh")...)
	h.foreign(t, stranger("198.51.100.1:80 10.9.0.1:80")...)
	before := h.State(t)
	p := h.proxier()
	want := services("192.0.2.1:80 10.0.0.1:80", "192.0.2.2:80 10.0.0.1:80")
	if got := h.sync(t, p, prune, want, "192.0.2.1:80"); strings.Contains(got, "192.0.2.1:80") {
		t.Errorf("did %s", got)
	}
	if h.kernel.lists.Load() != 0 {
		t.Errorf("the destinations of %d virtual servers were read, and none is ours", h.kernel.lists.Load())
	}
	err := p.Sync(t.Context(), lb.NewSnapshot(want...), prune)
	if err == nil || !strings.Contains(err.Error(), "ipvsadm -D -t 192.0.2.1:80") {
		t.Errorf("the error does not say what to do: %v", err)
	}
	for _, how := range []bool{false, true} {
		if how {
			p = h.proxier()
		}
		h.sync(t, p, fresh, want, "192.0.2.1:80")
		h.sync(t, p, fresh, nil)
		if now := h.State(t); now != before {
			t.Errorf("was\n%s\nis\n%s", before, now)
		}
		if len(h.journal.keys) > 0 {
			t.Errorf("the journal has %v", h.journal.keys)
		}
	}
	// When the stranger goes, its place is taken.
	h.sync(t, p, prune, want, "192.0.2.1:80")
	h.foreign(t, vs.Command{Op: vs.DeleteServer, Server: serverOf(want[0])})
	if got := h.sync(t, p, prune, want); got != "-A -t 192.0.2.1:80 -s wrr; -a -t 192.0.2.1:80 -r 10.0.0.1:80 -m -w 1" {
		t.Errorf("did %s", got)
	}
	looks := h.kernel.looks.Load()
	h.sync(t, p, prune, want[1:])
	if h.sync(t, p, prune, want); h.kernel.looks.Load() != looks {
		t.Error("the place of a stranger that went is looked at again")
	}
}

// A stranger that comes between two passes keeps its place, gets no destination of
// ours, and is not in the journal afterwards, nor on another try.
func TestF93_StrangerThatComesLater(t *testing.T) {
	h := newHarness(vs.NewFake())
	p := h.proxier()
	h.sync(t, p, prune, services("192.0.2.2:80 10.0.0.1:80"))
	h.foreign(t, stranger("192.0.2.1:80 10.9.0.1:80")...)
	before := h.State(t)
	want := services("192.0.2.1:80 10.0.0.1:80", "192.0.2.2:80 10.0.0.1:80")
	h.sync(t, p, prune, want, "192.0.2.1:80")
	h.did(true)
	h.sync(t, p, prune, want[1:]) // as the reconciler does, until it is tried again
	if err := p.Sync(t.Context(), lb.NewSnapshot(want...), prune); err == nil {
		t.Error("it did not fail")
	}
	if got := h.did(true); got != "" {
		t.Errorf("another try did %s", got)
	}
	if now := h.State(t); now != before || h.journal.keys[want[0].Key] {
		t.Errorf("was\n%s\nis\n%s\nthe journal has %v", before, now, h.journal.keys)
	}
}

// When nobody knows what became of an AddServer, what stands may be a stranger's.
func TestF93_StrangerWhenTheLineBreaksOff(t *testing.T) {
	h := newHarness(vs.NewFake())
	p := h.proxier()
	h.sync(t, p, prune, nil)
	h.foreign(t, stranger("192.0.2.1:80 10.9.0.1:80")...)
	before := h.State(t)
	h.kernel.before = func(vs.Command) error {
		h.kernel.before = nil
		return errors.New("broken off by the test")
	}
	if got := h.sync(t, p, prune, services("192.0.2.1:80 10.0.0.1:80"), "192.0.2.1:80"); got != "" || h.State(t) != before || len(h.journal.keys) > 0 {
		t.Errorf("did %s; is\n%s\nthe journal has %v", got, h.State(t), h.journal.keys)
	}
}

// With the state lost, virtual servers whose VIP:port is open are taken for ours.
func TestWitnessStandsInForTheJournal(t *testing.T) {
	h := newHarness(vs.NewFake())
	ours := services("192.0.2.1:80 10.0.0.1:80", "192.0.2.2:80 10.0.0.1:80")
	h.sync(t, h.proxier(), prune, ours)
	h.foreign(t, stranger("192.0.2.3:80 10.9.0.1:80")...)
	clear(h.journal.keys)

	asked := 0
	h.witness = func(context.Context) (map[lb.Key]bool, error) {
		if asked++; asked == 1 {
			return nil, errors.New("the set cannot be read")
		}
		return map[lb.Key]bool{ours[0].Key: true, ours[1].Key: true}, nil
	}
	p := h.proxier()
	if err := p.Sync(t.Context(), lb.NewSnapshot(ours...), prune); err == nil || asked != 1 {
		t.Errorf("a witness that does not answer: asked %d times, error %v", asked, err)
	}
	if got := h.sync(t, p, prune, ours[:1]); got != "-D -t 192.0.2.2:80" {
		t.Errorf("did %s", got)
	}
	if !h.journal.keys[ours[0].Key] || len(h.journal.keys) != 1 {
		t.Errorf("the journal has %v", h.journal.keys)
	}
	h.sync(t, p, fresh, ours[:1])
	if asked != 2 {
		t.Errorf("the witness was asked %d times", asked)
	}
	h.sync(t, p, prune, append(ours[:1:1], svc("192.0.2.3:80 10.0.0.1:80")), "192.0.2.3:80")
}

// A dump that is not of a piece may miss a virtual server (see internal/ipvs). What the
// journal has is ours all the same: it is neither taken for a stranger's nor forgotten.
func TestOursThatADumpMissed(t *testing.T) {
	want := services("192.0.2.1:80 10.0.0.1:80", "192.0.2.2:80 10.0.0.1:80")
	for name, next := range map[string][]*lb.Service{
		"wanted":            want,
		"wanted otherwise":  services("192.0.2.1:80 10.0.0.2:80 scheduler=rr", "192.0.2.2:80 10.0.0.1:80"),
		"not wanted":        want[1:],
		"without a backend": services("192.0.2.1:80", "192.0.2.2:80 10.0.0.1:80"),
	} {
		for _, restarted := range []bool{false, true} {
			h := newHarness(vs.NewFake())
			p := h.proxier()
			h.sync(t, p, prune, want)
			if restarted {
				p = h.proxier()
			}
			h.kernel.miss = map[lb.Key]bool{want[0].Key: true}
			if _, err := p.Plan(t.Context(), lb.NewSnapshot(next...), prune); err != nil {
				t.Errorf("%s: Plan: %v", name, err)
			}
			h.sync(t, p, fresh, next)
			h.kernel.miss = nil
			clean := newHarness(vs.NewFake())
			clean.sync(t, clean.proxier(), prune, next)
			if got, want := h.State(t), clean.State(t); got != want || len(h.journal.keys) != len(clean.journal.keys) {
				t.Errorf("%s, restarted %v: is\n%s\nwant\n%s\nthe journal has %v", name, restarted, got, want, h.journal.keys)
			}
		}
	}
}

// Nor does one that tells of a destination twice cost that destination.
func TestDestinationThatADumpToldTwice(t *testing.T) {
	h := newHarness(vs.NewFake())
	want := services("192.0.2.1:80 10.0.0.1:80 10.0.0.2:80")
	p := h.proxier()
	h.sync(t, p, prune, want)
	h.kernel.twice = true
	if got := h.sync(t, p, fresh, want); got != "" {
		t.Errorf("did %s", got)
	}
}
