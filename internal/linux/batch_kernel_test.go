//go:build kernel

package linux

import (
	"encoding/binary"
	"errors"
	"maps"
	"testing"

	"golang.org/x/sys/unix"

	"vipd/internal/kerneltest"
)

// link is a request about a device by its number: to read it, or to change nothing of it.
func link(kind uint16, index uint32) []byte {
	m := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(m[unix.SizeofNlMsghdr+4:], index)
	return m
}

// Of a batch the kernel names exactly those messages that it refuses, also if these are
// all of them, or the last one; and the socket is as good as new afterwards.
func TestABatchTellsWhichMessagesAreRefused(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	s, err := OpenSocket(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, tt := range []struct {
		n   int
		bad func(i int) bool
	}{
		{1, func(int) bool { return false }},
		{1, func(int) bool { return true }},
		{MaxBatch, func(i int) bool { return i%3 == 0 }},
		{MaxBatch, func(i int) bool { return i == MaxBatch-1 }},
		{MaxBatch, func(int) bool { return true }},
		{MaxBatch, func(int) bool { return false }},
	} {
		var batch []byte
		want, got := map[int]bool{}, map[int]bool{}
		for i := range tt.n {
			index := uint32(1) // lo
			if tt.bad(i) {
				index, want[i] = 9999, true
			}
			batch = append(batch, link(unix.RTM_SETLINK, index)...)
		}
		err := s.Batch(t.Context(), batch, tt.n, func(i int, errno unix.Errno) {
			if errno != unix.ENODEV {
				t.Errorf("message %d: %v", i, errno)
			}
			got[i] = true
		})
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("refused are %d messages of %d, want %d (%v)", len(got), tt.n, len(want), err)
		}
		var index uint32
		err = s.Ask(t.Context(), link(unix.RTM_GETLINK, 1), func(body []byte) error {
			index = binary.NativeEndian.Uint32(body[4:])
			return nil
		})
		if err != nil || index != 1 {
			t.Errorf("the next answer is of device %d, %v", index, err)
		}
		if err := s.Ask(t.Context(), link(unix.RTM_GETLINK, 9999), nil); !errors.Is(err, unix.ENODEV) {
			t.Errorf("a device that is not there: %v", err)
		}
	}
}
