package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// node is a value of a file, and where it is.
type node struct {
	src   *source
	place *place
	table string // the table it is, or is in: "service.backend"
	value any    // as BurntSushi/toml decodes into an any
}

// parseFile returns the root of a file that is TOML.
func parseFile(s *source) (node, bool) {
	if !s.checkText() {
		return node{}, false
	}
	root, ok := s.places()
	if !ok {
		return node{}, false
	}
	values, ok := s.decode()
	return node{src: s, place: root, value: values}, ok
}

// decode reads the values. What it refuses is grammar that the other parser lets
// pass: numbers out of range, impossible dates, tables that contradict.
func (s *source) decode() (values map[string]any, ok bool) {
	defer func() {
		if r := recover(); r != nil { // the decoder panics where it believes to have a bug
			s.fail(0, "the TOML decoder failed: %s; please report this file", quote(fmt.Sprint(r)))
			ok = false
		}
	}()
	_, err := toml.Decode(string(s.data), &values)
	if err == nil {
		return values, true
	}
	offset, message := 0, err.Error()
	if at, is := err.(toml.ParseError); is { //nolint:errorlint // Decode returns it as it is
		offset, message = min(max(at.Position.Start, 0), len(s.data)), at.Message
	}
	s.fail(offset, "%s; mend the TOML here, what follows is not checked yet", clean(message))
	return nil, false
}

// fail reports a problem with the value.
func (n node) fail(format string, args ...any) {
	n.src.fail(n.place.value, format, args...)
}

// failKey reports a problem with the key, or with the table at its header.
func (n node) failKey(format string, args ...any) {
	n.src.fail(n.place.key, format, args...)
}

// String returns "file:line:column" of the value.
func (n node) String() string { return n.src.at(n.place.value, "").place() }

// field returns the value of a key in a table.
func (n node) field(name string) (node, bool) {
	fields, _ := n.value.(map[string]any)
	v, found := fields[name]
	return node{n.src, n.inside(name), n.table, v}, found
}

// inside returns the place of a field, or its own if that is not known.
func (n node) inside(name string) *place {
	if p := n.place.fields[name]; p != nil {
		return p
	}
	return n.place
}

// names returns the keys of a table in the order of the file.
func (n node) names() []string {
	fields, _ := n.value.(map[string]any)
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if d := n.inside(a).key - n.inside(b).key; d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return names
}

// subtable returns the table `name` in n, and whether it is there as a table.
func (n node) subtable(name string) (node, bool) {
	f, found := n.field(name)
	f.table = join(n.table, name)
	if !found {
		return f, false
	}
	if _, is := f.value.(map[string]any); !is {
		f.failKey("%s is a table, not %s; write [%s] once and its keys below", name, typeOf(f.value), f.table)
		return f, false
	}
	return f, true
}

// list returns the elements of an array.
func (n node) list() ([]node, bool) {
	var values []any
	switch v := n.value.(type) {
	case []any:
		values = v
	case []map[string]any:
		for _, table := range v {
			values = append(values, table)
		}
	default:
		n.fail("%s is not a list; write [...]", typeOf(n.value))
		return nil, false
	}
	nodes := make([]node, len(values))
	for i, v := range values {
		at := n.place
		if i < len(n.place.items) {
			at = n.place.items[i]
		}
		nodes[i] = node{n.src, at, n.table, v}
	}
	return nodes, true
}

// tables returns the tables [[name]] in n.
func (n node) tables(name string) []node {
	f, found := n.field(name)
	if !found {
		return nil
	}
	f.table = join(n.table, name)
	if _, single := f.value.(map[string]any); single {
		f.failKey("%s is a list of tables; write [[%s]]", name, f.table)
		return nil
	}
	list, _ := f.list()
	tables := list[:0]
	for _, t := range list {
		if _, is := t.value.(map[string]any); !is {
			t.fail("%s is not a table; write [[%s]]", typeOf(t.value), f.table)
			continue
		}
		tables = append(tables, t)
	}
	return tables
}

func (n node) text() (string, bool) {
	s, ok := n.value.(string)
	if !ok {
		n.fail("%s is not a string; put it in quotes", typeOf(n.value))
	}
	return s, ok
}

func (n node) boolean() (bool, bool) {
	b, ok := n.value.(bool)
	if !ok {
		n.fail("%s is not a truth value; write true or false", typeOf(n.value))
	}
	return b, ok
}

// integer reads a whole number from low to high.
func (n node) integer(low, high int64) (int64, bool) {
	i, ok := n.value.(int64)
	switch {
	case !ok:
		n.fail("%s is not a whole number; write one from %d to %d", typeOf(n.value), low, high)
	case i < low || i > high:
		n.fail("%d is out of range; write a number from %d to %d", i, low, high)
		ok = false
	}
	return i, ok
}

// duration reads a string with a unit, from low to high.
func (n node) duration(low, high time.Duration) (time.Duration, bool) {
	s, ok := n.value.(string)
	if !ok {
		n.fail(`%s is not a duration; write a string with a unit, like "5s" or "1m30s"`, typeOf(n.value))
		return 0, false
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil || s[len(s)-1] < 'a': // ParseDuration takes "0" without a unit
		n.fail(`%s is not a duration; write a number with a unit (ms, s, m, h), like "5s" or "1m30s"`, quote(s))
		return 0, false
	case d < low || d > high:
		n.fail("%s is out of range; write a duration from %s to %s", quote(s), FormatDuration(low), FormatDuration(high))
		return 0, false
	}
	return d, true
}

// word reads one of some words. It returns the known one, since that of the file
// would keep all of the file in memory.
func (n node) word(words ...string) (string, bool) {
	s, ok := n.text()
	if !ok {
		return "", false
	}
	i := slices.Index(words, s)
	if i < 0 {
		n.fail("%s is not known here; %s", quote(s), suggest(s, words))
		return "", false
	}
	return words[i], true
}

// typeOf names the type of a decoded value.
func typeOf(v any) string {
	switch v := v.(type) {
	case string:
		return "the string " + quote(v)
	case int64:
		return fmt.Sprintf("the number %d", v)
	case float64:
		return fmt.Sprintf("the number %v", v)
	case bool:
		return fmt.Sprint(v)
	case []any, []map[string]any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

// join makes the name of a table inside another one.
func join(table, name string) string {
	if table == "" {
		return name
	}
	return table + "." + name
}
