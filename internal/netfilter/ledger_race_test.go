package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// Two things at once, and how the Ledger keeps them apart.

var foreign = commitment{at: chainA}

// Whoever asks while a change is still being told reads the table, and hears of the
// change the next time: what he read may be what others left there.
func TestLedgerTellsLaterWhatWasBeingToldWhenAsked(t *testing.T) {
	r := newRuleSet()
	r.watch(true)
	ask := func(mark uint32) Since {
		t.Helper()
		s, err := r.ledger.Since(t.Context(), mark, IPv4, "nat")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	mark := r.now()
	r.commit(foreign)
	r.hear(1)
	r.commit(commitment{}) // not heard yet
	s := ask(mark)
	if !s.Unknown || len(s.Chains) != 1 {
		t.Errorf("what was told before is not said: %+v", s)
	}
	r.commit(foreign)
	s = ask(s.Now)
	r.hear(2)
	if s = ask(s.Now); len(s.Chains) != 1 {
		t.Errorf("what was being told is said to nobody: %+v", s)
	}
	if s = ask(s.Now); !s.Nothing() {
		t.Errorf("said twice: %+v", s)
	}
}

// A commit that may change nothing, and did not, does not cover one of others.
func TestLedgerBooksNoForeignCommitAsAnEmptyOneOfOurs(t *testing.T) {
	r := newRuleSet()
	r.watch(true)
	mark := r.now()
	script := []byte("*nat\n:VIPD-A - [0:0]\nCOMMIT\n") // it stands, and is empty
	err := r.ledger.write(t.Context(), len(script), func(started func(int)) (int, error) {
		started(ourPort)
		r.commit(foreign)
		return commitsOf(script, nil), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.hear(len(r.queue))
	if got := r.since(t, mark); got != chainA.chain {
		t.Errorf("%s", got)
	}
}

// What was told during a write of ours is judged before what is told after it.
func TestLedgerJudgesInOrder(t *testing.T) {
	r := newRuleSet()
	r.watch(true)
	tell, first := r.ledger.tell, true
	r.ledger.tell = func(d Drift) {
		if tell(d); first {
			first = false
			r.commit(commitment{})
			r.hear(len(r.queue))
		}
	}
	_ = r.write(0, 1, nil, func() { r.commit(foreign); r.hear(len(r.queue)) })
	r.hear(len(r.queue))
	for _, d := range r.drifts {
		if d == eventsLost {
			t.Errorf("told %q", r.drifts)
		}
	}
}

// The kernel leaves out the beginning of a commit that comes while a write of ours is
// being booked.
func TestLedgerKnowsWhatIsMissingBehindAWrite(t *testing.T) {
	r := newRuleSet()
	r.watch(true)
	err := r.write(0, 1, nil, func() {
		if r.now() == 1 {
			return
		}
		r.asked = func() {
			r.asked = nil
			r.commit(foreign)
			r.queue = nil
			r.ledger.recover(r.now())
			r.queue = []news{{generation: r.now(), port: otherPort}} // its end
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	r.hear(len(r.queue))
	if got := r.since(t, 2); got != "unknown" { // 2 is ours
		t.Errorf("%s", got)
	}
}

// News that come during a write of ours are kept, but not without end.
func TestLedgerKeepsSoMuchNewsAndNoMore(t *testing.T) {
	r := newRuleSet()
	r.watch(true)
	mark, most := r.now(), 0
	_ = r.write(0, 1, nil, func() {
		for range maxHeld {
			r.commit(foreign)
			r.hear(len(r.queue))
			most = max(most, len(r.ledger.held))
		}
	})
	r.hear(len(r.queue))
	if most > maxHeld {
		t.Errorf("%d are kept", most)
	}
	if got := r.since(t, mark); got != "unknown" {
		t.Errorf("%s", got)
	}
}

// Generations are numbers that wrap: who was there all the time is not told again
// what happened long ago.
func TestLedgerForgetsWhatIsOld(t *testing.T) {
	now := uint32(100)
	l := newLedger()
	l.now = func(context.Context) (uint32, error) { return now, nil }
	mark := uint32(0)
	for range 12 {
		s, err := l.Since(t.Context(), mark, IPv4, "nat")
		if err != nil {
			t.Fatal(err)
		}
		if again, err := l.Since(t.Context(), s.Now, IPv4, "nat"); err != nil || !again.Nothing() {
			t.Fatalf("at %d: %+v, %v", now, again, err)
		}
		mark = s.Now
		now += maxAge / 3 * 2
	}
}

// queue is a netlink socket of the kernel: once something did not fit, nothing does
// until all that is queued was read (net/netlink/af_netlink.c).
type queue struct {
	datagrams [][]byte
	failed    bool   // ENOBUFS is due
	read      func() // what happens in the kernel while the next datagram is read
}

func (q *queue) next(wait bool) (datagram []byte, err error) {
	switch {
	case q.failed:
		q.failed = false
		return nil, unix.ENOBUFS
	case len(q.datagrams) > 0:
		datagram, q.datagrams = q.datagrams[0], q.datagrams[1:]
		if q.read != nil {
			q.read()
			q.read = nil
		}
		return datagram, nil
	case wait:
		return nil, errEmpty
	}
	return nil, unix.EAGAIN
}

var errEmpty = errors.New("nothing more comes")

// commitEnd is the last message of a commit of somebody else.
func commitEnd(generation uint32) []byte {
	m := nftMessage(unix.NFT_MSG_NEWGEN, 0, 0)
	m.uint32(nftaGenID, generation)
	return stamped(m)
}

func ruleOf(chain string) []byte {
	m := nftMessage(unix.NFT_MSG_NEWRULE, unix.NLM_F_APPEND, IPv4)
	m.text(unix.NFTA_RULE_TABLE, "nat")
	m.text(unix.NFTA_RULE_CHAIN, chain)
	return stamped(m)
}

func stamped(m message) []byte {
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	return m
}

// A commit of which the kernel told the end alone, because the queue was full when it
// began, is none of which all is known.
func TestTheRestOfACommitIsNotTakenForAllOfIt(t *testing.T) {
	now := uint32(1)
	l := newLedger()
	l.now = func(context.Context) (uint32, error) { return now, nil }
	l.watch(now, func(Drift) {}, func(bool) {})
	q := &queue{failed: true, datagrams: [][]byte{ruleOf("OTHER")}} // of commit 2, which did not fit
	now = 2
	q.read = func() {
		now = 3 // its rules in VIPD-A did not fit either, but its end does
		q.datagrams = append(q.datagrams, commitEnd(3))
	}
	s := eventSocket{next: q.next}
	if err := s.listen(t.Context(), l); !errors.Is(err, errEmpty) {
		t.Fatal(err)
	}
	since, err := l.Since(t.Context(), 2, IPv4, "nat")
	if err != nil || since.Nothing() {
		t.Errorf("%+v, %v", since, err)
	}
}
