package ipvs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"vipd/internal/linux"
)

// Sysctls reads and writes settings of the kernel by their path below /proc/sys, as
// linux.Sysctls does.
type Sysctls interface {
	Get(key string) (string, error) // fs.ErrNotExist if this kernel has no such setting
	Set(key, value string) error
}

// SettingsOptions is what Settings needs.
type SettingsOptions struct {
	Sysctls    Sysctls // linux.ProcSys()
	Release    string  // of the kernel, "6.1.0-13-amd64"; see Release
	Manage     bool    // false: nothing is written
	Estimation bool    // whether the kernel sums up Stats and computes rates
	Log        *slog.Logger
}

// Settings are the sysctls of the network namespace on which IPVS depends, to be looked
// at once the module is loaded (they do not exist before) and whenever all of the
// kernel is compared. Its methods may be used at the same time. ip_forward is not among
// them: see docs/adr/0004-forwarding-sysctls.md.
type Settings struct {
	SettingsOptions

	mu   sync.Mutex
	last []Setting
}

// Setting is one sysctl as it was found.
type Setting struct {
	Key     string `json:"key"`             // "net.ipv4.vs.conntrack"
	Want    string `json:"want"`            // empty: whatever it is
	Found   string `json:"found,omitempty"` // before vipd set it; empty: this kernel has no such setting
	Set     bool   `json:"set,omitempty"`   // vipd has set it to Want
	Reason  string `json:"reason"`          // what it is good for
	Problem string `json:"problem,omitempty"`
}

// NewSettings returns the settings; nothing is looked at yet.
func NewSettings(o SettingsOptions) *Settings { return &Settings{SettingsOptions: o} }

// Release returns the release of the running kernel.
func Release() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "" // as good as a new one
	}
	return unix.ByteSliceToString(name.Release[:])
}

// wanted returns what each setting is to be (kernel
// Documentation/networking/ipvs-sysctl.rst).
func (s *Settings) wanted() []Setting {
	all := []Setting{
		{Key: "net/ipv4/vs/conntrack", Want: "1",
			Reason: "connections through IPVS are tracked, without which they are not masqueraded, nor kept when a service changes its mode"},
		{Key: "net/ipv4/vs/expire_nodest_conn", Want: "1",
			Reason: "a connection whose backend was removed ends in place of hanging"},
		{Key: "net/ipv4/vs/expire_quiescent_template", Want: "1",
			Reason: "affinity does not keep clients at a backend that is to get no new connections"},
		{Key: "net/ipv4/vs/run_estimation", Want: "1", Reason: "traffic of virtual servers is summed up"},
	}
	if !s.Estimation {
		all[3].Want, all[3].Reason = "0", "[ipvs] estimation is false: no processor time goes into summing up traffic"
	}
	reuse := Setting{Key: "net/ipv4/vs/conn_reuse_mode", Reason: "kernels since 5.9 do right with any value when a client uses a port again"}
	if olderThan(s.Release, 5, 9) {
		reuse.Want, reuse.Reason = "0", "kernels before 5.9 delay the connection of a client that uses a port again by a second, with any other value"
	}
	return append(all, reuse)
}

// Enforce looks at every setting, and sets those that are wrong if it may. What cannot
// be mended is a Problem, and no error: services are better served badly than not. The
// error is that of ctx.
func (s *Settings) Enforce(ctx context.Context) error {
	all := s.wanted()
	for i := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.enforce(&all[i], s.Sysctls.Set)
		if e := all[i]; e.Set {
			s.Log.Info("sysctl changed", "key", e.Key, "from", e.Found, "to", e.Want, "reason", e.Reason)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range all {
		if i < len(s.last) && s.last[i].Problem != all[i].Problem || len(s.last) == 0 && all[i].Problem != "" {
			s.tell(all[i])
		}
		if i < len(s.last) && s.last[i].Set && all[i].Found == all[i].Want {
			all[i].Set, all[i].Found = true, s.last[i].Found // it was vipd that set it
		}
	}
	s.last = all
	return nil
}

// enforce looks at one setting, and has it set if it may be.
func (s *Settings) enforce(e *Setting, set func(key, value string) error) {
	path := e.Key
	e.Key = linux.Dotted(path)
	found, err := s.Sysctls.Get(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Problem = missing(*e)
		return
	case err != nil:
		e.Problem = fmt.Sprintf("%s cannot be read (%v), and should be %s: %s.", e.Key, err, e.Want, e.Reason)
		return
	}
	e.Found = found
	if e.Want == "" || found == e.Want {
		return
	}
	if !s.Manage {
		e.Problem = fmt.Sprintf("%s is %s and should be %s: %s; set it (sysctl -w %s=%s), or let vipd do it ([proxy] manage_sysctls = true).",
			e.Key, found, e.Want, e.Reason, e.Key, e.Want)
		return
	}
	if err := set(path, e.Want); err != nil {
		e.Problem = fmt.Sprintf("%s is %s, should be %s, and vipd may not set it (%v): %s; set it by a file in /etc/sysctl.d.",
			e.Key, found, e.Want, err, e.Reason)
		return
	}
	e.Set = true
}

// Pending returns what Enforce would set. It changes nothing.
func (s *Settings) Pending() (pending []Setting) {
	for _, e := range s.wanted() {
		if s.enforce(&e, func(string, string) error { return nil }); e.Set {
			pending = append(pending, e)
		}
	}
	return pending
}

// missing says what a kernel without a setting cannot do; empty if nothing is amiss.
func missing(e Setting) string {
	switch {
	case e.Key == "net.ipv4.vs.conntrack":
		return fmt.Sprintf("The kernel has no %s: %s; use a kernel with CONFIG_IP_VS_NFCT.", e.Key, e.Reason)
	case e.Want == "", e.Key == "net.ipv4.vs.run_estimation" && e.Want == "1": // what is not there cannot be off
		return ""
	}
	return fmt.Sprintf("The kernel has no %s, which should be %s: %s.", e.Key, e.Want, e.Reason)
}

// tell logs that something is wrong now, or is not any more.
func (s *Settings) tell(e Setting) {
	if e.Problem == "" {
		s.Log.Info("a sysctl is right again", "key", e.Key, "value", e.Want)
		return
	}
	s.Log.Warn("a sysctl is wrong", "key", e.Key, "want", e.Want, "found", e.Found, "problem", e.Problem)
}

// All returns what the last Enforce found; nothing before the first.
func (s *Settings) All() []Setting {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last // never changed, but replaced
}

// Findings tells what is wrong, a sentence each, with what to do.
func (s *Settings) Findings() []string {
	var found []string
	for _, e := range s.All() {
		if e.Problem != "" {
			found = append(found, e.Problem)
		}
	}
	return found
}

// olderThan compares the release of a kernel. One that cannot be read is new.
func olderThan(release string, major, minor int) bool {
	first, rest, _ := strings.Cut(release, ".")
	second, _, _ := strings.Cut(rest, ".")
	second = second[:len(second)-len(strings.TrimLeft(second, "0123456789"))]
	a, errA := strconv.Atoi(first)
	b, errB := strconv.Atoi(second)
	return errA == nil && errB == nil && (a < major || a == major && b < minor)
}
