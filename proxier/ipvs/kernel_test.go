//go:build kernel

//lane:vm

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vs "vipd/internal/ipvs"
	"vipd/internal/kerneltest"
	"vipd/lb"
	"vipd/proxier"
	"vipd/proxier/proxiertest"
)

// handle opens the line to the IPVS of the test's namespace.
func handle(t *testing.T) *vs.Handle {
	t.Helper()
	h, err := vs.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// realHarness is this mode on the running kernel, which is made empty.
func realHarness(t *testing.T) *harness {
	t.Helper()
	ipvsadm(t, "-C")
	return newHarness(handle(t))
}

// ipvsadm is what an administrator uses.
func ipvsadm(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ipvsadm", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ipvsadm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// inNamespace reports whether this is the inner process, on a kernel with IPVS.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if !kerneltest.Isolate(t) {
		return false
	}
	kerneltest.Need(t, kerneltest.IPVS())
	return true
}

func TestContractOnTheKernel(t *testing.T) {
	if inNamespace(t) {
		proxiertest.Run(t, func(t *testing.T) proxiertest.Harness { return realHarness(t) })
	}
}

func TestB54_B58_B61_F93_RandomWalkOnTheKernelEndsEqual(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for seed := range uint64(2) {
		walk(t, realHarness(t), 1000+seed, 40)
	}
}

// Every scheduler that there is a module of, every flag and way of forwarding is taken,
// and read as it was written. A service whose scheduler the kernel lacks is quarantined.
func TestEverySchedulerOfTheKernel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := realHarness(t)
	p := h.proxier()
	for _, protocol := range []string{"tcp", "udp", "sctp"} {
		for _, scheduler := range lb.Schedulers() {
			if exec.CommandContext(t.Context(), "modprobe", "--dry-run", "ip_vs_"+string(scheduler)).Run() != nil {
				h.sync(t, p, prune, services("192.0.2.1:80/"+protocol+" 10.0.0.1:80 scheduler="+string(scheduler)), "192.0.2.1:80/"+protocol)
				t.Logf("this kernel has no ip_vs_%s", scheduler)
				continue
			}
			text := "192.0.2.1:80/" + protocol + " 10.0.0.1:80*3 scheduler=" + string(scheduler)
			if scheduler.Hashes() {
				text += " port fallback"
			}
			for _, more := range []string{"", " affinity=2m", " dr", " tunnel", " gue"} {
				h.sync(t, p, prune, services(text+more))
				if got := h.sync(t, p, fresh, services(text+more)); got != "" {
					t.Errorf("%s: left to be done: %s", text+more, got)
				}
			}
		}
	}
}

func TestB67_F90_MissingSchedulerOnTheKernel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := realHarness(t)
	p := h.proxier()
	h.sync(t, p, prune, services("192.0.2.1:80 10.0.0.1:80"))
	stood := ipvsadm(t, "-S", "-n")
	want := lb.NewSnapshot(services("192.0.2.1:80 10.0.0.1:80 10.0.0.2:80 scheduler=nosuch", "192.0.2.2:80 10.0.0.1:80 scheduler=nosuch")...)
	err := p.Sync(t.Context(), want, prune)
	if failed, only := proxier.FailedServices(err); !only || len(failed) != 2 || !strings.Contains(err.Error(), "modprobe ip_vs_nosuch") {
		t.Errorf("Sync: %v", err)
	}
	if now := ipvsadm(t, "-S", "-n"); now != stood {
		t.Errorf("was\n%s\nis\n%s", stood, now)
	}
}

func TestF93_StrangersAreLeftAloneOnTheKernel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := realHarness(t)
	ipvsadm(t, "-A", "-t", "192.0.2.1:80", "-s", "sh", "-p", "50")
	ipvsadm(t, "-a", "-t", "192.0.2.1:80", "-r", "10.9.0.1:80", "-g", "-w", "3")
	ipvsadm(t, "-A", "-f", "7", "-s", "rr") // of a firewall mark
	before := ipvsadm(t, "-S", "-n")
	want := services("192.0.2.1:80 10.0.0.1:80", "192.0.2.1:81 10.0.0.1:80", "[2001:db8::1]:80 [fd00::1]:80")
	p := h.proxier()
	h.sync(t, p, prune, want, "192.0.2.1:80")
	for _, how := range []proxier.How{fresh, prune} {
		h.sync(t, p, how, want, "192.0.2.1:80")
	}
	h.sync(t, h.proxier(), prune, nil)
	if now := ipvsadm(t, "-S", "-n"); now != before {
		t.Errorf("was\n%s\nis\n%s", before, now)
	}
}

func TestF86_ClearedTableIsSeenAndRepairedOnTheKernel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := realHarness(t)
	p := h.proxier()
	want := services("192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*2", "192.0.2.2:53/udp 10.0.0.1:53", "[2001:db8::1]:80 [fd00::1]:80")
	h.sync(t, p, prune, want)
	stood := ipvsadm(t, "-S", "-n")
	ctx, cancel := context.WithCancel(t.Context())
	drifts, ended := make(chan proxier.Drift, 10), make(chan error, 1)
	go func() { ended <- p.Watch(ctx, func(d proxier.Drift) { drifts <- d }) }()
	ipvsadm(t, "-C")
	began := time.Now()
	t.Logf("told of %s after %v", (<-drifts).Object, time.Since(began))
	h.sync(t, p, fresh, want)
	t.Logf("repaired after %v", time.Since(began))
	if now := ipvsadm(t, "-S", "-n"); now != stood {
		t.Errorf("was\n%s\nis\n%s", stood, now)
	}
	cancel()
	if err := <-ended; err != nil || len(drifts) > 0 {
		t.Errorf("Watch: %v, and %d drifts of our own", err, len(drifts))
	}
}

// Whoever unloads IPVS has to remove the virtual servers before. While it is away
// nothing is any service's fault; when the kernel can load it again all is made anew.
func TestF92_IPVSIsUnloadedAndComesBackOnTheKernel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	if os.Getenv(kerneltest.LaneEnv) != "vm" {
		t.Skip("kerneltest: this kernel has IPVS; the VM lane takes it away (make test-vm)")
	}
	h := realHarness(t)
	p := h.proxier()
	want := services("192.0.2.1:80 10.0.0.1:80 10.0.0.2:80*2", "[2001:db8::1]:80 [fd00::1]:80")
	h.sync(t, p, prune, want)
	stood := ipvsadm(t, "-S", "-n")
	t.Run("away", func(t *testing.T) {
		ipvsadm(t, "-C")
		for _, s := range lb.Schedulers() {
			if err := unix.DeleteModule("ip_vs_"+string(s), 0); err != nil && !errors.Is(err, unix.ENOENT) {
				t.Fatalf("unload ip_vs_%s: %v", s, err)
			}
		}
		kerneltest.Without(t, kerneltest.IPVS())
		for _, how := range []proxier.How{fresh, prune} {
			if err := p.Sync(t.Context(), lb.NewSnapshot(want...), how); !errors.Is(err, vs.ErrUnsupported) {
				t.Errorf("Sync %+v: %v", how, err)
			}
		}
	})
	h.sync(t, p, prune, want)
	if now := ipvsadm(t, "-S", "-n"); now != stood {
		t.Errorf("was\n%s\nis\n%s", stood, now)
	}
}

// The messages are counted; times are printed, not judged.
func TestB54_B55_NetlinkMessagesOnTheKernel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	sizes := []int{100, 1000}
	if os.Getenv("VIPD_SOAK") != "" {
		sizes = []int{100, 10000}
	}
	for _, n := range sizes {
		ipvsadm(t, "-C")
		k := handle(t)
		h := newHarness(k)
		p := h.proxier()
		want := many(n)
		began := time.Now()
		if err := p.Sync(t.Context(), want, prune); err != nil {
			t.Fatal(err)
		}
		want = reweighted(want)
		text := fmt.Sprintf("%6d services of 10: load %v, %d messages", n, time.Since(began).Round(time.Millisecond), k.Messages())
		for _, step := range []struct {
			what string
			how  proxier.How
			want uint64
		}{{"one weight", prune, 1}, {"nothing", prune, 0}, {"everything compared", fresh, uint64(n) + 1}} {
			before := k.Messages()
			began := time.Now()
			if err := p.Sync(t.Context(), want, step.how); err != nil {
				t.Fatal(err)
			}
			sent := k.Messages() - before
			text += fmt.Sprintf("; %s %v, %d", step.what, time.Since(began).Round(time.Microsecond), sent)
			if sent != step.want {
				t.Errorf("%d services, %s: %d messages, want %d", n, step.what, sent, step.want)
			}
		}
		t.Log(text)
	}
}
