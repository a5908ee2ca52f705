package ipvs

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
)

// Do carries out commands, one netlink message each, many a system call. It returns nil
// if all went well, else an error for each command, in order, and nil for those that
// went well; see the errors of the package. After any other error it is not known
// whether the command took effect: read it again.
func (h *Handle) Do(ctx context.Context, commands []Command) []error {
	r := run{h: h, commands: commands, errs: make([]error, len(commands))}
	all := make([]int, len(commands))
	for i := range all {
		all[i] = i
	}
	r.carry(ctx, all)
	r.renewed(ctx)
	return r.answer()
}

// run is one Do.
type run struct {
	h        *Handle
	commands []Command
	errs     []error // of each: nil, a unix.Errno of the kernel, or why it was not asked
}

// carry carries out the commands with these numbers.
func (r *run) carry(ctx context.Context, at []int) {
	var buffer writer
	for len(at) > 0 {
		batch := at[:min(len(at), linux.MaxBatch)]
		family := uint16(r.h.family.Load())
		buffer = buffer[:0]
		for _, i := range batch {
			r.errs[i] = nil
			buffer.command(family, r.commands[i])
		}
		err := ctx.Err()
		if err == nil {
			err = r.send(ctx, buffer, batch)
		}
		if err != nil {
			r.fail(at, err)
			return
		}
		at = at[len(batch):]
	}
}

// send sends a batch of commands and notes those that the kernel refused.
func (r *run) send(ctx context.Context, messages []byte, batch []int) error {
	return r.h.on(func(s *linux.Socket) error {
		r.h.messages.Add(uint64(len(batch)))
		return s.Batch(ctx, messages, len(batch), func(i int, errno unix.Errno) { r.errs[batch[i]] = errno })
	})
}

// fail notes an error for commands of which nothing else is known.
func (r *run) fail(at []int, err error) {
	for _, i := range at {
		if r.errs[i] == nil {
			r.errs[i] = err
		}
	}
}

// renewed carries out again what the kernel answered with ENOENT if the family has got
// another number meanwhile: see Handle.current.
func (r *run) renewed(ctx context.Context) {
	var at []int
	for i, err := range r.errs {
		if errors.Is(err, unix.ENOENT) {
			at = append(at, i)
		}
	}
	if len(at) == 0 {
		return
	}
	changed, err := r.h.renew(ctx)
	if err != nil {
		for _, i := range at {
			r.errs[i] = err
		}
	} else if changed {
		r.carry(ctx, at)
	}
}

// answer says what became of each command; nil if all went well.
func (r *run) answer() []error {
	failed := false
	for i, err := range r.errs {
		if err == nil {
			continue
		}
		failed = true
		r.errs[i] = r.commands[i].failure(err)
	}
	if !failed {
		return nil
	}
	return r.errs
}
