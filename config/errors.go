package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxErrors bounds a report. Nobody reads more, and a file of a few megabytes
// can have millions of mistakes.
const maxErrors = 1000

// Error is one problem and its place.
type Error struct {
	File    string
	Line    int    // from 1
	Column  int    // from 1, in characters
	Message string // what is wrong; what to do
}

// Error returns "file:line:column: message".
func (e Error) Error() string { return e.place() + ": " + e.Message }

func (e Error) place() string { return fmt.Sprintf("%s:%d:%d", e.File, e.Line, e.Column) }

// Errors is everything that is wrong, in the order of the files and places.
type Errors []Error

// Error returns one line for each problem.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find a single Error.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i := range e {
		errs[i] = e[i]
	}
	return errs
}

// problems collects what is wrong in all files.
type problems struct {
	found []problem
	full  bool // there are more
}

type problem struct {
	file int // the index of the file, by which they are sorted
	Error
}

func (p *problems) add(file int, e Error) { p.found = append(p.found, problem{file, e}) }

// isFull says that nothing more is to be added, and notes that there was more.
func (p *problems) isFull() bool {
	p.full = p.full || len(p.found) >= maxErrors
	return p.full
}

// err returns the sorted Errors, or nil.
func (p *problems) err() error {
	if len(p.found) == 0 {
		return nil
	}
	slices.SortStableFunc(p.found, func(a, b problem) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	errs := make(Errors, 0, len(p.found)+1)
	for _, f := range p.found {
		errs = append(errs, f.Error)
	}
	if p.full {
		last := errs[len(errs)-1]
		last.Message = fmt.Sprintf("more than %d errors, the others are not shown; mend these first", maxErrors)
		errs = append(errs, last)
	}
	return errs
}

// clean makes the message of a decoder short and printable.
func clean(s string) string {
	if len(s) > 4*maxQuoted {
		s = strings.ToValidUTF8(s[:4*maxQuoted], "") + "..."
	}
	s = strconv.QuoteToGraphic(strings.TrimSuffix(s, "."))
	return strings.ReplaceAll(s[1:len(s)-1], `\"`, `"`)
}

// maxQuoted is how many bytes of a value are shown.
const maxQuoted = 64

// quote shows a string of the file: quoted, in ASCII, and never long.
func quote(s string) string {
	if len(s) <= maxQuoted {
		return strconv.QuoteToASCII(s)
	}
	cut := maxQuoted
	for cut > maxQuoted-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.QuoteToASCII(s[:cut]) + "..."
}
