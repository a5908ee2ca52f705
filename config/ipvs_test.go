package config

import (
	"strings"
	"testing"

	"vipd/lb"
)

// TestWordsOfIPVS: each scheduler of the kernel is accepted by both of its names
// where mode ipvs may serve, and what is inherited has its meaning there only.
func TestWordsOfIPVS(t *testing.T) {
	const backend = "\nbackends = [\"10.0.0.11\"]"
	for _, s := range lb.Schedulers() {
		for _, name := range []string{string(s), s.LongName()} {
			c, err := parse("f.toml", "vip.allowed = [\"192.0.2.0/24\"]\n"+service("a", `"192.0.2.10"`, `scheduler = "`+name+`"`))
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if got := c.Services[0].Scheduler; got != s {
				t.Errorf("%s was read as %s", name, got)
			}
		}
	}
	const defaults = "[defaults]\nscheduler = \"mh\"\nscheduler_flags = [\"mh-port\"]\n"
	for lines, want := range map[string]lb.Spec{
		"port = 80" + backend:                                           {Scheduler: lb.MH, Flags: lb.FlagPort},
		"port = 80\nscheduler = \"sh\"" + backend:                       {Scheduler: lb.SH, Flags: lb.FlagFallback},
		"port = 80\nscheduler = \"sh\"\nscheduler_flags = []" + backend: {Scheduler: lb.SH},
		"port = 80\nscheduler = \"wrr\"\nmode = \"iptables\"" + backend: {Scheduler: lb.WRR, Mode: lb.IPTables},
		"port = 80\nscheduler_flags = [\"mh-fallback\"]" + backend:      {Scheduler: lb.MH, Flags: lb.FlagFallback},
	} {
		c, err := parse("f.toml", "vip.allowed = [\"192.0.2.0/24\"]\n"+defaults+"[[service]]\nname = \"a\"\nvip = \"192.0.2.10\"\n"+lines)
		if err != nil {
			t.Errorf("%s: %v", lines, err)
			continue
		}
		if s := c.Services[0]; s.Scheduler != want.Scheduler || s.Flags != want.Flags || s.Mode != want.Mode {
			t.Errorf("%s: %+v", lines, s)
		}
	}
}

// TestWhatIPTablesCannotInherit: [defaults] for ipvs are refused for a service with
// mode iptables, at the service.
func TestWhatIPTablesCannotInherit(t *testing.T) {
	for defaults, want := range map[string]string{
		`scheduler = "lc"`: "mode iptables cannot do scheduler lc; it knows rr, wrr",
		`forward = "dr"`:   "mode iptables cannot do forward dr; it knows nat",
	} {
		text := "vip.allowed = [\"192.0.2.0/24\"]\n[defaults]\n" + defaults + "\n" + service("a", `"192.0.2.10"`, `mode = "iptables"`)
		_, err := parse("f.toml", text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", defaults, err, want)
		}
		if _, err := parse("f.toml", strings.Replace(text, "iptables", "ipvs", 1)); err != nil {
			t.Errorf("%s, mode ipvs: %v", defaults, err)
		}
	}
}

// TestModesWithoutTheWords: a program without mode ipvs refuses all of it.
func TestModesWithoutTheWords(t *testing.T) {
	alone := map[lb.Mode]Capability{lb.IPTables: modes[lb.IPTables]}
	for line, want := range map[string]string{
		`mode = "ipvs"`:      "mode ipvs is not available in this version of vipd; use iptables",
		`forward = "tunnel"`: "mode iptables cannot do forward tunnel; it knows nat",
		"scheduler = \"mh\"": "mode iptables cannot do scheduler mh; it knows rr, wrr",
		"scheduler = \"mh\"\nscheduler_flags = [\"mh-port\"]": "mode iptables cannot do scheduler_flags; write []",
	} {
		text := "vip.allowed = [\"192.0.2.0/24\"]\n" + service("a", `"192.0.2.10"`, strings.Split(line, "\n")...)
		if _, err := Parse([]File{{"f.toml", []byte(text)}}, alone); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}
