//go:build kernel

package e2e

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"vipd/internal/kerneltest"
	"vipd/internal/loss"
	"vipd/reconciler"
)

// TestB73 has an operator make every mistake at a reload. After each the old
// configuration is in force, and the next good one is taken.
func TestB73_ABrokenReloadChangesNothingAndIsTold(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	good := service{name: "web", port: 80, backends: w.at(8080, 1)}
	w.run(good)
	state, generation := w.kernelState(), w.generation()
	for name, broken := range map[string]struct{ text, want string }{
		"F52_typo":               {strings.Replace(config(good), "backends =", "backend_s =", 1), "/run/vipd.toml:21:1: "},
		"F52_no_TOML":            {config(good) + "[[service", "/run/vipd.toml:"},
		"F52_several":            {config(good) + "bogus = 1\nvip = 3\n", "bogus"},
		"F135_address":           {strings.Replace(config(good), "192.0.2.10", "192.0.2.010", 1), "192.0.2.010"},
		"F59_device":             {strings.Replace(config(good), "[vip]", "[vip]\ndevice = \"other0\"", 1), "vip.device"},
		"F59_state_directory":    {strings.Replace(config(good), "vipd-state", "other-state", 1), "daemon.state_dir"},
		"F148_mark":              {strings.Replace(config(good), "[proxy]", "[proxy]\nmark = \"0x8\"", 1), "proxy.mark"},
		"backend_that_is_a_VIP":  {config(good, service{name: "loop", port: 81, backends: []string{"192.0.2.10:80", "[2001:db8::10]:80"}}), "192.0.2.10"},
		"B15_two_claim_one_port": {config(good, service{name: "other", port: 80, backends: w.at(8080, 2)}), "web"},
	} {
		t.Run(name, func(t *testing.T) {
			w.write(broken.text)
			out := w.must(1, "reload")
			if !strings.Contains(out, broken.want) {
				t.Errorf("reload says\n%s\nand should name %q", out, broken.want)
			}
			s, err := w.status()
			if err != nil || !strings.Contains(s.Config.Error, broken.want) {
				t.Errorf("status says %q, %v", s.Config.Error, err)
			}
		})
	}
	w.hup() // a signal is refused in the same way
	w.eventually("the log tells of the refused SIGHUP", func() bool {
		log, err := os.ReadFile(w.log)
		return err == nil && strings.Count(string(log), "reload refused") >= 10
	})
	if w.kernelState() != state || w.generation() != generation {
		t.Errorf("the kernel changed:\n%s\nwas\n%s", w.kernelState(), state)
	}
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b1")
	w.change(service{name: "web", port: 80, backends: w.at(8080, 2)})
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b2")
	if s, err := w.status(); err != nil || s.Config.Error != "" {
		t.Errorf("after a good reload status still says %q, %v", s.Config.Error, err)
	}
}

func TestF54_AFileThatCannotBeReadChangesNothing(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 1)
	w.serveAll(8080)
	w.run(service{name: "web", port: 80, backends: w.at(8080, 1)})
	for name, damage := range map[string]func() error{
		"missing":   func() error { return nil },
		"directory": func() error { return os.Mkdir(w.config, 0o700) },
		"FIFO":      func() error { return syscall.Mkfifo(w.config, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.RemoveAll(w.config); err != nil {
				t.Fatal(err)
			}
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			if out := w.must(1, "reload", "--socket", w.socket); !strings.Contains(out, w.config) {
				t.Errorf("the error does not name the file:\n%s", out)
			}
			w.answeredBy(w.Client, "tcp", targets(80)[0], "b1")
		})
	}
}

func TestF55_AFileWithoutServicesIsHeldUnlessItIsMeant(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 1)
	w.serveAll(8080)
	w.run(service{name: "web", port: 80, backends: w.at(8080, 1)})
	w.change()
	s := w.await("hold the removal", func(s reconciler.Status) bool { return len(s.Sources[0].Held) == 2 })
	if s.Sources[0].Class != "ok-empty" {
		t.Errorf("class %s", s.Sources[0].Class)
	}
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b1")
	w.stop() // nor does a restart believe it
	w.start()
	w.answeredBy(w.Client, "tcp", targets(80)[0], "b1")

	w.reload(config() + "[discovery.static]\nallow_empty = true\n")
	w.await("serve nothing", func(s reconciler.Status) bool { return len(s.Services) == 0 && !s.Pass.Pending })
	w.eventually("nothing of ours is left", func() bool { return w.kernelState() == "" })
}

func TestF57_AStormOfSIGHUPsIsFewReloadsAndLosesNothing(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 2)
	w.serveAll(8080)
	w.run(service{name: "web", port: 80, backends: w.at(8080, 1, 2)})
	l := w.load(w.Client)
	l.Connect(loss.Connections{Target: targets(80)[0], Rate: 100})
	for range soak(200, 5000) {
		w.hup()
		time.Sleep(time.Millisecond)
	}
	w.write(config(service{name: "web", port: 80, backends: w.at(8080, 1)}))
	w.hup() // the last one wins
	w.await("serve what the last SIGHUP meant", func(s reconciler.Status) bool {
		return len(s.Services) == 2 && len(s.Services[0].Backends) == 1 && !s.Pass.Pending
	})
	l.Forbid("b2")
	time.Sleep(300 * time.Millisecond)
	lossless(t, "a storm of SIGHUPs", l.Stop())
}

func TestF140_ASecondVipdRefusesToStart(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 1)
	w.serveAll(8080)
	w.run(service{name: "web", port: 80, backends: w.at(8080, 1)})
	state := w.kernelState()
	second := &daemon{t: t, config: "/run/second.toml", socket: "/run/second.sock", log: "/run/second.log"}
	text := strings.NewReplacer("/run/vipd-state", "/run/second-state", "/run/vipd/vipd.sock", second.socket).Replace(config())
	second.write(text + "[discovery.static]\nallow_empty = true\n")
	if out := second.must(1, "run"); !strings.Contains(out, "another vipd is running in this network namespace") {
		t.Errorf("with files of its own it says\n%s", out)
	}
	t.Run("F142_after_kill_-9_nothing_is_locked", func(t *testing.T) {
		w.kill()
		w.start()
	})
	t.Run("F141_two_in_two_namespaces", func(t *testing.T) {
		other := kerneltest.NewHost(t, "other")
		cmd := other.Command(t.Context(), program(), "run", "-c", second.config)
		runInBackground(t, cmd)
		w.eventually("the second one answers", func() bool {
			_, err := second.status()
			return err == nil
		})
		if out, code := second.vipd("run"); code != 1 || !strings.Contains(out, "another vipd") {
			t.Errorf("a third one on the state directory of the second: %d\n%s", code, out)
		}
	})
	if now := w.kernelState(); now != state {
		t.Errorf("now\n%s\nwas\n%s", now, state)
	}
}

// runInBackground starts a program that ends with the test.
func runInBackground(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
}

func TestWithoutPermissionOneSentenceAndNothingChanges(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 1)
	w.write(config(service{name: "web", port: 80, backends: w.at(8080, 1)}))
	const open = "/run/vipd-for-all" // the program where anybody can run it
	w.LB.Run(t, "cp", program(), open)
	for file, mode := range map[string]os.FileMode{w.config: 0o644, open: 0o755} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range []string{"run", "cleanup"} {
		cmd := exec.CommandContext(t.Context(), open, command, "-c", w.config)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "no permission") || strings.Count(string(out), "\n") != 1 {
			t.Errorf("vipd %s as nobody: %v\n%s", command, err, out)
		}
	}
	w.must(0, "check")
	if state := w.kernelState(); state != "" {
		t.Errorf("the kernel has\n%s", state)
	}
}

func TestABrokenFileAtTheStartNamesEveryError(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	w := newWorld(t, 1)
	w.write(head + "[[service]]\nname = \"a b\"\nvip = \"127.0.0.1\"\nport = 70000\nbackends = [\"10.2.0.11\", \"x:1\"]\nprotocoll = \"tcp\"\n")
	for _, command := range []string{"run", "check", "plan"} {
		out := w.must(1, command)
		for _, want := range []string{":16:8: ", ":17:7: ", ":18:8: ", ":20:1: ", "protocol"} {
			if !strings.Contains(out, want) {
				t.Errorf("vipd %s does not name %q:\n%s", command, want, out)
			}
		}
	}
	if state := w.kernelState(); state != "" {
		t.Errorf("the kernel has\n%s", state)
	}
}
