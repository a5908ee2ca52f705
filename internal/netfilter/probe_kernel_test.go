//go:build kernel

package netfilter

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vipd/internal/kerneltest"
)

// withoutFeature returns tools whose restore refuses, for some programs, a script in
// which a word stands, as it does when it lacks a match or the kernel does.
func withoutFeature(t *testing.T, b Backend, word string, programs ...string) *Tools {
	t.Helper()
	dir := t.TempDir()
	for _, program := range []string{"iptables-", "ip6tables-"} {
		for _, part := range []string{"", "-restore", "-save"} {
			name := program + string(b) + part
			text := fmt.Sprintf("exec /usr/sbin/%s \"$@\"\n", name)
			for _, p := range programs {
				if name == p+"-"+string(b)+"-restore" {
					text = fmt.Sprintf("in=$(cat)\ncase \"$in\" in *%q*) printf 'No such file or directory\\n\\nError occurred at line: 3\\n' >&2; exit 2;; esac\n"+
						"printf '%%s\\n' \"$in\" | /usr/sbin/%s \"$@\"\n", word, name)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	tools, err := FindTools(t.Context(), ToolOptions{Backend: b, Dirs: []string{dir}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return tools
}

// TestF79_B29 looks for what the kernel or the tool lacks before anything of the host
// changes.
func TestF79_B29_WhatIsMissingIsFoundBeforeAnyPass(t *testing.T) {
	for _, b := range []Backend{NFT, Legacy} {
		t.Run(string(b), func(t *testing.T) {
			if kerneltest.Isolate(t) {
				probeAll(t, b)
			}
		})
	}
}

func probeAll(t *testing.T, b Backend) {
	whole := kernelTools(t, b)
	begin := time.Now()
	if err := whole.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("nothing is missing, found out in %s", time.Since(begin).Round(time.Millisecond))
	for _, f := range Families {
		if tool, err := whole.Tool(f); err != nil || !tool.HasRandomFully() {
			t.Errorf("%s: %v", f, err)
		}
	}
	for _, f := range features {
		words := strings.Fields(f.rule)
		word := words[0] + " " + words[1]
		switch {
		case f.name == "target MASQUERADE":
			word = "-j MASQUERADE"
		case f.without != nil:
			word = "--random-fully"
		case strings.HasPrefix(f.name, "table"):
			word = "*" + f.table
		case strings.Contains(f.rule, "-j REJECT"), strings.Contains(f.rule, "-j DNAT"):
			word = words[2] + " " + words[3]
		}
		tools := withoutFeature(t, b, word, "iptables", "ip6tables")
		err := tools.Probe(t.Context())
		var missing *MissingError
		if f.without != nil {
			tool, _ := tools.Tool(IPv4)
			if err != nil || tool.HasRandomFully() {
				t.Errorf("%s: error %v, and the rules would have it", f.name, err)
			}
			continue
		}
		if !errors.As(err, &missing) || missing.Feature != f.name || !strings.Contains(err.Error(), f.modules) {
			t.Errorf("%s: error %v", f.name, err)
		}
	}

	half := withoutFeature(t, b, "statistic", "ip6tables")
	if err := half.Probe(t.Context()); err != nil {
		t.Errorf("one family lacks something: %v", err)
	}
	if _, err := half.Tool(IPv4); err != nil {
		t.Errorf("the other one has no tool: %v", err)
	}
	var missing *MissingError
	if _, err := half.Tool(IPv6); !errors.As(err, &missing) {
		t.Errorf("the one has a tool, or says only %v", err)
	}

	out, err := exec.CommandContext(t.Context(), "nft", "list", "ruleset").CombinedOutput()
	sets, listErr := KernelSets{}.List(t.Context())
	if len(out) > 0 || err != nil || len(sets) > 0 || listErr != nil || len(legacyThere(t)) > 0 {
		t.Errorf("the probe leaves %s, %v, %v, %v, %v", out, sets, legacyThere(t), err, listErr)
	}
}
