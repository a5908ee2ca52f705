package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

const traceFile = "/run/bench.trace"

// calls counts what a process and the programs that it ran asked of the kernel.
// Such numbers are the same on every machine, busy or not.
type calls struct {
	execs    int // programs started
	own      int // netlink messages of the process itself
	writes   int // those of them that are no questions
	tool     int // netlink messages and table replacements of the programs
	toolSent int // bytes of those
}

func (c calls) addTo(r *reply) {
	r.add("execs", float64(c.execs))
	r.add("netlink", float64(c.own))
	r.add("netlink_writes", float64(c.writes))
	r.add("tool_messages", float64(c.tool))
	r.add("tool_bytes", float64(c.toolSent))
}

// traced runs f under strace(1) and returns what this process and its children
// asked of the kernel meanwhile.
func traced(ctx context.Context, f func() error) (c calls, err error) {
	cmd := exec.CommandContext(ctx, "strace", "-f", "-s", "8", "-e", "trace=execve,sendto,sendmsg,setsockopt",
		"-e", "signal=none", "-o", traceFile, "-p", strconv.Itoa(os.Getpid()))
	says, err := cmd.StderrPipe()
	if err != nil {
		return c, err
	}
	if err := cmd.Start(); err != nil {
		return c, fmt.Errorf("strace: %w; install the package strace", err)
	}
	if err := attached(says); err != nil {
		return c, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	failed := f()
	// strace lets go of the process when it is interrupted, and says so by its status.
	err = cmd.Process.Signal(syscall.SIGINT)
	_, _ = io.Copy(io.Discard, says)
	_ = cmd.Wait()
	if err = errors.Join(failed, err); err != nil {
		return c, err
	}
	file, err := os.Open(traceFile)
	if err != nil {
		return c, err
	}
	defer func() { _ = file.Close() }()
	return countCalls(file)
}

// attached waits until strace says that it sees the process.
func attached(says io.Reader) error {
	lines := bufio.NewScanner(says)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "attached") {
			return nil
		}
		if strings.Contains(lines.Text(), "attach:") {
			return fmt.Errorf("strace: %s", lines.Text())
		}
	}
	return errors.Join(errors.New("strace ended"), lines.Err())
}

var (
	callLine  = regexp.MustCompile(`^(\d+) +(?:<\.\.\. )?([a-z]+)(\(| resumed>)`)
	callValue = regexp.MustCompile(`\) += (\d+)$`)
	replaced  = regexp.MustCompile(`IP6?T_SO_SET_REPLACE, .*, (\d+)\)? `)
	question  = regexp.MustCompile(`_MSG_GET|_CT_GET|RTM_GET|IPSET_CMD_(PROTOCOL|LIST|HEADER|GET|TYPE)|NLM_F_DUMP`)
)

// countCalls reads the output of strace -f -o.
func countCalls(trace io.Reader) (c calls, err error) {
	programs, sending := map[string]bool{}, map[string]bool{}
	lines := bufio.NewScanner(trace)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		line := lines.Text()
		m := callLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		pid, call, begins := m[1], m[2], m[3] == "("
		switch {
		case call == "execve":
			if begins {
				c.execs++
			}
			programs[pid] = true
		case call == "setsockopt":
			if size := replaced.FindStringSubmatch(line); begins && size != nil {
				n, _ := strconv.Atoi(size[1]) // digits
				c.tool++
				c.toolSent += n
			}
		case begins && strings.Contains(line, "AF_NETLINK"):
			c.send(line, programs[pid])
			sending[pid] = true
			fallthrough
		case !begins && sending[pid]:
			if value := callValue.FindStringSubmatch(line); value != nil {
				n, _ := strconv.Atoi(value[1]) // digits
				if programs[pid] {
					c.toolSent += n
				}
				sending[pid] = false
			}
		}
	}
	return c, lines.Err()
}

func (c *calls) send(line string, program bool) {
	switch {
	case program:
		c.tool++
	default:
		c.own++
		if !question.MatchString(line) {
			c.writes++
		}
	}
}

// trace makes changes of a kind and counts the calls of all of them together.
func (t *tree) trace(ctx context.Context, r request) (answer reply, err error) {
	for i := range r.Count {
		if _, err := t.engine.settle(ctx); err != nil {
			return answer, err
		}
		services := t.catalog.alter(r.Kind, int(r.Seed)+i) //nolint:gosec // a small number
		c, err := traced(ctx, func() error {
			if _, err := t.engine.put(ctx, services); err != nil {
				return err
			}
			_, err := t.engine.settle(ctx) // what is done in the background counts, too
			return err
		})
		if err != nil {
			return answer, err
		}
		c.addTo(&answer)
	}
	return answer, nil
}
