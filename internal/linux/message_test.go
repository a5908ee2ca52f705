package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// entryKind is any message that does not end an answer.
const entryKind = 0x100

func TestNextReply(t *testing.T) {
	message := func(kind, flags uint16, body ...byte) []byte {
		b := make([]byte, unix.SizeofNlMsghdr, 64)
		binary.NativeEndian.PutUint32(b, uint32(unix.SizeofNlMsghdr+len(body)))
		binary.NativeEndian.PutUint16(b[4:], kind)
		binary.NativeEndian.PutUint16(b[6:], flags)
		binary.NativeEndian.PutUint32(b[8:], 5)
		return append(b, body...)
	}
	errno := func(e unix.Errno) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(-int32(e))) }
	tests := []struct {
		name    string
		b       []byte
		last    bool
		err     error
		refused bool
	}{
		{"entry", message(entryKind, 0, 1, 2, 3, 4), false, nil, false},
		{"end", message(unix.NLMSG_DONE, 0, 0, 0, 0, 0), true, nil, false},
		{"end without a status", message(unix.NLMSG_DONE, 0), true, nil, false},
		{"end with an error", message(unix.NLMSG_DONE, 0, errno(unix.EINTR)...), true, unix.EINTR, false},
		{"acknowledged", message(unix.NLMSG_ERROR, 0, errno(0)...), true, nil, false},
		{"refused", message(unix.NLMSG_ERROR, 0, errno(unix.ENOENT)...), true, unix.ENOENT, false},
		{"too short", []byte{1, 2, 3}, false, nil, true},
		{"cut off", message(entryKind, 0, 1, 2, 3, 4)[:18], false, nil, true},
		{"of no length", make([]byte, 16), false, nil, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			follows := message(entryKind, 0)
			b := tt.b
			if !tt.refused {
				b = append(bytes.Clone(b), follows...)
			}
			r, rest, err := NextReply(b)
			if tt.refused {
				if err == nil {
					t.Errorf("read as %+v", r)
				}
				return
			}
			if err != nil || r.Last != tt.last || !errors.Is(r.Err, tt.err) || r.Seq != 5 || !bytes.Equal(rest, follows) {
				t.Errorf("%+v, rest %x, %v", r, rest, err)
			}
		})
	}
}

func FuzzNextReply(f *testing.F) {
	f.Add(append(make([]byte, 16), 1, 2, 3))
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff})
	f.Add(make([]byte, 16))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			r, rest, err := NextReply(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) || len(r.Body) > len(b) {
				t.Fatal("no progress")
			}
			b = rest
		}
	})
}

// Attributes that are written are read, padded or not, and bytes that are none are an error.
func TestAttributes(t *testing.T) {
	var m []byte
	Nest(&m, 1, func() { m = append(m, 7) })
	Nest(&m, 2|unix.NLA_F_NESTED, func() { Nest(&m, 3, func() { m = append(m, 1, 2, 3, 4) }) })
	if len(m) != 8+4+8 {
		t.Fatalf("%d bytes: %x", len(m), m)
	}
	var kinds []uint16
	var err error
	for kind, b := range Attributes(m, &err) {
		kinds = append(kinds, kind)
		if kind == 2 {
			for kind, b := range Attributes(b, &err) {
				kinds = append(kinds, kind, uint16(len(b)))
			}
		} else if !bytes.Equal(b, []byte{7}) {
			t.Errorf("attribute %d is %x", kind, b)
		}
	}
	if err != nil || !slices.Equal(kinds, []uint16{1, 2, 3, 4}) {
		t.Errorf("%v, %v", kinds, err)
	}
	for _, bad := range [][]byte{{1}, {3, 0, 1, 0}, {9, 0, 1, 0, 1}, append(slices.Clone(m), 1, 2)} {
		err = nil
		for range Attributes(bad, &err) {
			continue
		}
		if err == nil {
			t.Errorf("%x is read", bad)
		}
	}
}

// What comes from elsewhere ends the loop as well.
func TestAttributesEndAtAnErrorOfTheLoop(t *testing.T) {
	var m []byte
	Nest(&m, 1, func() {})
	Nest(&m, 2, func() {})
	own := errors.New("own")
	var err error
	n := 0
	for range Attributes(m, &err) {
		n++
		err = own
	}
	if n != 1 || !errors.Is(err, own) {
		t.Errorf("%d rounds, %v", n, err)
	}
}

func FuzzAttributes(f *testing.F) {
	f.Add([]byte{5, 0, 1, 0, 7, 0, 0, 0, 4, 0, 2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var err error
		n := 0
		for _, payload := range Attributes(b, &err) {
			n += unix.SizeofNlAttr + len(payload)
		}
		if n > len(b) {
			t.Fatalf("%d bytes in attributes of %d", n, len(b))
		}
	})
}
