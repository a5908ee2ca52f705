//go:build kernel

package netfilter

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vipd/internal/kerneltest"
)

func nftTools(t *testing.T) *Tools {
	t.Helper()
	tools, err := FindTools(t.Context(), ToolOptions{Backend: NFT})
	if err != nil {
		t.Fatal(err)
	}
	return tools
}

// sh runs a line of shell as somebody else would.
func sh(t *testing.T, line string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", line).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// listed is a table with what can be told of it, in all its forms.
const listed = `*nat
:VIPD-SVC - [0:0]
:VIPD-EMPTY - [0:0]
:VIPD-NODE - [0:0]
:OTHER - [0:0]
-A VIPD-NODE -p tcp -m tcp --dport 80 -g VIPD-SVC
-A VIPD-NODE -m statistic --mode random --probability 0.5 -j VIPD-EMPTY
-A VIPD-NODE -m comment --comment vipd-ABCDEFGHIJKLMNOP:key:80/tcp
-A VIPD-SVC -p tcp -m statistic --mode nth --every 3 --packet 0 -j MARK --set-mark 1
-A VIPD-SVC -m comment --comment vipd-2222222222222222 -j RETURN
-A OTHER -j ACCEPT
-A PREROUTING -m comment --comment somebody -j OTHER
-A PREROUTING -m comment --comment vipd-3333333333333333 -j VIPD-SVC
-A OUTPUT -j ACCEPT
COMMIT
`

// What is read over netlink is what the text says, but for the fingerprint.
func TestListingIsWhatTheTextSays(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	for _, f := range Families {
		tool, err := nftTools(t).Tool(f)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := tool.List(t.Context(), "nat"); err != nil || len(l.Own)+len(l.Base) != 0 {
			t.Errorf("%s: no table: %+v, %v", f, l, err)
		}
		if err := tool.Restore(t.Context(), []byte(listed)); err != nil {
			t.Fatal(err)
		}
		compare := func(chains ...string) Listing {
			t.Helper()
			text, err := tool.ReadChains(t.Context(), "nat", chains...)
			if len(chains) == 0 {
				text, err = tool.Read(t.Context(), "nat")
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := tool.List(t.Context(), "nat", chains...)
			if err != nil {
				t.Fatal(err)
			}
			if a, b := comparable(text.Listing()), comparable(got); a != b {
				t.Errorf("%s %v: text\n%s\nlisting\n%s", f, chains, a, b)
			}
			return got
		}
		before := compare()
		compare("VIPD-SVC", "PREROUTING", "VIPD-NONE", "VIPD-EMPTY", "INPUT")
		sh(t, map[Family]string{IPv4: "iptables", IPv6: "ip6tables"}[f]+"-nft -t nat -R VIPD-NODE 2 -m statistic --mode random --probability 0.4 -j VIPD-EMPTY")
		if after := compare(); after.Own["VIPD-NODE"].Print == before.Own["VIPD-NODE"].Print || after.Own["VIPD-SVC"].Print != before.Own["VIPD-SVC"].Print {
			t.Errorf("%s: fingerprints %v, then %v", f, before, after)
		}
	}
}

// comparable spells a listing without what the two ways of reading do not share.
func comparable(l Listing) string {
	var lines []string
	for name, c := range l.Own {
		c.Print = 0
		if !isOwn(c.Target) && c.Sum == "" {
			c.Target = "" // of no interest, and not read
		}
		lines = append(lines, fmt.Sprintf("%s %+v", name, c))
	}
	for name, marks := range l.Base {
		if len(marks) > 0 { // iptables shows base chains that do not exist yet
			lines = append(lines, fmt.Sprintf("%s %+v", name, marks))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// listener notes what a watch tells.
type listener struct {
	mu     sync.Mutex
	drifts []Drift
}

func (l *listener) hear(d Drift) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drifts = append(l.drifts, d)
}

// taken returns what was told since it was asked last.
func (l *listener) taken() []Drift {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.drifts
	l.drifts = nil
	return d
}

// watching runs a watch while f runs.
func watching(t *testing.T, tools *Tools, f func(l *listener)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l, ended := &listener{}, make(chan error, 1)
	go func() { ended <- tools.Watch(ctx, l.hear) }()
	for !watched(tools.ledger) {
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	f(l)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func watched(l *Ledger) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tell != nil
}

// judged waits until everything that was committed is judged.
func judged(t *testing.T, tools *Tools) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		now, err := generation(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		tools.ledger.mu.Lock()
		tools.ledger.settle()
		booked := tools.ledger.booked
		tools.ledger.mu.Unlock()
		if booked == now {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the rule set is at %d, the ledger at %d", now, booked)
		}
	}
}

const ours = "*nat\n:VIPD-A - [0:0]\n:VIPD-B - [0:0]\n-A VIPD-A -g VIPD-B\n-A VIPD-B -m comment --comment vipd-4444444444444444\n" +
	"-I PREROUTING 1 -j VIPD-A\nCOMMIT\n*filter\n:VIPD-IN - [0:0]\n-A VIPD-IN -j RETURN\n-I INPUT 1 -j VIPD-IN\nCOMMIT\n"

const emptied = "*nat\n:VIPD-A - [0:0]\nCOMMIT\n"

// Our own writes are no drift, and nothing is to be read after them; nor is what
// others write beside us.
func TestB60_ForeignChangesBesideUsAreNotRead(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	tools := nftTools(t)
	tool, err := tools.Tool(IPv4)
	if err != nil {
		t.Fatal(err)
	}
	watching(t, tools, func(l *listener) {
		since, err := tool.Since(t.Context(), 0, "nat")
		if err != nil || !since.Unknown {
			t.Fatalf("at first: %+v, %v", since, err)
		}
		mark := since.Now
		for _, script := range []string{ours, ours, emptied, emptied, "*nat\n:VIPD-C - [0:0]\n-X VIPD-C\nCOMMIT\n"} {
			if err := tool.Restore(t.Context(), []byte(script)); err != nil {
				t.Fatal(err)
			}
			if script == emptied { // may be no change: then it is the kernel that tells whose the commit is
				judged(t, tools)
			}
			if since, err := tool.Since(t.Context(), mark, "nat"); err != nil || !since.Nothing() {
				t.Errorf("after a write of ours: %+v, %v", since, err)
			}
		}
		if err := tool.Restore(t.Context(), []byte("*nat\n-A VIPD-B -j RETURN\nCOMMIT\n*nat\n-A VIPD-NONE -j RETURN\nCOMMIT\n")); err == nil {
			t.Error("a rule for no chain is taken")
		}
		for _, line := range []string{
			"iptables-nft -N f2b; iptables-nft -A INPUT -j f2b; iptables-nft -I f2b 1 -s 203.0.113.9 -j DROP; iptables-nft -D f2b 1",
			"iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE; iptables-nft -t nat -D POSTROUTING 1",
			"iptables-nft -I OUTPUT 1 -j ACCEPT", // no jump of ours stands there
			"iptables-nft -I INPUT 3 -j ACCEPT",  // behind ours
			"for i in 1 2; do printf '*nat\n:OTHER - [0:0]\n-A OTHER -j RETURN\nCOMMIT\n' | iptables-nft-restore --noflush; done",
			"nft add chain ip nat OTHER; nft add chain ip nat SOME; nft delete chain ip nat SOME",
			"iptables-nft -P FORWARD DROP; iptables-nft -t nat -Z",
			"nft add table inet fw; nft add chain inet fw VIPD-IN; nft add rule inet fw VIPD-IN accept; nft delete table inet fw",
			"nft add table ip t; nft 'add set ip t s { type ipv4_addr; }'; nft 'add element ip t s { 203.0.113.1 }'",
		} {
			sh(t, line)
			judged(t, tools)
			if since, err := tool.Since(t.Context(), mark, "nat"); err != nil || !since.Nothing() {
				t.Errorf("%s: %+v, %v", line, since, err)
			}
		}
		if told := l.taken(); told != nil {
			t.Errorf("told %+v", told)
		}
	})
}

// Whoever touches what is ours is named, and so is what he touched.
func TestWatchNamesWhatAndWho(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	tools := nftTools(t)
	tool, err := tools.Tool(IPv4)
	if err != nil {
		t.Fatal(err)
	}
	restore := func(script string) {
		t.Helper()
		if err := tool.Restore(t.Context(), []byte(script)); err != nil {
			t.Fatal(err)
		}
	}
	watching(t, tools, func(l *listener) {
		for _, tc := range []struct{ line, by, object string }{
			{"iptables-nft -t nat -F", "iptables-nft", "IPv4 table nat chain VIPD-A, IPv4 table nat chain VIPD-B, IPv4 table nat chain PREROUTING"},
			{"iptables-nft -t nat -F VIPD-B", "iptables-nft", "IPv4 table nat chain VIPD-B"},
			{"iptables-nft -t nat -R VIPD-A 1 -j ACCEPT", "iptables-nft", "IPv4 table nat chain VIPD-A"},
			{"iptables-nft -t nat -D PREROUTING 1", "iptables-nft", "IPv4 table nat chain PREROUTING"},
			{"iptables-nft -t nat -I PREROUTING 1 -j ACCEPT", "iptables-nft", "IPv4 table nat chain PREROUTING"},
			{"iptables-nft -t nat -A PREROUTING -j VIPD-B", "iptables-nft", "IPv4 table nat chain PREROUTING"},
			{"iptables-nft -t nat -E VIPD-B MINE", "iptables-nft", "IPv4 table nat"},
			{"nft rename chain ip nat VIPD-A MINE", "nft", "IPv4 table nat"},
			{"iptables-nft -N VIPD-X", "iptables-nft", "IPv4 table filter chain VIPD-X"},
			{"nft flush chain ip filter VIPD-IN", "nft", "IPv4 table filter chain VIPD-IN"},
			{"nft delete table ip nat", "nft", "table nat"},
			{"nft flush ruleset", "nft", "table nat"},
			{"iptables-nft-save -t nat | sed s/VIPD-A/VIPD-Z/ | iptables-nft-restore", "iptables-nft-re", "table nat"},
			{"iptables-legacy -V >/dev/null; nft add table ip vipd-anchor; nft add chain ip vipd-anchor x", "nft", "IPv4 table vipd-anchor chain x"},
		} {
			sh(t, "nft flush ruleset")
			restore(ours)
			judged(t, tools)
			l.taken()
			since, err := tool.Since(t.Context(), 1, "nat")
			if err != nil {
				t.Fatal(err)
			}
			sh(t, tc.line)
			judged(t, tools)
			told := l.taken()
			if len(told) != 1 || !strings.Contains(told[0].Object, tc.object) || !strings.HasPrefix(told[0].By, tc.by+" (pid ") {
				t.Errorf("%s: told %+v", tc.line, told)
			}
			now, err := tool.Since(t.Context(), since.Now, "nat")
			if concerns := strings.Contains(tc.object, "nat"); err != nil || now.Unknown || now.Nothing() == concerns {
				t.Errorf("%s: %+v, %v", tc.line, now, err)
			}
		}
	})
}

// While nobody watches, a change of others is found by the number alone, and one
// of ours is still told from it.
func TestLedgerWithoutAWatch(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	tool, err := nftTools(t).Tool(IPv4)
	if err != nil {
		t.Fatal(err)
	}
	since, err := tool.Since(t.Context(), 0, "nat")
	if err != nil {
		t.Fatal(err)
	}
	mark := since.Now
	for _, tc := range []struct {
		name    string
		write   func()
		unknown bool
	}{
		{"ours", func() { _ = tool.Restore(t.Context(), []byte(ours)) }, false},
		{"others'", func() { sh(t, "iptables-nft -N f2b") }, true},
		{"ours again", func() { _ = tool.Restore(t.Context(), []byte(ours)) }, false},
	} {
		tc.write()
		since, err := tool.Since(t.Context(), mark, "nat")
		if err != nil || since.Unknown != tc.unknown {
			t.Errorf("%s: %+v, %v", tc.name, since, err)
		}
		mark = since.Now
	}
}

// A buffer that is too small for what the kernel tells loses events: that is found
// out, and told if it may matter.
func TestLostEventsAreFoundOut(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	tools := nftTools(t)
	tool, err := tools.Tool(IPv4)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openEvents(4 << 10)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.file.Close() }()
	l := &listener{}
	now, err := generation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tools.ledger.watch(now, l.hear, func(bool) {})
	mark := now
	var big strings.Builder // more than the buffer holds, and nobody reads
	big.WriteString("*nat\n:VIPD-BIG - [0:0]\n")
	for i := range 2000 {
		fmt.Fprintf(&big, "-A VIPD-BIG -d 192.0.2.%d/32 -j RETURN\n", i%256)
	}
	big.WriteString("COMMIT\n")
	if err := tool.Restore(t.Context(), []byte(big.String())); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.listen(ctx, tools.ledger) }()
	judged(t, tools)
	if told := l.taken(); told != nil {
		t.Errorf("events of ours were lost, and told: %+v", told)
	}
	if since, err := tool.Since(t.Context(), mark, "nat"); err != nil || !since.Nothing() {
		t.Errorf("after a write of ours: %+v, %v", since, err)
	}
	sh(t, "iptables-nft-save > /run/rules; iptables-nft-restore < /run/rules; iptables-nft-restore < /run/rules")
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if told := l.taken(); len(told) > 0 {
			t.Logf("told %+v", told)
			break
		}
		if time.Now().After(end) {
			t.Fatal("a change of others was not told")
		}
	}
	cancel()
	_ = s.file.SetReadDeadline(time.Unix(1, 0))
	<-ended
	tools.ledger.unwatch()
	if since, err := tool.Since(t.Context(), mark, "nat"); err != nil || since.Nothing() {
		t.Errorf("after a write of others: %+v, %v", since, err)
	}
}
