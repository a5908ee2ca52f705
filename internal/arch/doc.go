// Package arch holds the rules of the house that no compiler checks, as tests: which
// package may import which (docs/architecture.md), and that no package has state of
// its own. A test that fails here says the reason of the rule it found broken.
package arch
