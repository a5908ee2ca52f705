//go:build kernel

package netfilter

import (
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
	"vipd/lb"
)

// A few flows leave a table of 100,000: little memory in every way of finding
// them, and exactly those flows go. Times are printed.
func TestB51_EvictFromALargeTable(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	const size, doomed = 100_000, 7
	limit, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	check(t, err)
	if n, err := strconv.Atoi(strings.TrimSpace(string(limit))); err != nil || n < size+doomed {
		t.Fatalf("nf_conntrack_max is %s, the test needs %d: raise it on the host, where alone it can be set (%v)", limit, size+doomed, err)
	}
	service := lb.Key{Addr: vip4, Port: 53, Protocol: lb.UDP}
	stays, goes := netip.MustParseAddrPort("10.2.0.11:8080"), netip.MustParseAddrPort("10.2.0.11:8081")
	c, err := OpenConntrack(nil) // UDP says nothing
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	start := time.Now()
	fill(t, c, size, func(i uint32) message {
		client := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 0x0a800000+i)))
		return udpEntry(netip.AddrPortFrom(client, 1000), service.AddrPort(), stays)
	})
	t.Logf("%d entries made in %s", size, time.Since(start))

	many := []Eviction{{Key: service, Backend: goes}}
	for port := range uint16(wideFrom) {
		many = append(many, Eviction{Key: lb.Key{Addr: vip4, Port: 1000 + port, Protocol: lb.UDP}, Backend: goes})
	}
	ways := []struct {
		name               string
		handsOver, deletes int
		evict              func() (Evicted, error)
	}{
		{"one backend of one service", doomed, doomed, func() (Evicted, error) {
			return c.Evict(t.Context(), Eviction{Key: service, Backend: goes})
		}},
		{"many services", size + doomed, doomed, func() (Evicted, error) {
			return c.Evict(t.Context(), many...)
		}},
		{"sweep", size + doomed, doomed, func() (Evicted, error) {
			return c.Sweep(t.Context(), lb.UDP, testMark, map[Way]Keep{ByAny: func(_ lb.Key, b netip.AddrPort) bool { return b == stays }})
		}},
		{"nothing to do", size, 0, func() (Evicted, error) {
			return c.Sweep(t.Context(), lb.UDP, testMark, map[Way]Keep{ByAny: func(lb.Key, netip.AddrPort) bool { return true }})
		}},
	}
	for _, way := range ways {
		if way.deletes > 0 {
			fill(t, c, doomed, func(i uint32) message {
				client := netip.AddrPortFrom(netip.MustParseAddr("10.1.0.10"), uint16(2000+i))
				return udpEntry(client, service.AddrPort(), goes)
			})
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		start := time.Now()
		done, err := way.evict()
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		check(t, err)
		allocated, system := after.TotalAlloc-before.TotalAlloc, after.Sys-before.Sys
		t.Logf("%s: %s, %d flows handed over, %d KB allocated, process grew by %d KB",
			way.name, took, done.Seen, allocated>>10, system>>10)
		if done.Deleted != way.deletes {
			t.Errorf("%s: %d deleted, want %d", way.name, done.Deleted, way.deletes)
		}
		if done.Seen != way.handsOver {
			t.Errorf("%s: the kernel handed over %d flows, want %d", way.name, done.Seen, way.handsOver)
		}
		if system > 8<<20 || allocated > 1<<20 {
			t.Errorf("%s: %d bytes allocated, the process grew by %d: the table is held in memory", way.name, allocated, system)
		}
		if left := c.count(t); left != size {
			t.Fatalf("%s: %d entries left, want %d", way.name, left, size)
		}
	}
}

// count counts the UDP entries.
func (c *Conntrack) count(t *testing.T) int {
	t.Helper()
	done, err := c.Sweep(t.Context(), lb.UDP, testMark, map[Way]Keep{ByAny: func(lb.Key, netip.AddrPort) bool { return true }})
	check(t, err)
	return done.Seen
}

// fill makes entries, many in one datagram.
func fill(t *testing.T, c *Conntrack, size uint32, entry func(i uint32) message) {
	t.Helper()
	var batch message
	for i := range size {
		m := entry(i)
		binary.NativeEndian.PutUint32(m, uint32(len(m)))
		binary.NativeEndian.PutUint32(m[8:], c.writer.Next())
		if (i+1)%100 != 0 && i+1 != size {
			binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|unix.NLM_F_CREATE|unix.NLM_F_EXCL) // no answer but to the last
			batch = append(batch, m...)
			continue
		}
		check(t, c.writer.SendAll(append(batch, m...)))
		check(t, c.writer.Answers(t.Context(), func([]byte) error { return nil }))
		batch = batch[:0]
	}
}

// udpEntry asks for the entry of a flow that a VIP took.
func udpEntry(client, vip, backend netip.AddrPort) message {
	m := newMessage(msgNew, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, FamilyOf(client.Addr()))
	m.tuple(ctaTupleOrig, tuple{lb.UDP, client, vip})
	m.tuple(ctaTupleReply, tuple{lb.UDP, backend, client})
	m.uint32(ctaStatus, statusConfirmed)
	m.uint32(ctaTimeout, 600)
	m.uint32(ctaMark, testMark)
	return m
}
