// Package config reads the TOML file: every knob with its default, strictly, and
// with the true place of every problem.
//
// Invariants:
//   - A Config that Parse returned is whole and valid; with any error there is
//     none. Nothing is accepted and ignored: a key that this version does not
//     have is an error, also when a later one will have it.
//   - All problems are reported, not the first one only, each as
//     "file:line:column: what is wrong; what to do". The exception is broken
//     TOML: behind the place where the grammar breaks nothing can be known.
//   - Parse is pure: the same files give the same Config or the same errors.
//
// Traps:
//   - BurntSushi/toml says what a file means, and has no place for an unknown
//     key nor for a value inside [[service]]. The places come from a second
//     parser (place.go); both have to agree that the file is TOML.
//   - A truncated TOML file is often valid TOML. Read therefore waits until the
//     files stand still (read.go).
//   - What is shown in a message comes from the file and is quoted and cut by
//     quote, so that no message can be long or hide control characters.
package config

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"vipd/lb"
)

// Config is the whole configuration: what the files say, with the defaults
// filled in.
type Config struct {
	Daemon    Daemon
	Sync      Sync
	VIP       VIP
	Proxy     Proxy
	IPVS      IPVS
	Discovery Discovery
	Defaults  Defaults
	Services  []*lb.Spec // sorted by Key, normalized; one for each VIP and port of a [[service]]
	Warnings  []string   // what is allowed and probably not meant, each with its place
}

// Daemon is about the process.
type Daemon struct {
	LogLevel       slog.Level
	LogFormat      string        // LogText or LogJSON
	StateDir       string        // absolute path of a directory
	AdminSocket    string        // absolute path of the unix socket
	StartupTimeout time.Duration // how long a source may keep the first pass waiting
}

// The formats of the log.
const (
	LogText = "text"
	LogJSON = "json"
)

// Sync is about the rhythm of the passes.
type Sync struct {
	MinSyncPeriod time.Duration // from the end of one pass to the start of the next
	SyncPeriod    time.Duration // between comparisons of all that is ours with the kernel
}

// VIP is about the addresses.
type VIP struct {
	Device  string         // the name of the link that holds the VIPs
	Allowed []netip.Prefix // masked and sorted; every VIP is inside one of them
	ARP     ARP
}

// ARP says what vipd does with the ARP sysctls of the host.
type ARP string

// The choices of ARP.
const (
	ARPUnmanaged ARP = "unmanaged" // leave them alone
	ARPIgnore    ARP = "ignore"    // do not answer for a VIP on other links (arp_ignore=1, arp_announce=2)
)

// Auto as Proxy.Mode leaves the choice to what the host can do.
const Auto lb.Mode = "auto"

// None as Proxy.Fallback stands for no mode.
const None lb.Mode = "none"

// Proxy is about the way services are served.
type Proxy struct {
	Mode            lb.Mode // Auto or a mode
	Fallback        lb.Mode // serves what mode ipvs was to serve where the kernel has no IPVS; None: vipd does not start there
	ManageSysctls   bool    // the sysctls that a mode needs are set; false: they are looked at only
	Mark            uint32  // one bit, used masked: packets to masquerade, and connections of ours
	DropInvalid     bool    // packets of our flows in which conntrack finds no sense are dropped
	IPTablesBackend IPTablesBackend
}

// IPVS is about mode ipvs.
type IPVS struct {
	Estimation bool // the kernel sums up traffic for each virtual server: net.ipv4.vs.run_estimation
}

// IPTablesBackend says which of the two programs of the name iptables is used.
type IPTablesBackend string

// The choices of IPTablesBackend.
const (
	BackendAuto   IPTablesBackend = "auto"   // the one that the host calls iptables
	BackendNFT    IPTablesBackend = "nft"    // iptables-nft
	BackendLegacy IPTablesBackend = "legacy" // iptables-legacy
)

// Discovery is about the sources.
type Discovery struct {
	Static Static
}

// Static is the source made of the [[service]] entries of the files.
type Static struct {
	AllowEmpty bool // no service at all is believed at once, in place of being held
}

// Defaults is what a [[service]] inherits. Config.Services has it filled in.
type Defaults struct {
	Scheduler    lb.Scheduler
	Flags        lb.SchedulerFlags // of Scheduler
	Affinity     time.Duration     // see lb.Spec
	DrainTimeout time.Duration
	Allow        []netip.Prefix // of both families, normalized; none: everybody
	Forward      lb.Forward
	Masquerade   lb.Masquerade // of services with lb.ForwardNAT
}

// Capability is what a mode can do by nature, whatever the host.
type Capability struct {
	Schedulers []lb.Scheduler
	Protocols  []lb.Protocol
	Forwards   []lb.Forward
	Flags      bool // the flags of the schedulers
	Affinity   bool // clients can be kept with their backend
	Clients    bool // client ranges can be held
}

// Default returns the configuration of a file that says nothing. It is not
// valid: vip.allowed has no default.
func Default() *Config {
	return &Config{
		Daemon: Daemon{
			LogLevel:       slog.LevelInfo,
			LogFormat:      LogText,
			StateDir:       "/var/lib/vipd",
			AdminSocket:    "/run/vipd/vipd.sock",
			StartupTimeout: 30 * time.Second,
		},
		Sync:  Sync{MinSyncPeriod: time.Second, SyncPeriod: 30 * time.Second},
		VIP:   VIP{Device: "vipd0", ARP: ARPUnmanaged},
		Proxy: Proxy{Mode: Auto, Fallback: lb.IPTables, ManageSysctls: true, Mark: 0x2000, DropInvalid: true, IPTablesBackend: BackendAuto},
		IPVS:  IPVS{Estimation: true},
		Defaults: Defaults{
			Scheduler:    lb.WRR,
			DrainTimeout: 30 * time.Second,
			Masquerade:   lb.MasqueradeAlways,
		},
	}
}

// Load is Read and then Parse. The error is of type Errors if the files could be
// read and are wrong.
func Load(ctx context.Context, path string, modes map[lb.Mode]Capability) (*Config, error) {
	files, err := Read(ctx, path)
	if err != nil {
		return nil, err
	}
	return Parse(files, modes)
}

// Parse makes a Config of the files, the first of which is the main one. The
// modes are those that exist in this program. The error is of type Errors.
func Parse(files []File, modes map[lb.Mode]Capability) (*Config, error) {
	p := newParser(modes)
	for i, f := range files {
		p.file(i, f)
	}
	p.finish()
	if err := p.problems.err(); err != nil {
		return nil, err
	}
	return p.config, nil
}
