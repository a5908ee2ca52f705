package config

import (
	"fmt"
	"log/slog"
	"math/bits"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"vipd/lb"
)

// key is one key of the file. docs/configuration.md has a row for each, held by
// a test.
type key struct {
	path    string // "sync.min_sync_period"; of the entries of a list "service.name"
	restart bool   // a reload that changes it is refused
	read    func(node, *Config)
	show    func(*Config) string // as TOML
}

// bound joins a key with its field in Config.
func bound[T any](path string, field func(*Config) *T, read func(node) (T, bool), show func(T) string) key {
	return key{
		path: path,
		read: func(n node, c *Config) {
			if v, ok := read(n); ok {
				*field(c) = v
			}
		},
		show: func(c *Config) string { return show(*field(c)) },
	}
}

// restart says that a key cannot change while vipd runs.
func restart(k key) key {
	k.restart = true
	return k
}

// settings returns the keys outside of [[service]], in the order of print.
func (p *parser) settings() []key {
	return []key{
		bound("daemon.log_level", func(c *Config) *slog.Level { return &c.Daemon.LogLevel }, readLevel, showLevel),
		restart(bound("daemon.log_format", func(c *Config) *string { return &c.Daemon.LogFormat }, oneOf[string](LogText, LogJSON), showText[string])),
		restart(bound("daemon.state_dir", func(c *Config) *string { return &c.Daemon.StateDir }, readPath, showText[string])),
		restart(bound("daemon.admin_socket", func(c *Config) *string { return &c.Daemon.AdminSocket }, readSocket, showText[string])),
		restart(bound("daemon.startup_timeout", func(c *Config) *time.Duration { return &c.Daemon.StartupTimeout }, within(time.Second, time.Hour), showDuration)),
		bound("sync.min_sync_period", func(c *Config) *time.Duration { return &c.Sync.MinSyncPeriod }, within(10*time.Millisecond, time.Minute), showDuration),
		bound("sync.sync_period", func(c *Config) *time.Duration { return &c.Sync.SyncPeriod }, within(time.Second, 24*time.Hour), showDuration),
		restart(bound("vip.device", func(c *Config) *string { return &c.VIP.Device }, readDevice, showText[string])),
		bound("vip.allowed", func(c *Config) *[]netip.Prefix { return &c.VIP.Allowed }, readPrefixes, showPrefixes),
		restart(bound("vip.arp", func(c *Config) *ARP { return &c.VIP.ARP }, oneOf(ARPUnmanaged, ARPIgnore), showText[ARP])),
		restart(bound("proxy.mode", func(c *Config) *lb.Mode { return &c.Proxy.Mode }, p.readProxyMode, showText[lb.Mode])),
		restart(bound("proxy.fallback", func(c *Config) *lb.Mode { return &c.Proxy.Fallback }, oneOf(lb.IPTables, None), showText[lb.Mode])),
		restart(bound("proxy.manage_sysctls", func(c *Config) *bool { return &c.Proxy.ManageSysctls }, node.boolean, strconv.FormatBool)),
		restart(bound("proxy.mark", func(c *Config) *uint32 { return &c.Proxy.Mark }, readMark, showMark)),
		restart(bound("proxy.drop_invalid", func(c *Config) *bool { return &c.Proxy.DropInvalid }, node.boolean, strconv.FormatBool)),
		restart(bound("proxy.iptables_backend", func(c *Config) *IPTablesBackend { return &c.Proxy.IPTablesBackend }, oneOf(BackendAuto, BackendNFT, BackendLegacy), showText[IPTablesBackend])),
		restart(bound("ipvs.estimation", func(c *Config) *bool { return &c.IPVS.Estimation }, node.boolean, strconv.FormatBool)),
		bound("discovery.static.allow_empty", func(c *Config) *bool { return &c.Discovery.Static.AllowEmpty }, node.boolean, strconv.FormatBool),
		bound("defaults.scheduler", func(c *Config) *lb.Scheduler { return &c.Defaults.Scheduler }, p.readScheduler, showText[lb.Scheduler]),
		{path: "defaults.scheduler_flags", read: func(n node, c *Config) { p.ownFlags(n, c.Defaults.Scheduler, &c.Defaults.Flags) }, show: func(c *Config) string { return showFlags(c.Defaults.Scheduler, c.Defaults.Flags) }},
		bound("defaults.affinity_timeout", func(c *Config) *time.Duration { return &c.Defaults.Affinity }, readAffinity, showDuration),
		bound("defaults.drain_timeout", func(c *Config) *time.Duration { return &c.Defaults.DrainTimeout }, readDrainTimeout, showDuration),
		bound("defaults.allow", func(c *Config) *[]netip.Prefix { return &c.Defaults.Allow }, readDefaultRanges, showPrefixes),
		bound("defaults.forward", func(c *Config) *lb.Forward { return &c.Defaults.Forward }, readForward, showForward),
		bound("defaults.masquerade", func(c *Config) *lb.Masquerade { return &c.Defaults.Masquerade }, readMasquerade, showText[lb.Masquerade]),
	}
}

// serviceKeys are the keys of the lists, which service.go reads. All are live.
var serviceKeys = []string{
	"service.name", "service.vip", "service.vips", "service.port", "service.ports", "service.protocol",
	"service.scheduler", "service.scheduler_flags", "service.mode", "service.affinity_timeout", "service.drain_timeout",
	"service.allow", "service.forward", "service.tunnel", "service.tunnel_port", "service.masquerade", "service.backends",
	"service.backend.address", "service.backend.port", "service.backend.weight", "service.backend.state",
}

// laterKeys are words that later versions will know.
var laterKeys = []string{
	"daemon.metrics_listen", "sync.max_removal", "sync.removal_hold", "discovery.order",
	"discovery.etcd", "discovery.consul", "defaults.health_check", "service.health_check",
}

// RestartKeys returns the keys that differ and cannot change while vipd runs.
func RestartKeys(old, new *Config) []string {
	var keys []string
	for _, k := range newParser(nil).settings() {
		if k.restart && k.show(old) != k.show(new) {
			keys = append(keys, k.path)
		}
	}
	return keys
}

func oneOf[T ~string](words ...T) func(node) (T, bool) {
	texts := make([]string, len(words))
	for i, w := range words {
		texts[i] = string(w)
	}
	return func(n node) (T, bool) {
		w, ok := n.word(texts...)
		return T(w), ok
	}
}

func within(low, high time.Duration) func(node) (time.Duration, bool) {
	return func(n node) (time.Duration, bool) { return n.duration(low, high) }
}

// What [defaults] and [[service]] share.
var (
	readDrainTimeout = within(0, 24*time.Hour)
	readMasquerade   = oneOf(lb.MasqueradeAlways, lb.MasqueradeNever, lb.MasqueradeAuto)
)

func readLevel(n node) (slog.Level, bool) {
	var level slog.Level
	w, ok := n.word("debug", "info", "warn", "error")
	return level, ok && level.UnmarshalText([]byte(w)) == nil
}

// readPath reads the absolute path of a file of ours.
func readPath(n node) (string, bool) {
	s, ok := n.text()
	if !ok {
		return "", false
	}
	control := strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
	if !filepath.IsAbs(s) || filepath.Clean(s) != s || s == "/" || control || len(s) > 4000 {
		n.fail(`%s is not an absolute path in its shortest form; write it like "/var/lib/vipd"`, quote(s))
		return "", false
	}
	return strings.Clone(s), true
}

// maxSocketPath is the size of sun_path without its final NUL: unix(7).
const maxSocketPath = 107

func readSocket(n node) (string, bool) {
	s, ok := readPath(n)
	if ok && len(s) > maxSocketPath {
		n.fail("the path of a unix socket has at most %d bytes, this one %d; use a shorter one", maxSocketPath, len(s))
		return "", false
	}
	return s, ok
}

// deviceName is stricter than the kernel's dev_valid_name: no byte that a tool or
// a sysctl path would take for something else.
var deviceName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,14}$`)

func readDevice(n node) (string, bool) {
	s, ok := n.text()
	if !ok {
		return "", false
	}
	if !deviceName.MatchString(s) || slices.Contains([]string{"lo", "all", "default"}, s) {
		n.fail("%s cannot be the name of the device; use 1 to 15 of A-Z a-z 0-9 . _ - that name no other link", quote(s))
		return "", false
	}
	return strings.Clone(s), true
}

// markText is one spelling of a number: C's octal would only mislead.
var markText = regexp.MustCompile(`^(0x[0-9A-Fa-f]{1,8}|0|[1-9][0-9]{0,9})$`)

func readMark(n node) (uint32, bool) {
	var mark int64 = -1
	shown := ""
	switch v := n.value.(type) {
	case int64:
		mark, shown = v, fmt.Sprint(v)
	case string:
		shown = quote(v)
		if markText.MatchString(v) {
			mark, _ = strconv.ParseInt(v, 0, 64)
		}
	default:
		shown = typeOf(n.value)
	}
	if mark < 0 || mark > 0xffffffff || bits.OnesCount32(uint32(mark)) != 1 {
		n.fail(`%s is not exactly one bit of 32; write it like "0x2000"`, shown)
		return 0, false
	}
	return uint32(mark), true
}

func (p *parser) readProxyMode(n node) (lb.Mode, bool) {
	s, ok := n.text()
	if !ok || lb.Mode(s) == Auto {
		return Auto, ok
	}
	return p.mode(n, s, append([]string{string(Auto)}, p.modeNames...))
}

func showText[T ~string](s T) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(string(s)) + `"`
}

func showForward(f lb.Forward) string { return showText(f.String()) }

func showLevel(l slog.Level) string { return showText(strings.ToLower(l.String())) }

func showDuration(d time.Duration) string { return showText(FormatDuration(d)) }

func showMark(m uint32) string { return showText(fmt.Sprintf("%#x", m)) }

func showPrefixes(prefixes []netip.Prefix) string {
	texts := make([]string, len(prefixes))
	for i, p := range prefixes {
		texts[i] = showText(p.String())
	}
	return "[" + strings.Join(texts, ", ") + "]"
}

// FormatDuration returns the canonical spelling: "1m" where time says "1m0s".
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
