package linux

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestSysctls(t *testing.T) {
	root := t.TempDir()
	for _, dev := range []string{"all", "default", "eth0.100"} {
		fatal(t, os.MkdirAll(filepath.Join(root, "net/ipv4/conf", dev), 0o755))
	}
	fatal(t, os.WriteFile(filepath.Join(root, "net/ipv4/ip_forward"), []byte("1\n"), 0o600))
	s := Sysctls{Root: root}
	fatal(t, s.Set("net/ipv4/ip_forward", "0"))
	if v, err := s.Get("net/ipv4/ip_forward"); err != nil || v != "0" {
		t.Errorf("Get = %q, %v", v, err)
	}
	if _, err := s.Get("net/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get of nothing = %v", err)
	}
	if devices, err := s.Devices("ipv4"); err != nil || !slices.Equal(devices, []string{"eth0.100"}) {
		t.Errorf("Devices = %v, %v", devices, err)
	}
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
