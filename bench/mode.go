package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"

	vs "vipd/internal/ipvs"
	"vipd/internal/netfilter"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/iptables"
	"vipd/proxier/ipvs"
	"vipd/state"
)

// serving is what serves the services of an engine. That of ipvs is not watched here: the
// looks that the daemon takes at virtual servers twice a second are no part of a change.
type serving interface {
	proxier.Proxier
	// messages returns how many netlink messages have been sent to the kernel; 0 of what
	// does not count them (see traced).
	messages() uint64
}

// doorBackend returns the backend of iptables for what stands before all modes.
func doorBackend(backend string) netfilter.Backend {
	if backend == virtual {
		return netfilter.NFT
	}
	return netfilter.Backend(backend)
}

// newMode returns what serves with a backend, as cmd/vipd makes it.
func newMode(ctx context.Context, backend string, tools *netfilter.Tools, evictor *netfilter.Evictor, store *state.Store, log *slog.Logger) (lb.Mode, serving, error) {
	if backend != virtual {
		rules, err := iptables.New(iptables.Options{Tools: tools, Evict: evictor.Of(netfilter.ByNAT), Log: log})
		return lb.IPTables, ruled{rules}, err
	}
	kernel, err := openIPVS(ctx)
	if err != nil {
		return "", nil, err
	}
	p := ipvs.New(ipvs.Options{Kernel: kernel, Journal: &journal{store, map[lb.Key]bool{}}, Evict: evictor.Of(netfilter.ByIPVS), Log: log})
	return lb.IPVS, balanced{p, kernel}, nil
}

// ruled is mode iptables.
type ruled struct{ *iptables.Proxier }

func (ruled) messages() uint64 { return 0 }

// balanced is mode ipvs.
type balanced struct {
	*ipvs.Proxier
	kernel *vs.Handle
}

func (b balanced) messages() uint64 { return b.kernel.Messages() }

// Close closes the line, too, which here is nobody else's.
func (b balanced) Close() error { return errors.Join(b.Proxier.Close(), b.kernel.Close()) }

// openIPVS opens the line to IPVS and sets what mode ipvs needs of the host.
func openIPVS(ctx context.Context) (*vs.Handle, error) {
	h, err := vs.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w; make bench MODE=ipvs has a virtual machine for it", err)
	}
	return h, sysctls(map[string]string{
		"net/ipv4/vs/conntrack": "1", "net/ipv4/vs/expire_nodest_conn": "1", "net/ipv4/vs/expire_quiescent_template": "1",
	})
}

// journal keeps in the state which virtual servers are vipd's, as the daemon does.
type journal struct {
	store *state.Store
	keys  map[lb.Key]bool
}

// Owned implements ipvs.Journal.
func (j *journal) Owned() iter.Seq[lb.Key] { return maps.Keys(j.keys) }

// Own implements ipvs.Journal.
func (j *journal) Own(keys []lb.Key) error {
	for _, k := range keys {
		j.keys[k] = true
	}
	return j.write(keys, json.RawMessage("{}"))
}

// Disown implements ipvs.Journal.
func (j *journal) Disown(keys []lb.Key) error {
	for _, k := range keys {
		delete(j.keys, k)
	}
	return j.write(keys, nil)
}

// write appends a line for each key; one without a value takes it out.
func (j *journal) write(keys []lb.Key, value json.RawMessage) error {
	changes := make([]state.Change, len(keys))
	for i, k := range keys {
		changes[i] = state.Change{Bucket: "server", Key: k.String(), Value: value}
	}
	return j.store.Append(changes...)
}
