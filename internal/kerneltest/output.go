package kerneltest

import (
	"bytes"
	"io"
	"strings"
)

// output takes what the inner process prints, which is what `go test -v` prints for
// one test. It passes on the lines of subtests and logs, so that test2json sees the
// subtests as children of the outer test, and keeps the verdict on the test itself,
// which the outer process prints again.
type output struct {
	test   string
	stream bool // pass lines on as they come; else keep them for held
	to     io.Writer

	status  string // PASS, FAIL, SKIP, or empty while there is no verdict
	partial []byte
	kept    bytes.Buffer
}

// marker begins the lines that -test.v=test2json makes for test2json.
const marker = "\x16"

// Write takes the next bytes; it never fails.
func (o *output) Write(p []byte) (int, error) {
	o.partial = append(o.partial, p...)
	for {
		i := bytes.IndexByte(o.partial, '\n')
		if i < 0 {
			return len(p), nil
		}
		o.line(string(o.partial[:i+1]))
		o.partial = o.partial[i+1:]
	}
}

// Close takes a last line without an end.
func (o *output) Close() {
	if len(o.partial) > 0 {
		o.line(string(o.partial) + "\n")
		o.partial = nil
	}
}

// held returns the lines that were not passed on.
func (o *output) held() string { return o.kept.String() }

func (o *output) line(s string) {
	if o.own(strings.TrimSuffix(strings.TrimPrefix(s, marker), "\n")) {
		return
	}
	if o.stream {
		_, _ = io.WriteString(o.to, s)
		return
	}
	o.kept.WriteString(strings.TrimPrefix(s, marker))
}

// own tells whether a line is about the test itself or the whole run: the outer
// process prints the like of it. A subtest that is isolated has its verdict
// indented, below those of its parents, whose verdicts are not ours to print.
func (o *output) own(s string) bool {
	if s == "PASS" || s == "FAIL" {
		return true
	}
	f := strings.Fields(s)
	if len(f) < 3 || f[0] != "===" && f[0] != "---" {
		return false
	}
	if f[2] != o.test && !strings.HasPrefix(o.test, f[2]+"/") {
		return false
	}
	if f[0] == "===" {
		return f[1] != "NAME"
	}
	if f[2] == o.test {
		o.status = strings.TrimSuffix(f[1], ":")
	}
	return true
}
