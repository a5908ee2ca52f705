package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An arm is one side of a comparison: a process of its own in network, mount and
// process namespaces of its own, so that arms share no rules, no connection
// tracking and no heap, and so that everything of it goes with it. Several stand
// side by side and work in turns, on request, one at a time.

// armEnv tells a process that it is an arm.
const armEnv = "VIPD_BENCH_ARM"

// request asks an arm for one piece of work.
type request struct {
	Op      string        `json:"op"`
	Size    int           `json:"size,omitempty"`    // services
	Count   int           `json:"count,omitempty"`   // repetitions
	Kind    string        `json:"kind,omitempty"`    // of change
	Backend string        `json:"backend,omitempty"` // nft or legacy
	Pieces  bool          `json:"pieces,omitempty"`  // load in pieces
	Seed    uint64        `json:"seed,omitempty"`
	Period  time.Duration `json:"period,omitempty"`
	Limit   time.Duration `json:"limit,omitempty"` // of what is measured; longer counts as not ended
}

// reply is what came of it: samples by the name of what was measured.
type reply struct {
	Samples map[string][]float64 `json:"samples,omitempty"`
	Over    bool                 `json:"over,omitempty"` // it did not end within Limit
	Error   string               `json:"error,omitempty"`
}

func (r *reply) add(name string, values ...float64) {
	if r.Samples == nil {
		r.Samples = map[string][]float64{}
	}
	r.Samples[name] = append(r.Samples[name], values...)
}

// addTime adds durations, in seconds.
func (r *reply) addTime(name string, d time.Duration) { r.add(name, d.Seconds()) }

// arm is the far end of a running arm.
type arm struct {
	name   string
	in     io.Writer
	out    *json.Decoder
	cmd    *exec.Cmd // nil: not a process of its own
	exited chan struct{}
}

// newArm returns the far end of an arm that is served at the other ends of these.
func newArm(name string, in io.Writer, out io.Reader) *arm {
	return &arm{name: name, in: in, out: json.NewDecoder(out), exited: make(chan struct{})}
}

// startArm starts an arm. The caller stops it.
func startArm(name string) (*arm, error) {
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), armEnv+"="+name, "LC_ALL=C")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	a := newArm(name, in, out)
	a.cmd = cmd
	started := make(chan error, 1)
	go func() {
		// The death signal comes when the thread that forked ends, not the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_, _ = cmd.Process.Wait()
		}
		close(a.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("arm %s: %w", name, err)
	}
	return a, nil
}

// ask has the arm do one thing and waits for it. An arm that does not answer until
// ctx ends is killed.
func (a *arm) ask(ctx context.Context, r request) (reply, error) {
	defer context.AfterFunc(ctx, a.kill)()
	var answer reply
	err := json.NewEncoder(a.in).Encode(r)
	if err == nil {
		err = a.out.Decode(&answer)
	}
	switch {
	case ctx.Err() != nil:
		return answer, fmt.Errorf("%s: %s: %w", a.name, r.Op, context.Cause(ctx))
	case err != nil:
		return answer, fmt.Errorf("%s: %s: the arm ended: %w", a.name, r.Op, err)
	case answer.Error != "":
		return answer, fmt.Errorf("%s: %s: %s", a.name, r.Op, answer.Error)
	}
	return answer, nil
}

// kill ends the process of the arm, and with it everything in its namespaces.
func (a *arm) kill() {
	if a.cmd != nil {
		_ = a.cmd.Process.Kill()
	}
}

// stop kills the arm and waits for its end.
func (a *arm) stop() {
	a.kill()
	<-a.exited
}

// worker is what an arm does in its own process.
type worker interface {
	do(ctx context.Context, r request) (reply, error)
}

// serveArm answers requests until nobody asks any more, in the namespaces of the
// process.
func serveArm(ctx context.Context, name string, in io.Reader, out io.Writer) error {
	var w worker
	switch name {
	case armTree, armRules:
		w = &tree{}
	case armLinear:
		w = &linear{}
	case armKube:
		w = &kube{}
	case armDirect:
		w = &direct{}
	case armDaemon:
		w = &program{}
	default:
		return fmt.Errorf("there is no arm %q", name)
	}
	requests, replies := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var r request
		if err := requests.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		answer, err := w.do(ctx, r)
		if err != nil {
			answer.Error = err.Error()
		}
		if err := replies.Encode(answer); err != nil {
			return err
		}
	}
}
