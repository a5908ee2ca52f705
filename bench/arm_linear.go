package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"vipd/lb"
)

// pieceOf is how many services a piece holds where the linear layout is loaded in
// pieces: with their eleven chains each, some 500 chains a transaction.
const pieceOf = 45

// linear is the arm that has the rules of kube-proxy's shape.
type linear struct {
	world   *world
	backend string
	catalog *catalog
}

func (l *linear) do(ctx context.Context, r request) (reply, error) {
	switch r.Op {
	case "load":
		return l.load(ctx, r)
	case "change":
		return l.change(ctx, r)
	case "connect":
		var answer reply
		return answer, l.world.client.connects(&answer, r.Count, someVIP(len(l.catalog.services), r.Seed))
	case "shape":
		return shape(ctx, l.backend, "KUBE-SERVICES", len(l.catalog.services))
	}
	return reply{}, fmt.Errorf("the linear arm does not know %q", r.Op)
}

// load puts the services into an empty namespace: at once and timed, or in pieces.
func (l *linear) load(ctx context.Context, r request) (answer reply, err error) {
	if l.world, err = newWorld(); err != nil {
		return answer, err
	}
	if err := l.world.backend.listen(backendPort, false); err != nil {
		return answer, err
	}
	l.backend, l.catalog = r.Backend, newCatalog(r.Size)
	if err := restore(ctx, l.backend, []byte(kubeBase)); err != nil {
		return answer, err
	}
	if r.Pieces {
		size := pieceOf
		if l.backend == legacy { // every transaction replaces the whole table
			size = len(l.catalog.services)
		}
		for _, piece := range kubePieces(l.catalog.services, size) {
			if err := restore(ctx, l.backend, piece); err != nil {
				return answer, err
			}
		}
		return answer, restore(ctx, l.backend, []byte(kubeJumps))
	}
	if err := restore(ctx, l.backend, []byte(kubeJumps)); err != nil {
		return answer, err
	}
	return l.timed(ctx, r.Limit, "total", func() []byte { return kubeWhole(l.catalog.services) })
}

// timed writes what script returns and how long that took, with the making of it.
func (l *linear) timed(ctx context.Context, limit time.Duration, name string, script func() []byte) (answer reply, err error) {
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	text := script()
	err = restore(within, l.backend, text)
	answer.addTime(name, time.Since(start))
	if err != nil && within.Err() != nil && ctx.Err() == nil {
		return reply{Over: true}, nil
	}
	answer.add("script_bytes", float64(len(text)))
	return answer, err
}

// change makes count changes, one after the other. What it takes from the second
// of them on is not reported if the first did not end in time.
func (l *linear) change(ctx context.Context, r request) (reply, error) {
	var all reply
	for i := range r.Count {
		changed := l.alter(r.Kind, int(r.Seed)+i) //nolint:gosec // a small number
		one, err := l.timed(ctx, r.Limit, "total", func() []byte { return kubeChange(l.catalog.services, changed) })
		if err != nil || one.Over {
			return one, err
		}
		for name, values := range one.Samples {
			all.add(name, values...)
		}
	}
	return all, nil
}

// alter changes the catalog and returns the service whose chains are to be written.
func (l *linear) alter(kind string, at int) *lb.Spec {
	switch kind {
	case kindAdd:
		return l.catalog.add()
	case kindRemove:
		l.catalog.remove()
		return nil
	}
	return l.catalog.replace(at * 7919 % len(l.catalog.services))
}

// restore gives a script to iptables-restore as kube-proxy does.
func restore(ctx context.Context, backend string, script []byte) error {
	cmd := exec.CommandContext(ctx, "iptables-"+backend+"-restore", "-w", "5", "--noflush", "--counters")
	cmd.Stdin = bytes.NewReader(script)
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd.Path, err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// direct is the arm without balancing: connection tracking, and packets that are
// routed to the backends.
type direct struct{ world *world }

func (d *direct) do(ctx context.Context, r request) (answer reply, err error) {
	switch r.Op {
	case "load":
		if d.world, err = newWorld(); err != nil {
			return answer, err
		}
		const tracked = "*filter\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\nCOMMIT\n"
		return answer, errors.Join(d.world.backend.listen(backendPort, false), restore(ctx, r.Backend, []byte(tracked)))
	case "connect":
		return answer, d.world.client.connects(&answer, r.Count, someBackend(r.Size, r.Seed))
	}
	return answer, fmt.Errorf("the direct arm does not know %q", r.Op)
}
