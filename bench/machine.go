package main

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine describes what was measured on, and what.
type machine struct {
	CPU      string    `json:"cpu"`
	Cores    int       `json:"cores"`
	Kernel   string    `json:"kernel"`
	IPTables string    `json:"iptables"`
	Go       string    `json:"go"`
	Commit   string    `json:"commit"`
	Date     time.Time `json:"date"`
	// Busy is the greatest share of the processors that others used just before a
	// measurement: more than some percent makes the times upper bounds.
	Busy float64 `json:"busy"`
}

func thisMachine(ctx context.Context) machine {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version(), Date: time.Now().UTC()}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if found := regexp.MustCompile(`model name\s*: (.*)`).FindSubmatch(text); found != nil {
			m.CPU = string(found[1])
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	m.IPTables = says(ctx, "iptables-nft", "-V")
	m.Commit = says(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12")
	return m
}

// says returns what a program prints, or why it does not.
func says(ctx context.Context, program string, args ...string) string {
	out, err := exec.CommandContext(ctx, program, args...).Output()
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}

// How long the machine is waited for. The kernel frees the rules of a namespace
// that went in the background, which would slow the next measurement.
const (
	calm         = 0.05 // share of the processors in use
	calmInterval = 200 * time.Millisecond
	calmPatience = 10 * time.Second
)

// quiet waits until the machine does next to nothing, but not for ever, and
// returns the share of the processors that is in use all the same.
func quiet(ctx context.Context) float64 {
	busy := 1.0
	for end := time.Now().Add(calmPatience); busy > calm && time.Now().Before(end) && ctx.Err() == nil; {
		before, total := jiffies()
		time.Sleep(calmInterval)
		idle, now := jiffies()
		if now > total {
			busy = 1 - float64(idle-before)/float64(now-total)
		}
	}
	return busy
}

// jiffies returns how long all processors were idle and how long that is of all.
func jiffies() (idle, total int64) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:] {
		n, _ := strconv.ParseInt(field, 10, 64) // the kernel's
		if i < 8 {                              // what follows is counted in these
			total += n
		}
		if i == 3 || i == 4 { // idle, waiting for the disk
			idle += n
		}
	}
	return idle, total
}
