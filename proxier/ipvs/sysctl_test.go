package ipvs

import (
	"io/fs"
	"log/slog"
	"strings"
	"testing"

	vs "vipd/internal/ipvs"
	"vipd/lb"
)

// memorySysctls is settings in memory that also writes down which were set.
type memorySysctls struct {
	values map[string]string
	log    *[]string
}

func (m memorySysctls) Get(key string) (string, error) {
	if v, found := m.values[key]; found {
		return v, nil
	}
	return "", fs.ErrNotExist
}

func (m memorySysctls) Set(key, value string) error {
	m.values[key] = value
	*m.log = append(*m.log, "-w "+key+"="+value)
	return nil
}

// Sysctls are set before the first virtual server and not while there is none, mended by
// the passes that read the kernel, and shown by a plan.
func TestSysctlsAreSeenTo(t *testing.T) {
	h := newHarness(vs.NewFake())
	values := map[string]string{"net/ipv4/vs/conntrack": "0", "net/ipv4/vs/expire_nodest_conn": "1", "net/ipv4/vs/expire_quiescent_template": "1"}
	p := h.proxier()
	p.Settings = vs.NewSettings(vs.SettingsOptions{Sysctls: memorySysctls{values, &h.log}, Manage: true, Estimation: true, Log: slog.New(slog.DiscardHandler)})
	const set = "-w net/ipv4/vs/conntrack=1"
	if got := h.sync(t, p, fresh, nil); got != "" {
		t.Errorf("without services: %s", got)
	}
	want := services("192.0.2.1:80 10.0.0.1:80")
	changes, err := p.Plan(t.Context(), lb.NewSnapshot(want...), prune)
	if err != nil || len(changes) != 4 || changes[0].Object != "sysctl net.ipv4.vs.conntrack" || changes[0].Detail != "0" || changes[1].Detail != "1" {
		t.Errorf("the plan is %v, %v", changes, err)
	}
	if got := h.sync(t, p, prune, want); !strings.HasPrefix(got, set+"; -A ") {
		t.Errorf("the first service: %s", got)
	}
	values["net/ipv4/vs/conntrack"] = "0"
	if got := h.sync(t, p, prune, want); got != "" {
		t.Errorf("a pass that does not read: %s", got)
	}
	if got := h.sync(t, p, fresh, want); got != set {
		t.Errorf("one that does: %s", got)
	}
	if changes, err := p.Plan(t.Context(), lb.NewSnapshot(want...), prune); err != nil || len(changes) != 0 {
		t.Errorf("the plan is %v, %v", changes, err)
	}
	if got := h.sync(t, p, prune, nil); strings.Contains(got, "-w") {
		t.Errorf("the end: %s", got)
	}
}
