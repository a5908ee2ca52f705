package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPlacesOfAFileThatIsWrong(t *testing.T) {
	standard := Places{"/run/vipd/vipd.sock", "/var/lib/vipd", "vipd0"}
	for _, tc := range []struct {
		name, text string
		want       Places
		guessed    string // what the error says; "": nothing is
	}{
		{"all named", "[daemon]\nadmin_socket = '/a/s'\nstate_dir = '/b'\n[vip]\ndevice = 'lb0'\n", Places{"/a/s", "/b", "lb0"}, ""},
		{"nothing named", "", standard, ""},
		{"an unknown key", "[daemon]\nstate_dir = '/b'\nstate = 1\n[[service]]\nport = 'x'\n", Places{"/run/vipd/vipd.sock", "/b", "vipd0"}, ""},
		{"no TOML", "[daemon]\nstate_dir = '/b'\n[vip\n", standard, "vipd.toml"},
		{"no text", "[daemon]\nstate_dir = 7\n", standard, "vipd.toml"},
		{"no place", "[daemon]\nstate_dir = 'b'\n[vip]\ndevice = '../x'\n", standard, "daemon.state_dir cannot be \"b\""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "vipd.toml")
			write(t, file, tc.text)
			got, err := FindPlaces(t.Context(), file)
			if got != tc.want {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
			if (err == nil) != (tc.guessed == "") || err != nil && !strings.Contains(err.Error(), tc.guessed) {
				t.Errorf("error %v, want %q", err, tc.guessed)
			}
		})
	}
}

func TestPlacesDoNotDependOnTheFilesBeside(t *testing.T) {
	file := filepath.Join(t.TempDir(), "vipd.toml")
	write(t, file, "[daemon]\nstate_dir = '/b'\n")
	if err := os.MkdirAll(filepath.Join(filepath.Dir(file), "conf.d", "x.toml"), 0o755); err != nil { //nolint:gosec // a test directory
		t.Fatal(err)
	}
	if p, err := FindPlaces(t.Context(), file); err != nil || p.StateDir != "/b" {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := FindPlaces(t.Context(), file+"x"); err == nil || p.StateDir != "/var/lib/vipd" {
		t.Errorf("of no file: %+v, %v", p, err)
	}
}
