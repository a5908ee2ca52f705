package kerneltest

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

func TestOutputKeepsSubtestsAndTakesTheVerdict(t *testing.T) {
	tests := []struct {
		name, test, in, passed, status string
	}{
		{"pass", "TestX",
			"=== RUN   TestX\n=== RUN   TestX/B1_a\n    x_test.go:1: hello\n--- PASS: TestX (0.10s)\n    --- PASS: TestX/B1_a (0.00s)\nPASS\n",
			"=== RUN   TestX/B1_a\n    x_test.go:1: hello\n    --- PASS: TestX/B1_a (0.00s)\n", "PASS"},
		{"marked for test2json", "TestX",
			"\x16=== RUN   TestX\n\x16=== NAME  TestX\n\x16--- SKIP: TestX (0.10s)\nPASS\n",
			"\x16=== NAME  TestX\n", "SKIP"},
		{"subtest", "TestX/a",
			"=== RUN   TestX\n=== RUN   TestX/a\n--- FAIL: TestX (0.1s)\n    --- FAIL: TestX/a (0.1s)\nFAIL\n",
			"", "FAIL"},
		{"no verdict after a crash", "TestX", "=== RUN   TestX\npanic: oh", "panic: oh\n", ""},
		{"a test whose name begins alike", "TestX", "--- PASS: TestXY (0.1s)\n", "--- PASS: TestXY (0.1s)\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var to bytes.Buffer
			o := &output{test: tt.test, stream: true, to: &to}
			// A byte at a time: lines must not depend on how writes are cut.
			for _, b := range []byte(tt.in) {
				if _, err := o.Write([]byte{b}); err != nil {
					t.Fatal(err)
				}
			}
			o.Close()
			if to.String() != tt.passed || o.status != tt.status {
				t.Errorf("passed on %q with %q; want %q with %q", to.String(), o.status, tt.passed, tt.status)
			}
		})
	}
}

func TestOutputHoldsLinesWhenQuiet(t *testing.T) {
	o := &output{test: "TestX"}
	_, _ = o.Write([]byte("=== RUN   TestX\n    x_test.go:3: why\n--- FAIL: TestX (0.0s)\n"))
	if got := o.held(); got != "    x_test.go:3: why\n" || o.status != "FAIL" {
		t.Errorf("held %q with %q", got, o.status)
	}
}

func TestExactlyMatchesOneTest(t *testing.T) {
	for i, part := range strings.Split(exactly("TestX/a(b)"), "/") {
		re := regexp.MustCompile(part)
		want := []string{"TestX", "a(b)"}[i]
		if !re.MatchString(want) || re.MatchString(want+"y") || re.MatchString("y"+want) {
			t.Errorf("%s does not match exactly %s", part, want)
		}
	}
}
