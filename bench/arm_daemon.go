package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"vipd/lb"
)

// program is the arm that runs the program itself, with a file, for what only the
// whole of it can tell: how long a start takes and how much memory it holds.
type program struct{}

const (
	daemonConfig = "/run/vipd.toml"
	daemonHead   = `[daemon]
state_dir = "/run/vipd-state"
admin_socket = "/run/vipd/vipd.sock"
log_level = "info"
[vip]
allowed = ["10.200.0.0/16"]
[proxy]
mode = "iptables"
[defaults]
drain_timeout = "0s"
`
)

// vipdEnv names the program under test for the arm.
const vipdEnv = "VIPD_BENCH_PROGRAM"

// rests is how long after the start memory is looked at again: the runtime gives
// back what the start needed little by little.
const rests = 20 * time.Second

func (p *program) do(ctx context.Context, r request) (answer reply, err error) {
	if r.Op != "start" {
		return answer, fmt.Errorf("the arm of the program does not know %q", r.Op)
	}
	if err := errors.Join(forward(), os.WriteFile(daemonConfig, fileOf(newCatalog(r.Size).services), 0o600)); err != nil {
		return answer, err
	}
	said := &listener{heard: make(chan struct{})}
	cmd := exec.CommandContext(ctx, os.Getenv(vipdEnv), "run", "-c", daemonConfig)
	cmd.Env = append(os.Environ(), "GODEBUG=gctrace=1")
	cmd.Stdout, cmd.Stderr = said, said
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return answer, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-said.heard:
	case err := <-ended:
		return answer, fmt.Errorf("vipd ended: %w\n%s", err, said.tail())
	}
	answer.addTime("ready", time.Since(start))
	first, err := said.firstPass()
	answer.addTime("first_pass", first)
	err = errors.Join(err, memory(cmd.Process.Pid, "start", &answer))
	select {
	case <-ended:
		err = errors.Join(err, errors.New("vipd ended"))
	case <-time.After(rests):
		err = errors.Join(err, memory(cmd.Process.Pid, "rest", &answer), cmd.Process.Signal(os.Interrupt), <-ended)
	}
	if err != nil {
		return answer, fmt.Errorf("%w\n%s", err, said.tail())
	}
	answer.add("heap_rest", said.lastHeap())
	return answer, nil
}

// listener takes the log of vipd and hears when all is in place. The socket is not
// asked: an answer that lists all services would take memory, too.
type listener struct {
	heard chan struct{} // closed when the first pass is told of

	mu   sync.Mutex
	text bytes.Buffer
	done bool
}

var inPlace = regexp.MustCompile(`msg="in place".* took=(\S+)`)

// Write implements io.Writer.
func (l *listener) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	if !l.done && inPlace.Match(l.text.Bytes()) {
		l.done = true
		close(l.heard)
	}
	return len(p), nil
}

func (l *listener) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *listener) tail() string {
	text := l.said()
	return text[max(0, len(text)-2000):]
}

// firstPass returns how long the first pass took, as vipd tells.
func (l *listener) firstPass() (time.Duration, error) {
	return time.ParseDuration(inPlace.FindStringSubmatch(l.said())[1])
}

var heapLine = regexp.MustCompile(`gc \d+ .* \d+->\d+->(\d+) MB`)

// lastHeap returns the live heap after the last collection that the runtime told
// of, in bytes.
func (l *listener) lastHeap() float64 {
	all := heapLine.FindAllStringSubmatch(l.said(), -1)
	if len(all) == 0 {
		return 0
	}
	mib, _ := strconv.Atoi(all[len(all)-1][1]) // digits
	return float64(mib) * (1 << 20)
}

// fileOf writes services as a configuration file.
func fileOf(services []*lb.Spec) []byte {
	var b bytes.Buffer
	b.WriteString(daemonHead)
	for _, s := range services {
		fmt.Fprintf(&b, "\n[[service]]\nname = %q\nvip = %q\nport = %d\nbackends = [", strings.ReplaceAll(s.Name, "/", "-"), s.Key.Addr, s.Key.Port)
		for i, e := range s.Backends {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "%q", e.Addr)
		}
		b.WriteString("]\n")
	}
	return b.Bytes()
}

// memory adds the resident memory of a process, and the most it ever was.
func memory(pid int, when string, answer *reply) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	for name, field := range map[string]string{"rss_": "VmRSS", "peak_": "VmHWM"} {
		m := regexp.MustCompile(field + `:\s+(\d+) kB`).FindSubmatch(text)
		if m == nil {
			return fmt.Errorf("no %s of process %d", field, pid)
		}
		kib, err := strconv.Atoi(string(m[1]))
		if err != nil {
			return err
		}
		answer.add(name+when, float64(kib)*1024)
	}
	return nil
}
