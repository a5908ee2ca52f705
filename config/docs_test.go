package config

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const reference = "../docs/configuration.md"

// docRow is a row of a table of the reference.
type docRow struct{ path, def, example, change string }

var docHeading = regexp.MustCompile(`^## \[\[?([a-z.]+)\]\]?$`)

func docRows(t *testing.T) []docRow {
	t.Helper()
	var rows []docRow
	table := ""
	for line := range strings.Lines(readText(t, reference)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "## ") {
			table = ""
			if m := docHeading.FindStringSubmatch(line); m != nil {
				table = m[1]
			}
		}
		cells := strings.Split(line, " | ")
		if table == "" || !strings.HasPrefix(line, "| `") {
			continue
		}
		if len(cells) < 5 {
			t.Fatalf("%s: a row with %d cells: %s", reference, len(cells), line)
		}
		bare := func(s string) string { return strings.Trim(strings.TrimPrefix(s, "| "), "`") }
		rows = append(rows, docRow{table + "." + bare(cells[0]), bare(cells[2]), bare(cells[3]), cells[4]})
	}
	return rows
}

// TestReferenceHasEveryKey keeps docs/configuration.md in step with the code: the
// keys, their order, their defaults, and whether they change live.
func TestReferenceHasEveryKey(t *testing.T) {
	var want, got []string
	for _, k := range newParser(modes).keys {
		change, def := "live", k.show(Default())
		if k.restart {
			change = "restart"
		}
		if k.path == "vip.allowed" {
			def = "required"
		}
		want = append(want, fmt.Sprintf("%s = %s, %s", k.path, def, change))
	}
	for _, path := range serviceKeys {
		want = append(want, path+", live")
	}
	for _, r := range docRows(t) {
		if strings.HasPrefix(r.path, "service.") {
			got = append(got, r.path+", "+r.change)
		} else {
			got = append(got, fmt.Sprintf("%s = %s, %s", r.path, r.def, r.change))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s has\n%s\n\nand the code\n%s", reference, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// companions are the keys without which an example means nothing.
var companions = map[string]string{
	"defaults.scheduler_flags": "scheduler = \"mh\"\n",
	"proxy.fallback":           "mode = \"ipvs\"\n",
	"service.scheduler_flags":  "scheduler = \"mh\"\n",
	"service.tunnel":           "forward = \"tunnel\"\n",
	"service.tunnel_port":      "forward = \"tunnel\"\ntunnel = \"gue\"\n",
}

// TestReferenceExamplesAreValid puts each example where it belongs.
func TestReferenceExamplesAreValid(t *testing.T) {
	const rest = "name = \"x\"\nvip = \"192.0.2.10\"\nport = 80\nbackends = []\n"
	for _, r := range docRows(t) {
		i := strings.LastIndexByte(r.path, '.')
		table, key := r.path[:i], r.path[i+1:]
		text := ""
		switch table {
		case "service":
			text = "[[service]]\n"
			for line := range strings.Lines(rest) {
				if name, _, _ := strings.Cut(line, " "); name != strings.TrimSuffix(key, "s") && name != key {
					text += line
				}
			}
			text += companions[r.path] + key + " = " + r.example + "\n"
		case "service.backend":
			text = "[[service]]\n" + rest + "[[service.backend]]\n" + key + " = " + r.example + "\n"
			if key != "address" {
				text += "address = \"10.0.0.1\"\n"
			}
		default:
			text = "[" + table + "]\n" + companions[r.path] + key + " = " + r.example + "\n"
		}
		if r.path != "vip.allowed" {
			text = "vip.allowed = [\"192.0.2.0/24\"]\n" + text
		}
		if table == "vip" && key != "allowed" {
			text = "[vip]\nallowed = [\"192.0.2.0/24\"]\n" + key + " = " + r.example + "\n"
		}
		if _, err := parse("example", text); err != nil {
			t.Errorf("%s: %v\n%s", r.path, err, text)
		}
	}
}

var fence = regexp.MustCompile("(?s)```toml\n(.*?)```")

// TestEveryExampleLoads parses examples/*.toml and every TOML block of the
// documents. A block without [vip] is a part of a file and gets one.
func TestEveryExampleLoads(t *testing.T) {
	blocks := map[string]string{}
	for _, pattern := range []string{"../examples/*.toml", "../README.md", "../docs/*.md", "../docs/*/*.md", "../proxier/*/*.md"} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			text := readText(t, name)
			if strings.HasSuffix(name, ".toml") {
				blocks[name] = text
				continue
			}
			for i, m := range fence.FindAllStringSubmatch(text, -1) {
				blocks[fmt.Sprintf("%s, block %d", name, i+1)] = m[1]
			}
		}
	}
	if len(blocks) < 4 {
		t.Fatalf("only %d examples found", len(blocks))
	}
	for name, text := range blocks {
		if !strings.Contains(text, "[vip]") {
			text = "vip.allowed = [\"192.0.2.0/24\", \"2001:db8::/64\"]\n" + text
		}
		c, err := parse(name, text)
		if err != nil {
			t.Errorf("%v", err)
		} else if len(c.Warnings) > 0 {
			t.Errorf("%s warns: %v", name, c.Warnings)
		}
	}
}

// TestFullExampleHasEveryKey: what can be said, examples/full.toml says.
func TestFullExampleHasEveryKey(t *testing.T) {
	text := readText(t, "../examples/full.toml")
	for _, r := range docRows(t) {
		key := r.path[strings.LastIndexByte(r.path, '.')+1:]
		if !regexp.MustCompile(`(?m)^ *` + key + ` = `).MatchString(text) {
			t.Errorf("%s is not in examples/full.toml", r.path)
		}
	}
}
