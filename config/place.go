package config

import (
	"bytes"
	"errors"
	"fmt"
	"sort"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2/unstable"
)

// Limits that keep a hostile file from costing more than its size.
const (
	maxDepth  = 16        // of tables and arrays in each other
	maxValues = 1_000_000 // in one file
	maxText   = 4096      // bytes of a key or of a value; the longest that is of use is a path
)

// source is one file while it is parsed.
type source struct {
	name     string
	index    int
	data     []byte
	lines    []int // the offset at which each line begins; made when first needed
	problems *problems
}

// at returns the Error at an offset into the file.
func (s *source) at(offset int, format string, args ...any) Error {
	if s.lines == nil {
		s.lines = []int{0}
		for i, b := range s.data {
			if b == '\n' {
				s.lines = append(s.lines, i+1)
			}
		}
	}
	line := sort.SearchInts(s.lines, offset+1)
	column := utf8.RuneCount(s.data[s.lines[line-1]:offset]) + 1
	return Error{File: s.name, Line: line, Column: column, Message: fmt.Sprintf(format, args...)}
}

func (s *source) fail(offset int, format string, args ...any) {
	if s.problems.isFull() {
		return
	}
	s.problems.add(s.index, s.at(offset, format, args...))
}

// checkText refuses what is no text in UTF-8, with advice for the usual cases.
func (s *source) checkText() bool {
	for _, mark := range []struct{ bytes, advice string }{
		{"\xef\xbb\xbf", "the file begins with a byte order mark; save it as UTF-8 without BOM"},
		{"\xff\xfe", "the file is UTF-16; save it as UTF-8"},
		{"\xfe\xff", "the file is UTF-16; save it as UTF-8"},
	} {
		if bytes.HasPrefix(s.data, []byte(mark.bytes)) {
			s.fail(0, "%s", mark.advice)
			return false
		}
	}
	if i := bytes.IndexByte(s.data, 0); i >= 0 {
		s.fail(i, "a NUL byte; save the file as UTF-8 text (it looks like UTF-16 or binary data)")
		return false
	}
	if !utf8.Valid(s.data) {
		i := 0
		for {
			r, size := utf8.DecodeRune(s.data[i:])
			if r == utf8.RuneError && size <= 1 {
				break
			}
			i += size
		}
		s.fail(i, "byte 0x%02x is not UTF-8; save the file as UTF-8", s.data[i])
		return false
	}
	if n := bytes.Count(s.data, []byte(",")) + bytes.Count(s.data, []byte("=")); n > maxValues {
		s.tooMany(0) // before the parser holds them all
		return false
	}
	return true
}

func (s *source) tooMany(offset int) {
	s.fail(offset, "more than %d values; divide the file into several in conf.d", maxValues)
}

// place says where a value is, and what is inside it.
type place struct {
	key     int  // offset of the key, of the table header, or of the array element
	value   int  // offset of the value
	defined bool // by a header or a key, not only passed through on the way to a deeper table
	fields  map[string]*place
	items   []*place
}

// places makes the tree of places of a file. It reports what breaks the grammar,
// every key that is set twice, and what is too much.
func (s *source) places() (*place, bool) {
	var p unstable.Parser
	p.Reset(s.data[:len(s.data):len(s.data)]) // without spare capacity, by which offsets are counted
	b := builder{s: s, p: &p, root: &place{defined: true}, ok: true}
	b.table = b.root
	for b.ok && p.NextExpression() {
		b.expression(p.Expression())
	}
	if err := p.Error(); err != nil {
		offset := len(s.data)
		var at *unstable.ParserError
		if errors.As(err, &at) {
			offset = min(max(cap(p.Data())-cap(at.Highlight), 0), len(s.data))
		}
		for offset > 0 && offset < len(s.data) && !utf8.RuneStart(s.data[offset]) {
			offset-- // at the end of the file it points at the last byte
		}
		s.fail(offset, "%s; mend the TOML here, what follows is not checked yet", clean(err.Error()))
		b.ok = false
	}
	return b.root, b.ok && !b.refused
}

// builder makes the tree from one expression after the other.
type builder struct {
	s       *source
	p       *unstable.Parser
	root    *place
	table   *place // the one of the last header
	places  int
	refused bool // something is wrong with the file; go on to find more
	ok      bool // false: stop
}

func (b *builder) expression(n *unstable.Node) {
	if b.places > maxValues {
		b.s.tooMany(int(n.Raw.Offset))
		b.ok = false
		return
	}
	switch n.Kind {
	case unstable.Table:
		if t, last := b.descend(b.root, n.Key()); t != nil {
			b.table = b.define(t, last, "table", 0)
		}
	case unstable.ArrayTable:
		if t, last := b.descend(b.root, n.Key()); t != nil {
			list := b.field(t, string(last.Data), int(last.Raw.Offset))
			b.table = &place{key: int(last.Raw.Offset), value: int(last.Raw.Offset), defined: true}
			list.defined = true
			list.items = append(list.items, b.table)
			b.places++
		}
	case unstable.KeyValue:
		b.keyValue(b.table, n, 1)
	}
}

// keyValue adds `a.b = value` to table.
func (b *builder) keyValue(table *place, n *unstable.Node, depth int) {
	if t, last := b.descend(table, n.Key()); t != nil {
		value := n.Value()
		b.fill(b.define(t, last, "key", valueOffset(b.s.data, n)), value, depth)
	}
}

// define adds the last part of a key, which may not be there yet.
func (b *builder) define(t *place, last *unstable.Node, what string, value int) *place {
	offset := int(last.Raw.Offset)
	f := b.field(t, string(last.Data), offset)
	if f.defined || what == "key" && f.fields != nil {
		first := b.s.at(f.key, "")
		b.s.fail(offset, "%s %s stands twice; remove one, the first is at line %d", what, quote(string(last.Data)), first.Line)
		b.refused = true
		return &place{key: offset, value: offset, defined: true}
	}
	f.key, f.value, f.defined = offset, max(offset, value), true
	return f
}

// descend walks along all parts of a key but the last, which it returns. Of a
// list of tables the last one is meant.
func (b *builder) descend(t *place, key unstable.Iterator) (*place, *unstable.Node) {
	for depth := 1; key.Next(); depth++ {
		n := key.Node()
		b.checkLength(n)
		if key.IsLast() {
			return t, n
		}
		if depth > maxDepth {
			b.tooDeep(int(n.Raw.Offset))
			return nil, nil
		}
		t = b.field(t, string(n.Data), int(n.Raw.Offset))
		if len(t.items) > 0 {
			t = t.items[len(t.items)-1]
		}
	}
	return nil, nil
}

// fill adds what is inside a value.
func (b *builder) fill(at *place, n *unstable.Node, depth int) {
	if n.Kind != unstable.Array && n.Kind != unstable.InlineTable {
		b.checkLength(n)
		return
	}
	if depth > maxDepth {
		b.tooDeep(at.value)
		return
	}
	for it := n.Children(); b.ok && it.Next(); {
		child := it.Node()
		if n.Kind == unstable.InlineTable {
			b.keyValue(at, child, depth+1)
			continue
		}
		offset := at.value // an array inside an array has no place of its own
		if child.Kind != unstable.Array {
			offset = int(child.Raw.Offset)
		}
		item := &place{key: offset, value: offset, defined: true}
		at.items = append(at.items, item)
		b.places++
		b.fill(item, child, depth+1)
	}
}

// checkLength keeps what is long from the decoder and from everything behind it.
func (b *builder) checkLength(n *unstable.Node) {
	if n.Raw.Length > maxText {
		b.s.fail(int(n.Raw.Offset), "a key or value of %d bytes; write one of at most %d", n.Raw.Length, maxText)
		b.refused = true
	}
}

func (b *builder) tooDeep(offset int) {
	b.s.fail(offset, "more than %d levels of tables and arrays in each other; no key of vipd needs that", maxDepth)
	b.ok = false
}

// field returns the place of a key in t, a new one if there is none.
func (b *builder) field(t *place, name string, offset int) *place {
	f, found := t.fields[name]
	if !found {
		f = &place{key: offset, value: offset}
		if t.fields == nil {
			t.fields = map[string]*place{}
		}
		t.fields[name] = f
		b.places++
	}
	return f
}

// valueOffset returns where the value of `key = value` begins. The parser tells
// it for scalars only; for the others it is behind the equals sign.
func valueOffset(data []byte, n *unstable.Node) int {
	if v := n.Value(); v.Kind != unstable.Array {
		return int(v.Raw.Offset)
	}
	end := 0
	for key := n.Key(); key.Next(); {
		end = int(key.Node().Raw.Offset + key.Node().Raw.Length)
	}
	for end < len(data) && (data[end] == ' ' || data[end] == '\t' || data[end] == '=') {
		end++
	}
	return end
}
