package config

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"vipd/lb"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// modes is what the program can do in these tests.
var modes = map[lb.Mode]Capability{
	lb.IPTables: {
		Schedulers: []lb.Scheduler{lb.RR, lb.WRR}, Protocols: []lb.Protocol{lb.TCP, lb.UDP, lb.SCTP},
		Forwards: []lb.Forward{lb.ForwardNAT}, Affinity: true, Clients: true,
	},
	lb.IPVS: {
		Schedulers: lb.Schedulers(), Protocols: []lb.Protocol{lb.TCP, lb.UDP, lb.SCTP},
		Forwards: []lb.Forward{lb.ForwardNAT, lb.ForwardDR, lb.ForwardTunnel}, Flags: true, Affinity: true, Clients: true,
	},
}

// equal compares two configurations. netip values are compared by ==.
var equal = cmp.Options{
	cmpopts.EquateComparable(netip.Prefix{}),
	cmpopts.EquateEmpty(),
	cmpopts.IgnoreFields(Config{}, "Warnings"),
	cmp.Comparer(func(a, b *lb.Spec) bool { return a.Equal(b) }),
}

// parse parses one file, or several that are parted by lines "-- name --".
func parse(name, text string) (*Config, error) {
	var files []File
	for i, part := range strings.Split("\n"+text, "\n-- ") {
		if i == 0 {
			files = append(files, File{name, []byte(strings.TrimPrefix(part, "\n"))})
			continue
		}
		other, data, _ := strings.Cut(part, " --\n")
		files = append(files, File{other, []byte(data + "\n")})
	}
	return Parse(files, modes)
}

func readText(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// golden compares with a file, or writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil { //nolint:gosec // a test file
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(readText(t, name), got); diff != "" {
		t.Errorf("%s (run with -update if this is meant):\n%s", name, diff)
	}
}

// TestGoodFiles compares the canonical spelling and the warnings of each good file.
func TestGoodFiles(t *testing.T) {
	names, _ := filepath.Glob("testdata/good/*.toml")
	if len(names) < 5 {
		t.Fatalf("only %d good files", len(names))
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			c, err := parse(filepath.Base(name), readText(t, name))
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range c.Services {
				normal := *s
				normal.Backends = slices.Clone(s.Backends)
				if normal.Normalize(); !normal.Equal(s) {
					t.Errorf("%+v is not normalized", s)
				}
			}
			got := c.TOML()
			for _, w := range c.Warnings {
				got += "# warning: " + w + "\n"
			}
			golden(t, strings.TrimSuffix(name, ".toml")+".canonical", got)
			again, err := parse("canonical", c.TOML())
			if err != nil {
				t.Fatalf("the canonical spelling is refused: %v", err)
			}
			if diff := cmp.Diff(c, again, equal); diff != "" {
				t.Errorf("the canonical spelling means something else:\n%s", diff)
			}
		})
	}
}

// TestBadFiles compares all messages of files that are wrong in several ways.
func TestBadFiles(t *testing.T) {
	names, _ := filepath.Glob("testdata/bad/*.toml")
	if len(names) < 5 {
		t.Fatalf("only %d bad files", len(names))
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			_, err := parse(filepath.Base(name), readText(t, name))
			if err == nil {
				t.Fatal("accepted")
			}
			golden(t, strings.TrimSuffix(name, ".toml")+".errors", err.Error()+"\n")
		})
	}
}

// brokenCase is one of testdata/broken.txt.
type brokenCase struct {
	line     int // in broken.txt
	old, new string
	message  []string
}

func brokenCases(t *testing.T) []brokenCase {
	t.Helper()
	var cases []brokenCase
	fresh := true
	for i, line := range strings.Split(readText(t, "testdata/broken.txt"), "\n") {
		if line == "" || line[0] == '#' {
			fresh = true
			continue
		}
		if fresh {
			cases, fresh = append(cases, brokenCase{line: i + 1}), false
		}
		c := &cases[len(cases)-1]
		switch text := strings.TrimPrefix(line[1:], " "); line[0] {
		case '-':
			c.old += "\n" + text
		case '+':
			c.new += "\n" + text
		case '!':
			c.message = append(c.message, text)
		default:
			t.Fatalf("broken.txt:%d: neither - nor + nor !", i+1)
		}
	}
	for i := range cases {
		cases[i].old, cases[i].new = strings.TrimPrefix(cases[i].old, "\n"), strings.TrimPrefix(cases[i].new, "\n")
	}
	return cases
}

// TestF52_BrokenFilesNameTheirPlace breaks one thing at a time: there is exactly
// one error, at the right line and column, and it says what is wrong.
func TestF52_BrokenFilesNameTheirPlace(t *testing.T) {
	const mark = "¦"
	base := readText(t, "testdata/base.toml")
	if _, err := parse("base.toml", base); err != nil {
		t.Fatalf("the base is broken itself: %v", err)
	}
	cases := brokenCases(t)
	if len(cases) < 200 {
		t.Fatalf("only %d broken files", len(cases))
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("broken.txt:%d", c.line), func(t *testing.T) {
			if n := strings.Count(base, c.old); n != 1 || strings.Count(c.new, mark) != 1 || len(c.message) == 0 {
				t.Fatalf("bad case: %q stands %d times in the base", c.old, n)
			}
			marked := strings.Replace(base, c.old, c.new, 1)
			before, after, _ := strings.Cut(marked, mark)
			line := strings.Count(before, "\n") + 1
			column := len([]rune(before[strings.LastIndexByte(before, '\n')+1:])) + 1
			_, err := parse("base.toml", before+after)
			var errs Errors
			if !errors.As(err, &errs) {
				t.Fatalf("want an error at %d:%d, got %v", line, column, err)
			}
			if len(errs) != 1 || errs[0].Line != line || errs[0].Column != column {
				t.Errorf("want one error at %d:%d, got:\n%v", line, column, err)
			}
			for _, part := range c.message {
				if !strings.Contains(errs[0].Message, part) {
					t.Errorf("%q does not say %q", errs[0].Message, part)
				}
			}
			if !strings.Contains(errs[0].Message, "; ") {
				t.Errorf("%q does not say what to do", errs[0].Message)
			}
		})
	}
}
