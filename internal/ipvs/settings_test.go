package ipvs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"strings"
	"testing"
)

// fakeSysctls is settings in memory; there are no others than those it begins with.
type fakeSysctls struct {
	values map[string]string
	wrote  []string
	locked error // why nothing is set
}

func (f *fakeSysctls) Get(key string) (string, error) {
	v, found := f.values[key]
	if !found {
		return "", fmt.Errorf("sysctl %s: %w", key, fs.ErrNotExist)
	}
	return v, nil
}

func (f *fakeSysctls) Set(key, value string) error {
	if _, found := f.values[key]; !found || f.locked != nil {
		return errors.Join(fmt.Errorf("sysctl %s = %s", key, value), f.locked)
	}
	f.values[key] = value
	f.wrote = append(f.wrote, key[strings.LastIndex(key, "/")+1:]+"="+value)
	return nil
}

// asBooted is what a kernel begins with.
func asBooted() map[string]string {
	return map[string]string{"net/ipv4/vs/conntrack": "0", "net/ipv4/vs/expire_nodest_conn": "0",
		"net/ipv4/vs/expire_quiescent_template": "0", "net/ipv4/vs/conn_reuse_mode": "1", "net/ipv4/vs/run_estimation": "1"}
}

func TestSettings(t *testing.T) {
	three := "conntrack=1 expire_nodest_conn=1 expire_quiescent_template=1"
	for name, tt := range map[string]struct {
		change    func(o *SettingsOptions, f *fakeSysctls)
		wrote     string
		problems  []string // words of each
		unmanaged bool
	}{
		"a new kernel":          {wrote: three},
		"one before 5.9":        {change: func(o *SettingsOptions, _ *fakeSysctls) { o.Release = "5.8.0-63-generic" }, wrote: three + " conn_reuse_mode=0"},
		"5.9 itself":            {change: func(o *SettingsOptions, _ *fakeSysctls) { o.Release = "5.9" }, wrote: three},
		"5.10":                  {change: func(o *SettingsOptions, _ *fakeSysctls) { o.Release = "5.10-rc1" }, wrote: three},
		"4.19":                  {change: func(o *SettingsOptions, _ *fakeSysctls) { o.Release = "4.19.0-27-amd64" }, wrote: three + " conn_reuse_mode=0"},
		"a release of no sense": {change: func(o *SettingsOptions, _ *fakeSysctls) { o.Release = "linux" }, wrote: three},
		"without estimation": {change: func(o *SettingsOptions, _ *fakeSysctls) { o.Estimation = false },
			wrote: three + " run_estimation=0"},
		"with estimation again": {change: func(_ *SettingsOptions, f *fakeSysctls) { f.values["net/ipv4/vs/run_estimation"] = "0" },
			wrote: three + " run_estimation=1"},
		"a kernel that always estimates": {change: func(_ *SettingsOptions, f *fakeSysctls) { delete(f.values, "net/ipv4/vs/run_estimation") }, wrote: three},
		"and should not": {change: func(o *SettingsOptions, f *fakeSysctls) {
			delete(f.values, "net/ipv4/vs/run_estimation")
			o.Estimation = false
		}, wrote: three, problems: []string{"has no net.ipv4.vs.run_estimation"}},
		"a kernel without connection tracking": {change: func(_ *SettingsOptions, f *fakeSysctls) { delete(f.values, "net/ipv4/vs/conntrack") },
			wrote: "expire_nodest_conn=1 expire_quiescent_template=1", problems: []string{"CONFIG_IP_VS_NFCT"}},
		"not managed": {unmanaged: true, problems: []string{"sysctl -w net.ipv4.vs.conntrack=1", "expire_nodest_conn is 0", "expire_quiescent_template is 0"}},
		"read-only": {change: func(_ *SettingsOptions, f *fakeSysctls) { f.locked = fs.ErrPermission },
			problems: []string{"/etc/sysctl.d", "permission denied", "expire_quiescent_template is 0"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeSysctls{values: asBooted()}
			o := SettingsOptions{Sysctls: f, Release: "6.1.0-13-amd64", Manage: !tt.unmanaged, Estimation: true, Log: slog.New(slog.DiscardHandler)}
			if tt.change != nil {
				tt.change(&o, f)
			}
			before := maps.Clone(f.values)
			s := NewSettings(o)
			var pending []string
			for _, e := range s.Pending() {
				pending = append(pending, strings.TrimPrefix(e.Key, "net.ipv4.vs.")+"="+e.Want)
			}
			if got := strings.Join(pending, " "); f.locked == nil && got != tt.wrote || len(f.wrote) > 0 {
				t.Errorf("pending is %q, want %q; wrote %q", got, tt.wrote, f.wrote)
			}
			for range 2 { // the second time there is nothing to do
				if err := s.Enforce(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := strings.Join(f.wrote, " "); got != tt.wrote {
				t.Errorf("wrote %q, want %q", got, tt.wrote)
			}
			findings := s.Findings()
			if len(findings) != len(tt.problems) {
				t.Fatalf("findings %q, want %q", findings, tt.problems)
			}
			for i, words := range tt.problems {
				if !strings.Contains(findings[i], words) {
					t.Errorf("finding %q says nothing of %q", findings[i], words)
				}
			}
			for _, e := range s.All() {
				if path := strings.ReplaceAll(e.Key, ".", "/"); e.Found != before[path] || e.Set != (f.values[path] != before[path]) {
					t.Errorf("%+v; it was %q and is %q", e, before[path], f.values[path])
				}
			}
		})
	}
}

// What somebody changes is found at the next look, mended or told, and told once.
func TestSettingsDrift(t *testing.T) {
	const key = "net/ipv4/vs/conntrack"
	f := &fakeSysctls{values: asBooted()}
	var log bytes.Buffer
	s := NewSettings(SettingsOptions{Sysctls: f, Release: "6.1.0", Manage: true, Estimation: true, Log: slog.New(slog.NewTextHandler(&log, nil))})
	look := func() string {
		t.Helper()
		log.Reset()
		if err := s.Enforce(t.Context()); err != nil {
			t.Fatal(err)
		}
		return log.String()
	}
	if said := look(); !strings.Contains(said, "key=net.ipv4.vs.conntrack from=0 to=1") {
		t.Errorf("said %s", said)
	}
	if said := look(); said != "" {
		t.Errorf("nothing happened, and it said %s", said)
	}
	f.values[key] = "0"
	if said := look(); !strings.Contains(said, "sysctl changed") || f.values[key] != "1" {
		t.Errorf("said %s; the value is %s", said, f.values[key])
	}
	f.values[key], f.locked = "0", fs.ErrPermission
	if said := look(); !strings.Contains(said, "a sysctl is wrong") {
		t.Errorf("said %s", said)
	}
	if said := look(); said != "" || len(s.Findings()) != 1 {
		t.Errorf("said %s again; findings %v", said, s.Findings())
	}
	f.locked = nil
	if said := look(); !strings.Contains(said, "sysctl changed") || !strings.Contains(said, "right again") || len(s.Findings()) != 0 {
		t.Errorf("said %s; findings %v", said, s.Findings())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Enforce(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
}
