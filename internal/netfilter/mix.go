package netfilter

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// MixedError says that chains of ours stand in the backend that is not in force.
// The kernel runs the rules of both, so services of another time would be served
// beside those that are wanted, and nothing would ever mend or remove them.
type MixedError struct {
	InForce Backend
	Tables  []string // where our chains stand in the other one: "IPv4 nat"
}

// Error names both backends, and what to do.
func (e *MixedError) Error() string {
	return fmt.Sprintf("vipd works with the %s backend of iptables, but chains of vipd stand in the tables of the %s backend, too (%s), "+
		"and the kernel runs both; stop vipd, run \"vipd cleanup\", which takes vipd's rules out of both, and start it again, "+
		"or choose the other one in [proxy] iptables_backend", e.InForce, e.InForce.other(), strings.Join(e.Tables, ", "))
}

// elsewhere is what stands in the backend that is not in force: tables with chains
// of ours and tables with rules of others, as "IPv4 nat".
type elsewhere struct{ own, foreign []string }

// CheckOther looks into the backend that is not in force, without making any table
// there. The error is a *MixedError if chains of ours stand in it, or says that it
// cannot be found out. Rules of others there are no error: they are told.
func (t *Tools) CheckOther(ctx context.Context) (foreign []string, err error) {
	found, err := lookInto(ctx, t.backend.other())
	if err == nil && len(found.own) > 0 {
		err = &MixedError{InForce: t.backend, Tables: found.own}
	}
	return found.foreign, err
}

// AllTools returns the tools of every backend that is installed, for a clean-up
// without a choice. The error names a backend whose tools are missing though chains
// of ours stand in it.
func AllTools(ctx context.Context, o ToolOptions) (all []*Tools, err error) {
	var errs []error
	for _, b := range []Backend{NFT, Legacy} {
		o.Backend = b
		t, err := FindTools(ctx, o)
		if err == nil {
			all = append(all, t)
			continue
		}
		if errors.Is(err, ErrNotInstalled) {
			found, lookErr := lookInto(ctx, b)
			if len(found.own) == 0 && (lookErr == nil || errors.Is(lookErr, fs.ErrPermission)) {
				continue
			}
			what := fmt.Errorf("look for chains of vipd in the %s tables: %w", b, lookErr)
			if len(found.own) > 0 {
				what = fmt.Errorf("chains of vipd stand in the %s tables (%s)", b, strings.Join(found.own, ", "))
			}
			err = errors.Join(what, err)
		}
		errs = append(errs, err)
	}
	return all, errors.Join(errs...)
}

// lookInto looks into one backend.
func lookInto(ctx context.Context, b Backend) (elsewhere, error) {
	if err := ctx.Err(); err != nil {
		return elsewhere{}, err
	}
	if b == NFT {
		return lookIntoNFT()
	}
	return lookIntoLegacy()
}

func lookIntoLegacy() (found elsewhere, err error) {
	for _, f := range Families {
		tables, err := legacyLooked(f)
		if err != nil {
			return found, err
		}
		for _, table := range tables {
			own, foreign, err := holdsOwnLegacy(f, table)
			if err != nil {
				return found, err
			}
			place := f.String() + " " + table
			if own {
				found.own = append(found.own, place)
			}
			if foreign {
				found.foreign = append(found.foreign, place)
			}
		}
	}
	return found, nil
}

// The messages and attributes of linux/netfilter/nf_tables.h that list chains.
const (
	nftGetChain = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN
	nftNewChain = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWCHAIN

	nftaChainTable  = 1
	nftaChainName   = 3
	nftaChainHook   = 4
	nftaChainPolicy = 5
	nftaChainUse    = 6 // rules in it, and rules that lead to it

	nfDrop = 0
)

// lookIntoNFT lists the chains of nftables. A kernel without nftables has none.
func lookIntoNFT() (found elsewhere, err error) {
	answers, err := dumpAgain(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(nftGetChain, unix.NLM_F_DUMP)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: unix.NFNETLINK_V0})
		return req.Execute(unix.NETLINK_NETFILTER, nftNewChain)
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return found, nil
	}
	if err != nil {
		return found, fmt.Errorf("list the chains of nftables: %w", err)
	}
	for _, msg := range answers {
		c, ok := parseNFTChain(msg)
		if !ok {
			continue
		}
		switch {
		case isOwn(c.name) && (c.family == "IPv4" || c.family == "IPv6"):
			found.own = append(found.own, c.family+" "+c.table)
		case c.base && (c.used || c.drops) && !strings.HasPrefix(c.table, SetPrefix):
			found.foreign = append(found.foreign, c.family+" "+c.table)
		}
	}
	for _, places := range []*[]string{&found.own, &found.foreign} {
		slices.Sort(*places)
		*places = slices.Compact(*places)
	}
	found.foreign = slices.DeleteFunc(found.foreign, func(place string) bool { return slices.Contains(found.own, place) })
	return found, nil
}

// dumpAgain dumps until nobody's commit interrupts it. What it has after the last
// attempt is taken as it is: what is in no part of it came or went just then.
func dumpAgain(dump func() ([][]byte, error)) (answers [][]byte, err error) {
	for range listAttempts {
		if answers, err = dump(); !errors.Is(err, nl.ErrDumpInterrupted) {
			return answers, err
		}
	}
	return answers, nil
}

// nftChain is one chain of nftables.
type nftChain struct {
	family, table, name string
	base, used, drops   bool // drops: what no rule of it takes
}

// nftFamilies names the families of nftables as we name them elsewhere.
var nftFamilies = map[uint8]string{unix.NFPROTO_IPV4: "IPv4", unix.NFPROTO_IPV6: "IPv6", unix.NFPROTO_INET: "inet",
	unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_ARP: "arp", unix.NFPROTO_NETDEV: "netdev"}

// parseNFTChain reads one chain of a dump, without its netlink header.
func parseNFTChain(msg []byte) (c nftChain, ok bool) {
	if len(msg) < nl.SizeofNfgenmsg {
		return c, false
	}
	attrs, err := nl.ParseRouteAttr(msg[nl.SizeofNfgenmsg:])
	if err != nil {
		return c, false
	}
	c.family = nftFamilies[msg[0]]
	for _, a := range attrs {
		switch a.Attr.Type &^ (syscall.NLA_F_NESTED | syscall.NLA_F_NET_BYTEORDER) {
		case nftaChainTable:
			c.table = string(bytes.TrimRight(a.Value, "\x00"))
		case nftaChainName:
			c.name = string(bytes.TrimRight(a.Value, "\x00"))
		case nftaChainHook:
			c.base = true
		case nftaChainPolicy:
			c.drops = len(a.Value) == 4 && binary.BigEndian.Uint32(a.Value) == nfDrop
		case nftaChainUse:
			c.used = len(a.Value) == 4 && binary.BigEndian.Uint32(a.Value) > 0
		}
	}
	return c, c.table != "" && c.name != ""
}

// Findings tells what of the tools hinders, or may hinder, the services: a sentence
// each, with what to do. It reads and changes nothing.
func (t *Tools) Findings(ctx context.Context) (found []string) {
	foreign, err := t.CheckOther(ctx)
	var mixed *MixedError
	switch {
	case errors.As(err, &mixed):
		found = append(found, err.Error())
	case errors.Is(err, fs.ErrPermission): // not root: the kernel does not tell
		t.options.Log.Debug("it cannot be found out what stands in the other backend of iptables", "error", err)
	case err != nil && ctx.Err() == nil:
		found = append(found, fmt.Sprintf("It cannot be found out what stands in the %s backend of iptables, whose rules are in force as well: %v.",
			t.backend.other(), err))
	case len(foreign) > 0:
		found = append(found, fmt.Sprintf("vipd works with the %s backend of iptables, and rules of others stand in the %s one (%s): "+
			"a packet passes both, so what those drop or translate vipd never sees. Nothing to do if that is meant.",
			t.backend, t.backend.other(), strings.Join(foreign, ", ")))
	}
	if _, wait := t.LockWaits(); wait != nil {
		found = append(found, fmt.Sprintf("Rules cannot be changed now: %s holds the xtables lock since %s or longer. "+
			"vipd waits; end that program if it hangs.", wait.Holder, wait.Since.Format("15:04:05")))
	}
	return found
}
