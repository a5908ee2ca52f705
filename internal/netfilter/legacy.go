package netfilter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The questions of linux/netfilter_ipv4/ip_tables.h, the same for IPv6.
const (
	legacyGetInfo    = 64 // IPT_SO_GET_INFO
	legacyGetEntries = 65 // IPT_SO_GET_ENTRIES

	legacyNameSize    = 32 // XT_TABLE_MAXNAMELEN
	legacyInfoSize    = legacyNameSize + 13*4
	legacyEntriesHead = 40 // struct ipt_get_entries without its entries, 64 bit
)

// legacyTables returns the legacy tables that there are for a family in the network
// namespace of the calling thread. The kernel makes one as soon as it is asked for
// it, so this comes first. The error is fs.ErrPermission for a vipd that is not
// root; no table is no error if the kernel has no x_tables at all.
func legacyTables(f Family) ([]string, error) {
	name := "ip_tables_names"
	if f == IPv6 {
		name = "ip6_tables_names"
	}
	text, err := os.ReadFile("/proc/thread-self/net/" + name)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s legacy tables: %w", f, err)
	}
	return strings.Fields(string(text)), nil
}

// legacyInfo is what the kernel tells of a legacy table without handing it out. Two
// tables of other sizes or with other places of their chains differ; that these are
// equal does not make the tables equal.
type legacyInfo struct {
	hooks   uint32     // a bit a hook that the table has
	places  [10]uint32 // where the base chains begin and end
	entries uint32     // rules, policies and heads of chains
	size    uint32     // bytes
}

// foreign reports whether there is anything but empty base chains that accept.
func (i legacyInfo) foreign(f Family, entries []byte) bool {
	return int(i.entries) > bits(i.hooks)+1 || i.drops(f, entries)
}

// drops reports whether a base chain drops what no rule of it takes. Its policy is
// the last of its entries: a struct ipt_entry or ip6t_entry, and behind that, at
// target_offset, a struct xt_standard_target.
func (i legacyInfo) drops(f Family, entries []byte) bool {
	offsetAt := 88 // target_offset in struct ipt_entry
	if f == IPv6 {
		offsetAt = 140
	}
	for hook, at := range i.places[5:] { // underflow
		if i.hooks&(1<<hook) == 0 || int(at)+offsetAt+2 > len(entries) {
			continue
		}
		verdict := int(at) + int(binary.NativeEndian.Uint16(entries[int(at)+offsetAt:])) + 32
		if verdict+4 <= len(entries) && int32(binary.NativeEndian.Uint32(entries[verdict:])) == -nfDrop-1 {
			return true
		}
	}
	return false
}

func bits(n uint32) (count int) {
	for ; n != 0; n &= n - 1 {
		count++
	}
	return count
}

// readLegacyInfo asks about a table that is there.
func readLegacyInfo(f Family, table string) (info legacyInfo, err error) {
	buf := make([]byte, legacyInfoSize)
	copy(buf[:legacyNameSize-1], table)
	if err := askLegacy(f, legacyGetInfo, buf); err != nil {
		return info, fmt.Errorf("%s legacy table %s: %w", f, table, err)
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(buf[legacyNameSize+4*i:]) }
	info.hooks, info.entries, info.size = word(0), word(11), word(12)
	for i := range info.places {
		info.places[i] = word(1 + i)
	}
	return info, nil
}

// legacyChainHead is how the head of a chain of ours begins in the entries of a
// table: a target ERROR (struct xt_error_target) with the name of the chain.
var legacyChainHead = append(append([]byte("ERROR"), make([]byte, 25)...), ChainPrefix...)

// holdsOwnLegacy reports whether a table that is there has a chain of ours, and
// whether, if it has none, it has rules or a policy of others.
func holdsOwnLegacy(f Family, table string) (own, foreign bool, err error) {
	err = lookAtLegacy(f, table, func(info legacyInfo, entries []byte) {
		own = bytes.Contains(entries, legacyChainHead)
		foreign = !own && info.foreign(f, entries)
	})
	return own, foreign, err
}

// lookAtLegacy shows the entries of a table that is there, as the kernel has them.
// They may be many megabytes, are gone afterwards, and cost the heap nothing.
func lookAtLegacy(f Family, table string, look func(info legacyInfo, entries []byte)) error {
	for range 5 { // it may change between the two questions
		info, err := readLegacyInfo(f, table)
		if err != nil {
			return err
		}
		buf, err := unix.Mmap(-1, 0, legacyEntriesHead+int(info.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return fmt.Errorf("memory for %s legacy table %s: %w", f, table, err)
		}
		copy(buf[:legacyNameSize-1], table)
		binary.NativeEndian.PutUint32(buf[legacyNameSize:], info.size)
		if err = askLegacy(f, legacyGetEntries, buf); err == nil {
			look(info, buf[legacyEntriesHead:])
		}
		err = errors.Join(err, unix.Munmap(buf))
		if !errors.Is(err, unix.EAGAIN) {
			if err != nil {
				err = fmt.Errorf("%s legacy table %s: %w", f, table, err)
			}
			return err
		}
	}
	return fmt.Errorf("%s legacy table %s: it changes all the time", f, table)
}

// askLegacy is one getsockopt(2). buf holds the question, and then the answer.
func askLegacy(f Family, option int, buf []byte) error {
	domain, level := unix.AF_INET, unix.IPPROTO_IP
	if f == IPv6 {
		domain, level = unix.AF_INET6, unix.IPPROTO_IPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// legacyLooked are the legacy tables that rules can stand in.
func legacyLooked(f Family) ([]string, error) {
	there, err := legacyTables(f)
	return slices.DeleteFunc(there, func(name string) bool { return baseChains[name] == nil }), err
}
