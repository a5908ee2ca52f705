package linux

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Sysctls is the settings of the kernel in the network namespace of the calling
// thread, by their path below /proc/sys, as in "net/ipv4/ip_forward".
type Sysctls struct {
	Root string // "/proc/sys"
}

// ProcSys is the settings of the running kernel.
func ProcSys() Sysctls { return Sysctls{Root: "/proc/sys"} }

// Get returns a value; fs.ErrNotExist if this kernel has no such setting.
func (s Sysctls) Get(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.Root, key))
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Set writes a value.
func (s Sysctls) Set(key, value string) error {
	if err := os.WriteFile(filepath.Join(s.Root, key), []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl %s = %s: %w", key, value, err)
	}
	return nil
}

// Devices returns the devices with settings in a family ("ipv4", "ipv6"), without
// "all" and "default".
func (s Sysctls) Devices(family string) ([]string, error) {
	entries, err := fs.ReadDir(os.DirFS(s.Root), "net/"+family+"/conf")
	if err != nil {
		return nil, fmt.Errorf("sysctls of devices: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "all" && e.Name() != "default" {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Dotted spells a key as sysctl(8) does.
func Dotted(key string) string { return strings.ReplaceAll(key, "/", ".") }
