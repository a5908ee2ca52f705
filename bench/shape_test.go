package main

import (
	"net/netip"
	"strings"
	"testing"
)

const saved = `# Generated
*nat
:PREROUTING ACCEPT [0:0]
:T - [0:0]
:T-A - [0:0]
:S-1 - [0:0]
:S-2 - [0:0]
-A PREROUTING -m set --match-set vip dst -j T
-A T -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN
-A T -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j S-2
-A T -m set --match-set masq dst,dst -j MARK --set-xmark 0x2000/0x2000
-A T -d 10.200.0.0/30 -g T-A
-A T -d 10.200.0.9/32 -p udp -m udp --dport 80 -g S-1
-A T -d 10.200.0.9/32 -p tcp -m tcp --dport 443 -g S-1
-A T -d 10.200.0.9/32 -p tcp -m tcp --dport 80 -g S-2
-A T-A -d 10.200.0.1/32 -p tcp -m tcp --dport 80 -g S-1
-A S-1 -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.64.0.1:8080
-A S-2 -p tcp -j DNAT --to-destination 10.64.0.2:8080
COMMIT
`

func TestWayCountsTheRulesToTheService(t *testing.T) {
	set, err := readRules(strings.NewReader(saved))
	if err != nil {
		t.Fatal(err)
	}
	if len(set.chains) != 5 || set.rules != 11 {
		t.Errorf("%d chains, %d rules", len(set.chains), set.rules)
	}
	for _, tt := range []struct {
		to            string
		rules, chains int // 0: it is not found
	}{
		{"10.200.0.1:80", 5, 2}, {"10.200.0.9:80", 7, 1}, {"10.200.0.2:80", 0, 0}, {"10.200.0.9:81", 0, 0},
	} {
		rules, chains, err := set.way("T", netip.MustParseAddrPort(tt.to))
		if (err == nil) != (tt.rules > 0) || err == nil && (rules != tt.rules || chains != tt.chains) {
			t.Errorf("to %s: %d rules in %d chains, %v; want %d in %d", tt.to, rules, chains, err, tt.rules, tt.chains)
		}
	}
}

func TestLeadsFollowsAGotoThatTakesEverything(t *testing.T) {
	set, err := readRules(strings.NewReader(saved + "-A V -p tcp -j RETURN\n-A V -g T\n-A J -j T\n"))
	if err != nil {
		t.Fatal(err)
	}
	for chain, want := range map[string]string{"V": "T", "J": "J", "T": "T", "S-1": "S-1", "none": "none"} {
		if got := set.leads(chain); got != want {
			t.Errorf("%s leads to %s, want %s", chain, got, want)
		}
	}
}

func TestReadRulesRefusesWhatItCannotRead(t *testing.T) {
	for _, line := range []string{"-A T -d 10.200.0.300 -j X", "-A T -p tcp --dport http -j X"} {
		if _, err := readRules(strings.NewReader(line)); err == nil {
			t.Errorf("%s was read", line)
		}
	}
}
