package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The messages of linux/netfilter/nf_tables.h that ask for the generation.
const (
	nftGetGen = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	nftNewGen = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN

	nftaGenID   = 1 // u32
	nftaGenPID  = 2 // u32: the process that committed
	nftaGenName = 3 // its name
)

// ErrNoGeneration says that the backend cannot tell whether anybody wrote: whoever
// wants to know has to read.
var ErrNoGeneration = errors.New("the legacy tables have no generation")

// Generation returns the number of the rule set: it grows with every commit to
// any table of the network namespace, whoever makes it, iptables or nft. If it is
// what it was before the last Read, a Read would give the same again. It costs
// one message, where reading 50,000 services costs seconds. The legacy backend has
// no such number: ErrNoGeneration.
func (t *Tool) Generation(ctx context.Context) (uint32, error) {
	if t.backend == Legacy {
		return 0, ErrNoGeneration
	}
	return generation(ctx)
}

// Since returns what others did to a table of the tool's family after a generation.
// See Ledger.Since. With the legacy backend nobody knows.
func (t *Tool) Since(ctx context.Context, mark uint32, table string) (Since, error) {
	return t.ledger.Since(ctx, mark, t.family, table)
}

// generation asks the nftables of the network namespace of the calling thread.
func generation(ctx context.Context) (uint32, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	req := nl.NewNetlinkRequest(nftGetGen, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: unix.NFNETLINK_V0})
	answers, err := req.Execute(unix.NETLINK_NETFILTER, nftNewGen)
	if err != nil {
		return 0, fmt.Errorf("generation of the rule set: %w", err)
	}
	for _, msg := range answers {
		if gen, ok := parseGeneration(msg); ok {
			return gen, nil
		}
	}
	return 0, errors.New("generation of the rule set: the kernel gave no number")
}

// parseGeneration reads the answer, without its netlink header.
func parseGeneration(msg []byte) (uint32, bool) {
	if len(msg) < nl.SizeofNfgenmsg {
		return 0, false
	}
	attrs, err := nl.ParseRouteAttr(msg[nl.SizeofNfgenmsg:])
	if err != nil {
		return 0, false
	}
	for _, a := range attrs {
		if a.Attr.Type&^(syscall.NLA_F_NESTED|syscall.NLA_F_NET_BYTEORDER) == nftaGenID && len(a.Value) == 4 {
			return binary.BigEndian.Uint32(a.Value), true
		}
	}
	return 0, false
}
