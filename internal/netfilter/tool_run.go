package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// ErrPermission says that the kernel refused because CAP_NET_ADMIN is missing.
var ErrPermission = errors.New("no permission to change the packet filter; run as root or with CAP_NET_ADMIN")

// baseDeadline is how long a run of a tool may take, plus perMegabyte for what
// it is given to read. A restore of 500 chains takes some 100 ms.
const (
	baseDeadline = 30 * time.Second
	perMegabyte  = 10 * time.Second
)

// exitResource is the exit status of iptables for want of something that it may get
// the next time: memory, the lock, a table that nobody else changes meanwhile.
const exitResource = 4

// exitError is a run of a tool that ended with a status other than 0.
type exitError struct {
	tool   string
	code   int
	stderr string
}

func (e *exitError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", e.tool, e.code, strings.TrimSpace(e.stderr))
}

// maxComplaint is how much is kept of what a tool complains of, in bytes.
const maxComplaint = 64 << 10

// beginning keeps the first maxComplaint bytes of what is written to it.
type beginning struct{ kept []byte }

func (b *beginning) Write(text []byte) (int, error) {
	b.kept = append(b.kept, text[:min(len(text), maxComplaint-len(b.kept))]...)
	return len(text), nil
}

func (b *beginning) String() string { return string(b.kept) }

// run runs a tool with a clean environment, as the leader of a process group
// that is killed as a whole when ctx ends or the deadline passes.
func run(ctx context.Context, o ToolOptions, tool string, args []string, stdin []byte) (stdout []byte, noise string, err error) {
	limit := o.Deadline + perMegabyte*time.Duration(len(stdin)>>20)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer in %s; it was killed", limit))
	defer cancel()
	var out bytes.Buffer
	var complaint beginning
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Env = environment()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err = cmd.Start(); err == nil {
		if o.started != nil {
			o.started(cmd.Process.Pid)
		}
		err = cmd.Wait()
	}
	noise = strings.TrimSpace(complaint.String())
	var exit *exec.ExitError
	switch {
	case err == nil:
		return out.Bytes(), noise, nil
	case ctx.Err() != nil:
		return nil, noise, fmt.Errorf("%s: %w", tool, context.Cause(ctx))
	case !errors.As(err, &exit) || exit.ExitCode() < 0:
		return nil, noise, fmt.Errorf("%s: %w: %s", tool, err, noise)
	}
	failed := &exitError{tool: tool, code: exit.ExitCode(), stderr: complaint.String()}
	if strings.Contains(noise, "Permission denied") || strings.Contains(noise, "Operation not permitted") {
		return nil, noise, fmt.Errorf("%w (%w)", ErrPermission, failed)
	}
	return nil, noise, failed
}
