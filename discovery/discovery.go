// Package discovery finds services. A Source knows what should be (a file, a
// store); the Hub decides what of it is accepted, source by source.
//
// The rule for trouble: it is better to work from the last good set than from a
// partial or doubtful one. Nothing that a source says, and no silence of it,
// takes a service away before the policy of the Hub has agreed (hold.go).
package discovery

import (
	"context"

	"vipd/lb"
)

// Source finds services and tells them to a Sink.
type Source interface {
	// Run publishes the full set once as soon as it is known, and again after
	// each change, until ctx ends; then it returns nil. It returns an error only
	// for what trying again cannot mend. Run is called again after it failed, so
	// it starts from nothing each time.
	Run(ctx context.Context, to Sink) error
}

// Sink takes what a Source found. It never blocks, and may be used by the
// goroutines of one Run until that Run returns.
type Sink interface {
	// Publish says that set is all there is. The set and what it points to must
	// not be changed afterwards. A spec that did not change may keep its pointer.
	Publish(set Set)
	// Report says how the last question to the source was answered, also when
	// nothing changed: silence means a dead source. A Report with class Error or
	// Untrusted leaves the accepted set as it is.
	Report(report Report)
}

// Set is everything a source knows at one moment.
type Set struct {
	Services []*lb.Spec // normalized; any order; of two with one Key one wins, the other is rejected
	Rejected []Rejection
	Verified bool   // a consistent read: it may confirm a removal that is held
	Revision string // the version of the answer in the words of the source; may be empty
}

// Rejection is an entry that a source found and could not use.
type Rejection struct {
	Entry  string `json:"entry"`  // where: a store's key, or file:line:column
	Reason string `json:"reason"` // what is wrong, and what to do
}

// Class says how an answer of a source is to be taken (policy rule R1).
type Class string

// The classes of an answer.
const (
	OK        Class = "ok"
	OKShrink  Class = "ok-shrink" // trusted, but so much went that the removals are held
	OKEmpty   Class = "ok-empty"  // trusted, and nothing is left: held until confirmed
	Error     Class = "error"     // no answer
	Untrusted Class = "untrusted" // an answer that must not be believed
)

// failed reports whether there is nothing in the answer to act on.
func (c Class) failed() bool { return c == Error || c == Untrusted }

// Report is what a source says about itself.
type Report struct {
	Class    Class
	Err      error  // why, for Error and Untrusted
	Revision string // the version of the answer, if there was one
}
