//go:build kernel

package vip

import (
	"bytes"
	"log/slog"
	"os/exec"
	"strings"
	"testing"

	"vipd/internal/kerneltest"
	"vipd/lb"
)

// TestB66_F151_RulesMadeWithNftHinderNoCleanup: neither the end of the last service nor
// a clean-up leaves anything because somebody put rules that iptables cannot show into
// our chains, or before our jumps. Those before our jumps stay, the others are named.
func TestB66_F151_RulesMadeWithNftHinderNoCleanup(t *testing.T) {
	for name, remove := range map[string]func(*testing.T, *world, *Door, *slog.Logger){
		"last service": func(t *testing.T, _ *world, d *Door, _ *slog.Logger) { clean(t, d, lb.Snapshot{}, prune) },
		"cleanup": func(t *testing.T, w *world, _ *Door, log *slog.Logger) {
			fatal(t, Cleanup(t.Context(), Options{Log: log, kernel: w.recording()}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			if !kerneltest.Isolate(t) {
				return
			}
			var text bytes.Buffer
			log := slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelWarn}))
			w := worldLogging(log)
			d := w.door(t)
			clean(t, d, pair(), prune)
			for _, chain := range []string{"filter VIPD-IN", "filter INPUT", "nat VIPD-MASQ", "nat POSTROUTING", "mangle VIPD-PRE"} {
				for _, family := range []string{"ip", "ip6"} {
					w.sh(t, "nft insert rule "+family+" "+chain+" ct state established counter accept")
				}
			}
			clean(t, d, pair(), fresh) // mends what is ours
			w.sh(t, "nft insert rule ip nat VIPD-MASQ ct state established counter accept")
			remove(t, w, d, log)
			out, err := exec.CommandContext(t.Context(), "nft", "list", "ruleset").CombinedOutput()
			fatal(t, err)
			if left := string(out); strings.Contains(left, "VIPD-") || strings.Contains(left, "vipd-") || strings.Count(left, "ct state established") != 4 {
				t.Errorf("left:\n%s", left)
			}
			sets, err := w.raw.sets.List(t.Context())
			if fatal(t, err); len(sets) > 0 {
				t.Errorf("sets left: %v", sets)
			}
			if !strings.Contains(text.String(), "chain VIPD-MASQ handle ") {
				t.Errorf("the rule of somebody else that went is not named:\n%s", text.String())
			}
		})
	}
}
