package config

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// randomFile writes a valid file, with every key that is optional sometimes.
func randomFile(r *rand.Rand) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	maybe := func(format string, values ...any) {
		if r.IntN(2) == 0 {
			line(format, values[r.IntN(len(values))])
		}
	}
	duration := []any{"0.25s", "1m", "1h", "2h22m", "90m", "1h0m1s", "59s", "3600000ms", "10s"}
	line("[daemon]")
	maybe("log_level = %q", "debug", "info", "warn", "error")
	maybe("log_format = %q", "text", "json")
	maybe("state_dir = '%s'", "/a", `/with "quotes" and \`, "/ünïcode")
	maybe("startup_timeout = %q", "1s", "1m0s", "1h")
	line("[vip]\nallowed = [\"10.0.0.0/8\", \"fd00::/16\"]")
	maybe("arp = %q", "ignore", "unmanaged")
	line("[proxy]")
	maybe("mark = %v", "1", "0x80000000", `"0x40"`, `"65536"`)
	maybe("drop_invalid = %v", true, false)
	maybe("fallback = %q", "iptables")
	maybe("manage_sysctls = %v", true, false)
	maybe("iptables_backend = %q", "auto", "nft", "legacy")
	line("[ipvs]")
	maybe("estimation = %v", true, false)
	line("[discovery.static]")
	maybe("allow_empty = %v", true, false)
	line("[defaults]")
	maybe("scheduler = %q", "rr", "wrr", "round-robin")
	maybe("affinity_timeout = %q", "0s", "1s", "596h", "60s")
	maybe("drain_timeout = %q", duration...)
	maybe("allow = [%s]", `"::/0", "10.0.0.0/8", "10.1.0.0/16"`, `"fd00::/8", "0.0.0.0/0"`, `"fd00:1::/32", "10.0.0.0/8"`)
	maybe("masquerade = %q", "always", "never", "auto")
	for i := range r.IntN(6) {
		line("[[service]]\nname = \"s%d\"", i)
		v4, v6 := randomVIPs(r, line, i)
		randomPorts(r, line)
		maybe("protocol = %q", "tcp", "udp", "sctp")
		maybe("affinity_timeout = %q", "0s", "1s", "61s")
		randomRanges(r, line, v4, v6)
		randomWords(r, line)
		maybe("drain_timeout = %q", duration...)
		maybe("masquerade = %q", "always", "never", "auto")
		randomBackends(r, line, v4, v6)
	}
	return b.String()
}

// randomWords writes what only some modes can do.
func randomWords(r *rand.Rand, line func(string, ...any)) {
	line("%s", [...]string{
		"", "mode = \"iptables\"", "mode = \"ipvs\"",
		"mode = \"iptables\"\nscheduler = \"rr\"", "scheduler = \"weighted-round-robin\"",
		"scheduler = \"least-connection\"", "scheduler = \"mh\"", "scheduler = \"mh\"\nscheduler_flags = [\"mh-port\"]",
		"mode = \"ipvs\"\nscheduler = \"sh\"\nscheduler_flags = [\"sh-port\", \"sh-fallback\"]",
	}[r.IntN(9)])
}

func randomVIPs(r *rand.Rand, line func(string, ...any), i int) (v4, v6 bool) {
	switch r.IntN(4) {
	case 0:
		line("vip = \"10.0.0.%d\"", i)
		return true, false
	case 1:
		line("vip = \"fd00::%d\"", i)
		return false, true
	case 2:
		line("vips = [\"10.0.0.%d\", \"10.0.1.%d\"]", i, i)
		return true, false
	}
	line("vips = [\"fd00:0::%d\", \"10.0.0.%d\", \"fd00::1:%d\"]", i, i, i)
	return true, true
}

// randomRanges writes none, all, or some of the families of the VIPs.
func randomRanges(r *rand.Rand, line func(string, ...any), v4, v6 bool) {
	var ranges []string
	if v4 {
		ranges = append(ranges, [][]string{{"0.0.0.0/0"}, {"198.51.100.0/24", "198.51.100.7/32"}, {"10.2.0.0/16", "10.0.0.0/8"}}[r.IntN(3)]...)
	}
	if v6 {
		ranges = append(ranges, [][]string{{"::/0", "fd00::/8"}, {"2001:db8::/32", "fd00::/128"}}[r.IntN(2)]...)
	}
	switch r.IntN(3) {
	case 0:
		line("allow = []")
	case 1:
		r.Shuffle(len(ranges), func(i, j int) { ranges[i], ranges[j] = ranges[j], ranges[i] })
		line("allow = [\"%s\"]", strings.Join(ranges, `", "`))
	}
}

func randomPorts(r *rand.Rand, line func(string, ...any)) {
	if r.IntN(2) == 0 {
		line("port = %d", 1+r.IntN(65535))
		return
	}
	line("ports = [%d, 80, %d]", 100+r.IntN(1000), 10_000+r.IntN(50_000))
}

// randomBackends writes both forms, with and without the port.
func randomBackends(r *rand.Rand, line func(string, ...any), v4, v6 bool) {
	var short, long []string
	for j := range r.IntN(5) {
		address, port := fmt.Sprintf("172.16.0.%d", j), ""
		is6 := !v4 || v6 && r.IntN(2) == 0
		if is6 {
			address = fmt.Sprintf("2001:db8::%d", j)
		}
		if r.IntN(2) == 0 {
			port = fmt.Sprint(5000 + r.IntN(10))
		}
		joined := address
		switch {
		case port != "" && is6:
			joined = "[" + address + "]:" + port
		case port != "":
			joined += ":" + port
		}
		if r.IntN(2) == 0 {
			short = append(short, fmt.Sprintf("%q", joined))
			continue
		}
		entry := fmt.Sprintf("[[service.backend]]\naddress = %q\nweight = %d", joined, r.IntN(3))
		if port != "" && r.IntN(2) == 0 {
			entry = fmt.Sprintf("[[service.backend]]\naddress = %q\nport = %s\nstate = \"draining\"", address, port)
		}
		long = append(long, entry)
	}
	if len(short) > 0 || len(long) == 0 && r.IntN(2) == 0 {
		line("backends = [%s]", strings.Join(short, ", "))
	}
	line("%s", strings.Join(long, "\n"))
}

// TestCanonicalSpellingMeansTheSame: parse(print(c)) == c, and printing is stable.
func TestCanonicalSpellingMeansTheSame(t *testing.T) {
	for seed := range uint64(200) {
		text := randomFile(rand.New(rand.NewPCG(seed, 0))) //nolint:gosec // the seed is to be repeated
		c, err := parse("f.toml", text)
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, text)
		}
		checkCanonical(t, c, fmt.Sprintf("seed %d", seed))
	}
}

func checkCanonical(t *testing.T, c *Config, what string) {
	t.Helper()
	printed := c.TOML()
	again, err := parse("canonical", printed)
	if err != nil {
		t.Fatalf("%s: the canonical spelling is refused: %v\n%s", what, err, printed)
	}
	if diff := cmp.Diff(c, again, equal); diff != "" {
		t.Fatalf("%s: the canonical spelling means something else:\n%s\n%s", what, diff, printed)
	}
	if twice := again.TOML(); twice != printed {
		t.Fatalf("%s: printed twice, it differs:\n%s", what, cmp.Diff(printed, twice))
	}
}

// FuzzParse: nothing panics, every error has a place inside its file, and what is
// accepted is printed as a file that means the same.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/*.toml", "testdata/*/*.toml", "../examples/*.toml"} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			data, err := os.ReadFile(name) //nolint:gosec // our own test data
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data, []byte("[[service]]\nname = \"more\"\nvip = \"192.0.2.99\"\nport = 1\nbackends = []\n"))
		}
	}
	f.Add([]byte("a.b = 1\na = 2\n[a]\n[[a.b]]"), []byte("service = [{}, []]"))
	f.Add([]byte("a = [[[{b = [[1]]}]]]\n\"\\u00e9\" = 0x1"), []byte("\xef\xbb\xbf"))
	f.Fuzz(func(t *testing.T, main, included []byte) {
		files := []File{{"main", main}, {"conf.d/x.toml", included}}
		c, err := Parse(files, modes)
		if err == nil {
			checkCanonical(t, c, "fuzz")
			return
		}
		var errs Errors
		if !errors.As(err, &errs) || len(errs) == 0 {
			t.Fatalf("not a list of errors: %v", err)
		}
		for _, e := range errs {
			checkPlace(t, files, e)
		}
	})
}

func checkPlace(t *testing.T, files []File, e Error) {
	t.Helper()
	for _, f := range files {
		if f.Name != e.File {
			continue
		}
		lines := strings.Split(string(f.Data), "\n")
		if e.Line < 1 || e.Line > len(lines) || e.Column < 1 || e.Column > utf8.RuneCountInString(lines[e.Line-1])+1 {
			t.Fatalf("%v: there is no such place", e)
		}
		if e.Message == "" || len(e.Message) > 600 || strings.ContainsAny(e.Message, "\n\x00") {
			t.Fatalf("%v: a bad message", e)
		}
		return
	}
	t.Fatalf("%v: there is no such file", e)
}
