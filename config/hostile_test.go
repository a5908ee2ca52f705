package config

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"vipd/lb"
)

// refused parses text and returns the only error.
func refused(t *testing.T, text string) Error {
	t.Helper()
	_, err := Parse([]File{{"f.toml", []byte(text)}}, modes)
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 1 {
		t.Fatalf("want one error, got %.300v", err)
	}
	if len(errs[0].Message) > 600 {
		t.Errorf("a message of %d bytes", len(errs[0].Message))
	}
	return errs[0]
}

// inService is a good file with one line of its service replaced.
func inService(old, line string) string {
	text := "[vip]\nallowed = [\"192.0.2.0/24\"]\n[[service]]\nname = \"web\"\nvip = \"192.0.2.10\"\nport = 80\nbackends = [\"10.0.0.1\"]\n"
	return strings.Replace(text, old, line, 1)
}

func utf16Bytes(order binary.AppendByteOrder, s string) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = order.AppendUint16(b, u)
	}
	return string(b)
}

func TestF63_EncodingsAreNamed(t *testing.T) {
	good := inService("", "")
	for name, c := range map[string]struct {
		text, place, message string
	}{
		"BOM":                 {"\ufeff" + good, "f.toml:1:1", "begins with a byte order mark; save it as UTF-8 without BOM"},
		"UTF-16LE":            {utf16Bytes(binary.LittleEndian, good), "f.toml:1:2", "a NUL byte; save the file as UTF-8 text"},
		"UTF-16BE":            {utf16Bytes(binary.BigEndian, good), "f.toml:1:1", "a NUL byte"},
		"UTF-16LE with BOM":   {utf16Bytes(binary.LittleEndian, "\ufeff"+good), "f.toml:1:1", "is UTF-16; save it as UTF-8"},
		"UTF-16BE with BOM":   {utf16Bytes(binary.BigEndian, "\ufeff"+good), "f.toml:1:1", "is UTF-16; save it as UTF-8"},
		"Latin-1":             {good + "# caf\xe9 ü", "f.toml:8:6", "byte 0xe9 is not UTF-8"},
		"behind wide letters": {good + "# é€🦀\xff", "f.toml:8:6", "byte 0xff is not UTF-8"},
		"NUL":                 {good + "# \x00", "f.toml:8:3", "a NUL byte"},
		"surrogate half":      {good + "# \xed\xa0\x80", "f.toml:8:3", "byte 0xed is not UTF-8"},
		"lone CR":             {strings.ReplaceAll(good, "\n", "\r"), "f.toml:1:6", "expected newline"},
		"10 MB string":        {good + "x = \"" + strings.Repeat("y", 10<<20) + "\"", "f.toml:8:5", "a key or value of 10485762 bytes; write one of at most 4096"},
		"10 MB name":          {inService(`"web"`, `"`+strings.Repeat("y", 10<<20)+`"`), "f.toml:4:8", "a key or value of 10485762 bytes"},
		"duplicate key":       {good + "port = 81", "f.toml:8:1", `key "port" stands twice; remove one, the first is at line 6`},
		"duplicate table":     {good + "[vip]", "f.toml:8:2", `table "vip" stands twice; remove one, the first is at line 1`},
	} {
		t.Run(name, func(t *testing.T) {
			if e := refused(t, c.text); e.place() != c.place || !strings.Contains(e.Message, c.message) {
				t.Errorf("got %v, want %s: %s", e, c.place, c.message)
			}
		})
	}
}

func TestF63_CRLFMeansTheSame(t *testing.T) {
	text := readText(t, "testdata/base.toml")
	unixConfig, err := parse("f.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	dosConfig, err := parse("f.toml", strings.ReplaceAll(text, "\n", "\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(unixConfig, dosConfig, equal); diff != "" {
		t.Error(diff)
	}
	if e := refused(t, strings.ReplaceAll(inService("80", "0"), "\n", "\r\n")); e.place() != "f.toml:6:8" {
		t.Errorf("wrong place in a file with CRLF: %v", e)
	}
}

func TestF134_WeightsAreValidated(t *testing.T) {
	text := func(w string) string {
		return inService("backends = [\"10.0.0.1\"]", "[[service.backend]]\naddress = \"10.0.0.1\"\nweight = "+w)
	}
	for w, want := range map[string]uint16{"0": 0, "1": 1, "65535": 65535, "0xffff": 65535} {
		c, err := parse("f.toml", text(w))
		if err != nil {
			t.Errorf("weight %s: %v", w, err)
		} else if got := c.Services[0].Backends[0].Weight; got != want {
			t.Errorf("weight %s became %d", w, got)
		}
	}
	for _, w := range []string{"-1", "65536", "2147483647", "2147483648", "4294967297", "9223372036854775807", "nan", "inf", "0.5", "1.0", "\"1\"", "9223372036854775808"} {
		if e := refused(t, text(w)); e.place() != "f.toml:9:10" {
			t.Errorf("weight %s: %v", w, e)
		}
	}
}

// TestF135_AddressesAreReadStrictly: what inet_aton or a browser would take.
func TestF135_AddressesAreReadStrictly(t *testing.T) {
	for _, vip := range []string{
		"010.0.0.1", "192.0.2.010", "3221225994", "0xc0000210", "192.0.522", "::ffff:192.0.2.10", "::ffff:c000:20a", "fe80::1%eth0", "192.0.2.10%eth0",
		"192.0.2.10\\n", "１９２.0.2.10", "192.0.2.10\\u0000", "2001:db8::1::", "::192.0.2.300",
	} {
		if e := refused(t, inService(`"192.0.2.10"`, `"`+vip+`"`)); e.place() != "f.toml:5:7" {
			t.Errorf("VIP %s: %v", vip, e)
		}
	}
	for _, port := range []string{"0", "65536", "-80", `"80 "`, `"80"`, "80.0", "1e2"} {
		if e := refused(t, inService("80", port)); e.place() != "f.toml:6:8" {
			t.Errorf("port %s: %v", port, e)
		}
	}
	for _, backend := range []string{"10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:080", "10.0.0.1:80 ", "10.0.0.1: 80", "010.0.0.1:80", "[::ffff:10.0.0.1]:80", "[fe80::1%2]:80"} {
		if e := refused(t, inService("10.0.0.1", backend)); e.place() != "f.toml:7:13" {
			t.Errorf("backend %s: %v", backend, e)
		}
	}
}

func TestF136_NamesAreASCII(t *testing.T) {
	for _, name := range []string{"wéb", "we\u0301b", "\u202eweb", "wеb", "🦀", "web\u200b", "a b", "a/b", "a\tb", "", strings.Repeat("a", 64)} {
		e := refused(t, inService(`"web"`, fmt.Sprintf("%q", name)))
		if e.place() != "f.toml:4:8" {
			t.Errorf("name %q: %v", name, e)
		}
		if strings.ContainsFunc(e.Message, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("the message shows the name unescaped: %q", e.Message)
		}
	}
	for _, name := range []string{"a", "A.b_c-9", strings.Repeat("a", 63)} {
		if _, err := parse("f.toml", inService("web", name)); err != nil {
			t.Error(err)
		}
	}
	if e := refused(t, inService("web", "we\xff")); e.place() != "f.toml:4:11" {
		t.Errorf("invalid UTF-8: %v", e)
	}
}

func TestF137_LongNamesAreCut(t *testing.T) {
	for _, long := range []string{strings.Repeat("aé", 1<<19), strings.Repeat("aé", 1000)} {
		longNames(t, long)
	}
}

func longNames(t *testing.T, long string) {
	t.Helper()
	for name, text := range map[string]string{
		"name":     inService(`"web"`, `"`+long+`"`),
		"key":      inService("port", `"`+long+`" = 1`+"\nport"),
		"VIP":      inService(`"192.0.2.10"`, `"`+long+`"`),
		"backend":  inService("10.0.0.1", long),
		"prefix":   inService(`"192.0.2.0/24"`, `"`+long+`"`),
		"state":    inService("backends = [\"10.0.0.1\"]", "[[service.backend]]\naddress = \"10.0.0.1\"\nstate = \""+long+"\""),
		"duration": inService("port", `drain_timeout = "`+long+`"`+"\nport"),
		"datetime": inService("port", "drain_timeout = 2026-"+strings.Repeat("0", len(long))+"\nport"),
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, text) // checks the length of the message
		})
	}
}

func TestF138_BombsAreRefused(t *testing.T) {
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	for name, text := range map[string]string{
		"arrays":        "a = " + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000),
		"arrays, more":  "a = " + strings.Repeat("[", 1<<20),
		"inline tables": "a = " + strings.Repeat("{a = ", 10_000) + "1" + strings.Repeat("}", 10_000),
		"dotted key":    strings.Repeat("a.", 10_000) + "a = 1",
		"header":        "[" + strings.Repeat("a.", 10_000) + "a]",
		"list header":   "[[" + strings.Repeat("a.", 10_000) + "a]]",
		"values":        "a = [" + strings.Repeat("1,", maxValues+1) + "]",
		"keys":          strings.Repeat("k = 1\n", maxValues+1),
		"tables":        many(maxValues/15, "[t%d.a.b.c.d.e.f.g.h.i.j.k.l.m.n.o]\n"),
	} {
		t.Run(name, func(t *testing.T) {
			if e := refused(t, text); !strings.Contains(e.Message, "more than") {
				t.Errorf("refused for another reason: %v", e)
			}
		})
	}
}

// TestF138_ProductsAreRefused: a small file that multiplies out to a large one.
func TestF138_ProductsAreRefused(t *testing.T) {
	list := func(n int, format string) string {
		var b bytes.Buffer
		for i := range n {
			fmt.Fprintf(&b, format+", ", i>>16, i>>8&255, i&255)
		}
		return "[" + b.String() + "]"
	}
	numbers := func(n int) string {
		var b bytes.Buffer
		for i := range n {
			fmt.Fprintf(&b, "%d, ", i+1)
		}
		return "[" + b.String() + "]"
	}
	text := func(vips, ports, backends int) string {
		return "vip.allowed = [\"10.0.0.0/8\"]\n[[service]]\nname = \"web\"\nvips = " + list(vips, `"10.%d.%d.%d"`) +
			"\nports = " + numbers(ports) + "\nbackends = " + list(backends, `"11.%d.%d.%d"`) + "\n"
	}
	if c, err := parse("f.toml", text(50, 20, 20)); err != nil || len(c.Services) != 1000 {
		t.Fatalf("1,000 services are refused: %v", err)
	}
	for want, text := range map[string]string{
		"there are more than 100000 services (each VIP and port counts)":  text(320, 320, 1),
		"there are more than 2000000 backends (each VIP and port counts)": text(32, 32, 2000),
		"a service has at most 2000 backends, this one 2001":              text(1, 1, 2001),
		"there are more than 65536 VIPs":                                  text(65_537, 1, 1),
	} {
		if e := refused(t, text); !strings.Contains(e.Message, want) {
			t.Errorf("got %v, want %s", e, want)
		}
	}
}

func TestErrorsAreBounded(t *testing.T) {
	_, err := parse("f.toml", strings.Repeat("[[service]]\n", 10_000))
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != maxErrors+1 || !strings.Contains(errs[maxErrors].Message, "the others are not shown") {
		t.Errorf("got %d errors", len(errs))
	}
}

func TestF59_RestartKeysAreNamed(t *testing.T) {
	base := readText(t, "testdata/base.toml")
	before, err := parse("f.toml", base)
	if err != nil {
		t.Fatal(err)
	}
	for change, want := range map[string]string{
		`log_level = "info"|log_level = "debug"`:            "",
		`"192.0.2.0/24"|"192.0.2.0/25"`:                     "",
		`name = "web"|name = "www"`:                         "",
		`sync_period = "1s"|sync_period = "2s"`:             "",
		`"30s"|"0.5m"`:                                      "", // another spelling
		`"0x2000"|8192`:                                     "",
		`"0x2000"|"0x4000"`:                                 "proxy.mark",
		`mode = "auto"|mode = "iptables"`:                   "proxy.mode",
		`invalid = true|invalid = false`:                    "proxy.drop_invalid",
		`backend = "auto"|backend = "nft"`:                  "proxy.iptables_backend",
		`affinity_timeout = "0s"|affinity_timeout = "1h"`:   "",
		`allow = []|allow = ["::/0", "10.0.0.0/8"]`:         "",
		`allow = ["198.51.100.0/24",|allow = ["0.0.0.0/0",`: "",
		`device = "vipd0"|device = "vipd1"`:                 "vip.device",
		`arp = "unmanaged"|arp = "ignore"`:                  "vip.arp",
		`"/var/lib/vipd"|"/var/lib/vipd2"`:                  "daemon.state_dir",
		`"/run/vipd/vipd.sock"|"/run/vipd.sock"`:            "daemon.admin_socket",
		`log_format = "text"|log_format = "json"`:           "daemon.log_format",
		`startup_timeout = "30s"|startup_timeout = "1m"`:    "daemon.startup_timeout",
	} {
		old, text, _ := strings.Cut(change, "|")
		after, err := parse("f.toml", strings.Replace(base, old, text, 1))
		if err != nil || !strings.Contains(base, old) {
			t.Fatalf("%s: %v", change, err)
		}
		if got := strings.Join(RestartKeys(before, after), " "); got != want {
			t.Errorf("%s: restart keys %q, want %q", change, got, want)
		}
	}
}

// TestModesDecideWhatIsPossible: what one mode cannot do another one may.
func TestModesDecideWhatIsPossible(t *testing.T) {
	both := map[lb.Mode]Capability{
		lb.IPTables: {Schedulers: []lb.Scheduler{lb.RR, lb.WRR}, Protocols: []lb.Protocol{lb.TCP, lb.UDP}},
		lb.IPVS:     {Schedulers: []lb.Scheduler{lb.RR, lb.WRR, "lc"}, Protocols: []lb.Protocol{lb.TCP, lb.UDP, lb.SCTP}},
	}
	for line, want := range map[string]string{
		"scheduler = \"lc\"\nmode = \"iptables\"":               "mode iptables cannot do scheduler lc; it knows rr, wrr",
		"scheduler = \"lc\"\nmode = \"ipvs\"":                   "",
		"scheduler = \"least-connection\"\nprotocol = \"sctp\"": "",
		"mode = \"userspace\"":                                  "mode userspace is not available in this version of vipd; use iptables or ipvs",
		"protocol = \"sctp\"\nmode = \"iptables\"":              "mode iptables cannot do protocol sctp; it knows tcp, udp",
		"scheduler = \"nq\"":                                    "mode iptables or ipvs cannot do scheduler nq",
	} {
		_, err := Parse([]File{{"f.toml", []byte(inService("port", line+"\nport"))}}, both)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}
