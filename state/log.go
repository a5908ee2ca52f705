package state

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
)

// contents is what a log holds.
type contents struct {
	entries map[ID]json.RawMessage
	index   index
	whole   int64 // bytes of whole lines
}

// load opens and reads a log. There may be none: then the file is nil, as it is
// after an error.
func load(path string, mode int) (*os.File, contents, error) {
	file, err := os.OpenFile(path, mode, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, contents{entries: map[ID]json.RawMessage{}, index: newIndex()}, nil
	}
	if err != nil {
		return nil, contents{index: newIndex()}, err
	}
	c, err := read(file, header())
	if err != nil {
		_ = file.Close()
		return nil, c, err
	}
	return file, c, nil
}

// read reads a log. Only its last line may be incomplete. Of a log that is damaged
// nothing is returned.
func read(r io.Reader, want string) (contents, error) {
	c := contents{entries: map[ID]json.RawMessage{}, index: newIndex()}
	nothing := contents{index: newIndex()}
	lines := bufio.NewReaderSize(r, bufferSize)
	for number := 1; ; number++ {
		text, err := lines.ReadBytes('\n')
		switch {
		case errors.Is(err, io.EOF) && number == 1 && !strings.HasPrefix(want, string(text)):
			return nothing, errors.New("it is no state log of vipd")
		case errors.Is(err, io.EOF): // a crash in the last write, or in the very first one
			return c, nil
		case err != nil:
			return nothing, err
		}
		at := extent{c.whole, int64(len(text))}
		c.whole += at.length
		text = text[:len(text)-1]
		if number == 1 {
			if string(text) != want {
				return nothing, fmt.Errorf("its format or host is %.64q, not %q", text, want)
			}
			continue
		}
		id, value, err := decode(text)
		if err != nil {
			return nothing, fmt.Errorf("line %d: %w", number, err)
		}
		c.index.note(entryLine{id, value == nil, at})
		if value == nil {
			delete(c.entries, id)
		} else {
			c.entries[id] = value
		}
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// decode reads one line of the log. A nil value says that the entry is deleted.
func decode(text []byte) (ID, json.RawMessage, error) {
	sum, payload, found := bytes.Cut(text, []byte(" "))
	if !found || fmt.Sprintf("%08x", crc32.Checksum(payload, castagnoli)) != string(sum) {
		return ID{}, nil, errors.New("the checksum is wrong")
	}
	var l line
	err := json.Unmarshal(payload, &l)
	return ID{l.Bucket, l.Key}, l.Value, err
}

// encode appends the line of one change. After an error out is as it was.
func encode(out []byte, id ID, value json.RawMessage) ([]byte, error) {
	payload, err := json.Marshal(line{id.Bucket, id.Key, value})
	if err != nil {
		return out, err
	}
	out = fmt.Appendf(out, "%08x ", crc32.Checksum(payload, castagnoli))
	return append(append(out, payload...), '\n'), nil
}

// extent is where in a file a line is, with its end.
type extent struct{ offset, length int64 }

// entryLine is a line of the log, and what it is about.
type entryLine struct {
	id      ID
	deletes bool
	at      extent
}

// digest stands for an ID in an index, in a fixed number of bytes and without a
// pointer. No two IDs have the same.
type digest [16]byte

func digestOf(id ID) (d digest) {
	sum := sha256.Sum256([]byte(id.Bucket + "\x00" + id.Key))
	copy(d[:], sum[:])
	return d
}

// index tells where in the log the lines in force are: the last one of each entry
// that is not deleted.
type index struct {
	lines map[digest]extent
	bytes int64 // of all of them
}

func newIndex() index { return index{lines: map[digest]extent{}} }

// note takes a line that follows the others.
func (i *index) note(l entryLine) {
	d := digestOf(l.id)
	i.bytes -= i.lines[d].length
	delete(i.lines, d)
	if !l.deletes {
		i.set(d, l.at)
	}
}

// set adds the line of an entry that had none.
func (i *index) set(d digest, at extent) {
	i.lines[d] = at
	i.bytes += at.length
}

// inOrder yields the lines as they follow each other in the file.
func (i *index) inOrder() iter.Seq2[digest, extent] {
	order := make([]digest, 0, len(i.lines))
	for d := range i.lines {
		order = append(order, d)
	}
	slices.SortFunc(order, func(a, b digest) int { return cmp.Compare(i.lines[a].offset, i.lines[b].offset) })
	return func(yield func(digest, extent) bool) {
		for _, d := range order {
			if !yield(d, i.lines[d]) {
				return
			}
		}
	}
}
