package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vipd/config"
)

func TestCleanupSaysWhereItLooksWhenItHasToGuess(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		name, text    string
		said          config.Places
		device, state string
		told          bool
	}{
		{"the file is good", "[daemon]\nstate_dir = '/b'\n[vip]\ndevice = 'lb0'\n", config.Places{}, "lb0", "/b", false},
		{"it is wrong elsewhere", "[daemon]\nstate_dir = '/b'\n[[service]]\nport = 0\n", config.Places{}, "vipd0", "/b", false},
		{"it is no TOML", "[daemon", config.Places{}, "vipd0", "/var/lib/vipd", true},
		{"one place is named", "[daemon", config.Places{StateDir: dir}, "vipd0", dir, true},
		{"both are named", "[daemon", config.Places{StateDir: dir, Device: "lb1"}, "lb1", dir, false},
		{"both, and the file says others", "[vip]\ndevice = 'lb0'\n", config.Places{StateDir: dir, Device: "lb1"}, "lb1", dir, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "vipd.toml")
			if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			got, err := toClean(t.Context(), file, tc.said, &out)
			if err != nil || got.Device != tc.device || got.StateDir != tc.state {
				t.Errorf("%+v, %v", got, err)
			}
			text := out.String()
			if told := text != ""; told != tc.told {
				t.Errorf("it says %q", text)
			}
			for _, want := range []string{file, "device " + tc.device + " ", tc.state + ";", "--device", "--state-dir"} {
				if tc.told && !strings.Contains(text, want) {
					t.Errorf("it does not say %q: %q", want, text)
				}
			}
		})
	}
}

func TestCleanupOfNoDirectoryIsRefused(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "typo")
	if _, err := toClean(t.Context(), "", config.Places{StateDir: missing}, nil); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("error %v", err)
	}
}
