package lb

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"
)

func TestSchedulerNames(t *testing.T) {
	want := []Scheduler{RR, WRR, LC, WLC, LBLC, LBLCR, DH, SH, SED, NQ, FO, OVF, MH, Twos}
	if got := Schedulers(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	seen := map[string]bool{}
	for _, s := range want {
		for _, name := range []string{string(s), s.LongName()} {
			if got, err := ParseScheduler(name); got != s || err != nil {
				t.Errorf("ParseScheduler(%q) = %q, %v; want %s", name, got, err, s)
			}
			if seen[name] || name == "" {
				t.Errorf("%q is the name of two, or none", name)
			}
			seen[name] = true
		}
		if hashes := s == SH || s == MH; s.Hashes() != hashes {
			t.Errorf("%s hashes: %t", s, s.Hashes())
		}
	}
	for _, none := range []string{"", "RR", "round robin", "wr"} {
		if got, err := ParseScheduler(none); err == nil || got != "" || Scheduler(none).LongName() != "" {
			t.Errorf("%q was read as %q", none, got)
		}
	}
}

func TestSchedulerFlagWords(t *testing.T) {
	tests := []struct {
		flags SchedulerFlags
		words []string
		json  string
	}{
		{0, []string{}, `[]`},
		{FlagFallback, []string{"mh-fallback"}, `["fallback"]`},
		{FlagPort, []string{"mh-port"}, `["port"]`},
		{FlagFallback | FlagPort, []string{"mh-fallback", "mh-port"}, `["fallback","port"]`},
	}
	for _, tt := range tests {
		if got := tt.flags.Words("mh-"); !slices.Equal(got, tt.words) {
			t.Errorf("%d: %q, want %q", tt.flags, got, tt.words)
		}
		text, err := json.Marshal(tt.flags)
		back := FlagPort | FlagFallback
		if err != nil || string(text) != tt.json || json.Unmarshal(text, &back) != nil || back != tt.flags {
			t.Errorf("%d became %s and %d, %v", tt.flags, text, back, err)
		}
	}
	for _, wrong := range []string{`["mh-port"]`, `"port"`, `3`} {
		var f SchedulerFlags
		if json.Unmarshal([]byte(wrong), &f) == nil {
			t.Errorf("%s was read as %d", wrong, f)
		}
	}
}

func TestForwardAndTunnelText(t *testing.T) {
	for f, name := range map[Forward]string{ForwardNAT: "nat", ForwardDR: "dr", ForwardTunnel: "tunnel"} {
		text, err := f.MarshalText()
		back := Forward(9)
		if err != nil || string(text) != name || back.UnmarshalText(text) != nil || back != f {
			t.Errorf("%s became %s and %s, %v", name, text, back, err)
		}
	}
	for tunnel, name := range map[TunnelType]string{TunnelIPIP: "ipip", TunnelGUE: "gue"} {
		text, err := tunnel.MarshalText()
		back := TunnelType(9)
		if err != nil || string(text) != name || back.UnmarshalText(text) != nil || back != tunnel {
			t.Errorf("%s became %s and %s, %v", name, text, back, err)
		}
	}
	if f, err := ParseForward("forward-9"); err == nil || Forward(9).String() != "forward-9" {
		t.Errorf("read as %s", f)
	}
	if tt, err := ParseTunnelType("tunnel-9"); err == nil || TunnelType(9).String() != "tunnel-9" {
		t.Errorf("read as %s", tt)
	}
}

// What has no meaning beside the other words makes no difference.
func TestNormalizeTakesBackWordsWithoutMeaning(t *testing.T) {
	gue := Tunnel{TunnelGUE, 6080}
	tests := []struct {
		name       string
		have, want Spec
	}{
		{"all have a meaning", Spec{Scheduler: MH, Flags: FlagPort, Forward: ForwardTunnel, Tunnel: gue, Masquerade: MasqueradeNever},
			Spec{Scheduler: MH, Flags: FlagPort, Forward: ForwardTunnel, Tunnel: gue, Masquerade: MasqueradeNever}},
		{"nat is masqueraded and has no tunnel", Spec{Scheduler: SH, Flags: FlagFallback, Tunnel: gue, Masquerade: MasqueradeAuto},
			Spec{Scheduler: SH, Flags: FlagFallback, Masquerade: MasqueradeAuto}},
		{"dr is not masqueraded", Spec{Scheduler: WRR, Forward: ForwardDR, Tunnel: gue, Masquerade: MasqueradeAlways},
			Spec{Scheduler: WRR, Forward: ForwardDR, Masquerade: MasqueradeNever}},
		{"ipip has no port", Spec{Forward: ForwardTunnel, Tunnel: Tunnel{TunnelIPIP, 6080}}, Spec{Forward: ForwardTunnel, Masquerade: MasqueradeNever}},
		{"lc has no flags", Spec{Scheduler: LC, Flags: FlagPort}, Spec{Scheduler: LC}},
	}
	for _, tt := range tests {
		if tt.have.Normalize(); !tt.have.Equal(&tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.name, tt.have, tt.want)
		}
	}
}

// The JSON form is what state/ holds: what an earlier version wrote has none of the
// later words, and means nat.
func TestJSONOfTheWords(t *testing.T) {
	whole := Service{Mode: IPVS, Scheduler: MH, Flags: FlagPort, Forward: ForwardTunnel, Tunnel: Tunnel{TunnelGUE, 6080}, Masquerade: MasqueradeNever}
	whole.Key, _ = ParseKey("192.0.2.10:80/tcp")
	text, err := json.Marshal(whole)
	want := `{"key":"192.0.2.10:80/tcp","mode":"ipvs","scheduler":"mh","scheduler_flags":["port"],"forward":"tunnel",` +
		`"tunnel":{"type":"gue","port":6080},"masquerade":"never","backends":null}`
	if err != nil || string(text) != want {
		t.Errorf("%s, %v\nwant %s", text, err, want)
	}
	var back Service
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, whole) {
		t.Errorf("%+v, %v", back, err)
	}
	const former = `{"key":"192.0.2.10:80/tcp","name":"web","scheduler":"wrr","masquerade":"always","drain_timeout_ns":1,"backends":[]}`
	var spec Spec
	if err := json.Unmarshal([]byte(former), &spec); err != nil || spec.Forward != ForwardNAT || spec.Flags != 0 || spec.Tunnel != (Tunnel{}) {
		t.Errorf("%+v, %v", spec, err)
	}
	spec.Backends = []BackendSpec{}
	if text, err := json.Marshal(spec); err != nil || string(text) != former {
		t.Errorf("%s, %v\nwant %s", text, err, former)
	}
}
