package netfilter

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// RestoreError is a script that iptables-restore or the kernel refused. The
// COMMITs before the refused one stand, nothing of that one does.
type RestoreError struct {
	Line   int    // 1-based line of the script that was refused first; 0 if the tool did not say
	Text   string // that line
	Stderr string // what the tool said, whole
}

// Error says what was refused and why, in one line.
func (e *RestoreError) Error() string {
	reason := e.Stderr
	if i := strings.Index(reason, "\nTry `"); i >= 0 {
		reason = reason[:i]
	}
	reason = strings.Join(strings.Fields(reason), " ")
	if len(reason) > 300 {
		reason = reason[:300] + "..."
	}
	if e.Line == 0 {
		return "rules refused: " + reason
	}
	return fmt.Sprintf("rule %q refused: %s", e.Text, reason)
}

// errorLine matches the three ways in which iptables-restore 1.8 names a line:
// "Error occurred at line: 2", "line 4: RULE_APPEND failed", "line 2 failed".
var errorLine = regexp.MustCompile(`line:? (\d+)`)

// refused reports whether a tool ended because of what the script says, and not for
// want of something that it may get the next time. iptables-restore names the line
// then, whatever its exit status: exitResource stands for both. What names none is
// no iptables-restore, or one that is broken, and no rule is guilty of that.
func (e *exitError) refused() bool {
	if e.code == exitResource {
		for _, reason := range []string{"Cannot allocate memory", "No buffer space", "Resource temporarily unavailable", "Interrupted system call"} {
			if strings.Contains(e.stderr, reason) {
				return false
			}
		}
	}
	return errorLine.MatchString(e.stderr) && !e.noTable()
}

// noTable reports whether a legacy tool found no table: the kernel has none, or its
// module cannot be loaded, or we may not.
func (e *exitError) noTable() bool { return strings.Contains(e.stderr, "unable to initialize table") }

func newRestoreError(script []byte, exit *exitError) *RestoreError {
	e := &RestoreError{Stderr: strings.TrimSpace(exit.stderr)}
	m := errorLine.FindStringSubmatch(exit.stderr)
	if m == nil {
		return e
	}
	n, err := strconv.Atoi(m[1])
	lines := bytes.Split(script, []byte("\n"))
	if err != nil || n < 1 || n > len(lines) {
		return e
	}
	e.Line, e.Text = n, string(lines[n-1])
	return e
}
