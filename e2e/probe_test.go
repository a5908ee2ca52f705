//go:build kernel

package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
)

func addrPort(addr string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
}

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// wildcards returns every address of a host, of both families, with these ports:
// where a daemon like sshd listens.
func wildcards(ports ...uint16) []netip.AddrPort {
	var list []netip.AddrPort
	for _, p := range ports {
		list = append(list, netip.AddrPortFrom(netip.IPv6Unspecified(), p))
	}
	return list
}

// hasAddress tells whether the load balancer has an address.
func (w *world) hasAddress(addr string) bool {
	w.t.Helper()
	return strings.Contains(w.LB.Run(w.t, "ip", "-o", "address", "show"), " "+addr+"/")
}

// unreachable asks an address that is no VIP (any more): there is no answer.
func (w *world) unreachable(target netip.AddrPort) {
	w.t.Helper()
	a, err := loss.Request{In: w.Client.Do, Network: "tcp", Target: target, Deadline: 100 * time.Millisecond}.Ask(w.t.Context())
	if err == nil {
		w.t.Fatalf("%s is no VIP and was answered by %s", target, a.Backend)
	}
}

// ping sends one ICMP echo request (RFC 792, RFC 4443) and waits for the answer.
func ping(from *kerneltest.Host, to netip.Addr) error {
	network, request, answer := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, answer = "ip6:ipv6-icmp", 128, 129
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := from.Dial(ctx, net.Dialer{}, network, to.String())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	message := append([]byte{request, 0, 0, 0, 0x56, 0x49, 0, 1}, "vipd"...)
	binary.BigEndian.PutUint16(message[2:], checksum(message)) // for IPv6 the kernel does it again
	if _, err := c.Write(message); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := c.(net.PacketConn).ReadFrom(buf) // without the IPv4 header, unlike Read
		if err != nil {
			return err
		}
		if n >= 8 && buf[0] == answer && slices.Equal(buf[4:n], message[4:]) {
			return nil
		}
	}
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// generation returns the number of the nftables rule set: each commit of anybody
// raises it.
func (w *world) generation() uint32 {
	w.t.Helper()
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	replies, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil || len(replies) != 1 {
		w.t.Fatalf("the generation of the rule set: %d replies, %v", len(replies), err)
	}
	attrs, err := nl.ParseRouteAttr(replies[0][nl.SizeofNfgenmsg:])
	if err != nil {
		w.t.Fatal(err)
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.NFTA_GEN_ID {
			return binary.BigEndian.Uint32(a.Value)
		}
	}
	w.t.Fatal("the kernel names no generation of the rule set")
	return 0
}

// device finds what the kernel chooses about a device: its number and its address.
var device = regexp.MustCompile(`^\d+: |link/ether \S+`)

// saves are the tools that show the rules of either backend.
var saves = []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"}

// kernelState returns all that vipd can have put into the kernel, a sorted line
// each, in a form that depends on nothing else.
func (w *world) kernelState() string {
	w.t.Helper()
	var state []string
	for _, tool := range saves {
		table, rules := "", map[string]int{}
		for line := range strings.Lines(w.LB.Run(w.t, tool)) {
			fields := strings.Fields(line)
			switch {
			case strings.HasPrefix(line, "*"):
				table = fields[0]
			case strings.HasPrefix(line, ":VIPD-"):
				state = append(state, fmt.Sprintf("%s %s %s", tool, table, fields[0]))
			case strings.HasPrefix(line, "-A ") && strings.Contains(line, "VIPD-"):
				// The order counts within a chain; that of the chains does not.
				chain := fields[1]
				rules[chain]++
				state = append(state, fmt.Sprintf("%s %s %s %03d %s", tool, table, chain, rules[chain], strings.Join(fields[2:], " ")))
			}
		}
	}
	for _, argv := range [][]string{{"ipset", "save"}, {"nft", "list", "tables"}, {"ip", "-o", "address", "show"}, {"ip", "-o", "link", "show"}} {
		for line := range strings.Lines(w.LB.Run(w.t, argv[0], argv[1:]...)) {
			// Clients with affinity come and go with packets.
			if strings.Contains(line, "vipd") && !strings.HasPrefix(line, "add vipd-aff") {
				state = append(state, argv[0]+" "+device.ReplaceAllString(kerneltest.WithoutCarrier(strings.TrimSpace(line)), ""))
			}
		}
	}
	state = append(state, w.virtualServers()...)
	slices.Sort(state)
	return strings.Join(state, "\n")
}

// virtualServers returns the virtual servers of IPVS and their destinations, as ipvsadm
// saves them; none where the mode is another.
func (w *world) virtualServers() []string {
	w.t.Helper()
	if kerneltest.Mode() != "ipvs" {
		return nil
	}
	return slices.DeleteFunc(strings.Split(w.LB.Run(w.t, "ipvsadm", "-S", "-n"), "\n"), func(s string) bool { return s == "" })
}

// differ returns the lines that went and came between two such states.
func differ(before, after string) string {
	return strings.Join(kerneltest.DiffLines(strings.Split(before, "\n"), strings.Split(after, "\n")), "\n")
}

// flows returns the entries of the connection tracking that have these words.
func (w *world) flows(words ...string) []string {
	w.t.Helper()
	var list []string
	for _, family := range []string{"ipv4", "ipv6"} {
		for line := range strings.Lines(w.LB.Run(w.t, "sh", "-c", "conntrack -L -f "+family+" 2>/dev/null")) {
			if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word+" ") }) {
				list = append(list, line)
			}
		}
	}
	return list
}

// entryIDs returns the ids of the entries that have these words: an entry that was
// deleted and made again has another one.
func (w *world) entryIDs(words ...string) []string {
	w.t.Helper()
	var ids []string
	for _, family := range []string{"ipv4", "ipv6"} {
		// Its count, on stderr, would come into the middle of a line.
		for line := range strings.Lines(w.LB.Run(w.t, "sh", "-c", "conntrack -L -f "+family+" -o id 2>/dev/null")) {
			if _, id, ok := strings.Cut(line, " id="); ok && !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word+" ") }) {
				ids = append(ids, strings.TrimSpace(id))
			}
		}
	}
	return ids
}

// sameEntries wants every entry of before to be there still.
func (w *world) sameEntries(before, after []string) {
	w.t.Helper()
	if len(before) == 0 {
		w.t.Error("there were no entries to look at")
	}
	for _, id := range before {
		if !slices.Contains(after, id) {
			w.t.Errorf("the entry with id %s was deleted; before %v, after %v", id, before, after)
		}
	}
}

// serves tells whether a service answers, within a moment.
func (w *world) serves(target netip.AddrPort) bool {
	_, err := loss.Request{In: w.Client.Do, Network: "tcp", Target: target, Deadline: 50 * time.Millisecond}.Ask(w.t.Context())
	return err == nil
}
