package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "vipd"

// A rule says what the packages below a folder may import of this module. What is not
// listed is forbidden, so a new folder needs a rule, and a thought.
type rule struct {
	folder string
	own    []string // folders of ours, each with what is below it
	std    bool     // no other module either
	reason string
}

// The first rule whose folder fits is the one that counts.
var rules = []rule{
	{"lb/lbtest", []string{"lb"}, true, "what builds values of lb for tests knows lb alone"},
	{"lb", nil, true, "lb is the vocabulary that everything hangs on: values of the standard library only"},
	{"config", []string{"lb"}, false, "the configuration is read without knowing who will use it"},
	{"discovery", []string{"discovery", "lb", "internal/latest"}, false, "a source finds; it decides nothing and touches no kernel"},
	{"desired", []string{"lb"}, false, "the decision is pure: facts and the time in, a snapshot out"},
	{"health", []string{"health", "lb", "internal/latest"}, false, "health judges backends and touches no kernel"},
	{"proxier", []string{"proxier", "lb", "internal/ipvs", "internal/linux", "internal/netfilter", "internal/latest", "internal/diff"}, false,
		"a proxier makes a snapshot true and knows nothing of discovery, health or the configuration"},
	{"vip", []string{"proxier", "lb", "internal/linux", "internal/netfilter", "internal/latest", "internal/diff"}, false,
		"the door serves every mode and knows none of them, nor where services come from"},
	{"reconciler", []string{"desired", "discovery", "health", "proxier", "lb", "internal/latest"}, false,
		"the loop knows contracts; the kernel and the file are behind them"},
	{"state", nil, false, "the log of state knows keys and bytes; those who store values know what they mean"},
	{"admin", []string{"reconciler", "config", "proxier", "lb"}, false, "the socket shows and asks; it does nothing by itself"},
	{"internal/linux", nil, false, "what every line to the kernel needs knows no object of ours"},
	{"internal/ipvs", []string{"lb", "internal/linux"}, false, "the line to the kernel knows virtual servers and destinations, not services"},
	{"internal/netfilter", []string{"lb", "internal/linux"}, false, "the line to the kernel knows tables, sets and entries, not services"},
	{"internal/latest", nil, true, "a small tool for everybody depends on nobody"},
	{"internal/diff", nil, true, "a small tool for everybody depends on nobody"},
	{"internal/loss", []string{"internal/loss"}, false, "what measures vipd shares no code with it"},
	{"internal/kerneltest", nil, false, "what tests vipd shares no code with it"},
	{"internal/testrun", nil, true, "test tools share no code with what they test"},
	{"internal/rows", []string{"internal/testrun"}, true, "test tools share no code with what they test"},
	{"internal/arch", nil, true, "test tools share no code with what they test"},
	{"hack", []string{"internal/testrun", "internal/rows"}, true, "test tools share no code with what they test"},
	{"e2e", []string{"internal/kerneltest", "internal/loss"}, false, "end-to-end tests know the program by its outside only"},
	{"bench", []string{"desired", "discovery", "internal/ipvs", "internal/kerneltest", "internal/netfilter", "lb", "proxier", "reconciler", "state", "vip"}, false,
		"benchmarks wire the parts as the program does, without its file and socket"},
	{"cmd", []string{"admin", "config", "desired", "discovery", "health", "internal/ipvs", "internal/latest", "internal/linux",
		"internal/netfilter", "lb", "proxier", "reconciler", "state", "vip"}, false, "the program wires everything, but no test tool"},
}

// below tells whether a package is a folder or in it.
func below(pkg, folder string) bool { return pkg == folder || strings.HasPrefix(pkg, folder+"/") }

// broken says what is wrong with an import; empty if nothing is. from is a folder.
func broken(from, imported string) string {
	i := slices.IndexFunc(rules, func(r rule) bool { return below(from, r.folder) })
	if i < 0 {
		return "there is no rule for this folder; add one here and to docs/architecture.md"
	}
	r := rules[i]
	if own, ok := strings.CutPrefix(imported, module+"/"); ok {
		if !slices.ContainsFunc(r.own, func(folder string) bool { return below(own, folder) }) {
			return r.reason
		}
		return ""
	}
	if first, _, _ := strings.Cut(imported, "/"); r.std && strings.Contains(first, ".") {
		return r.reason
	}
	return ""
}

func TestDependenciesPointDown(t *testing.T) {
	n := 0
	for folder, files := range sources(t) {
		for _, f := range files {
			for _, spec := range f.Imports {
				n++
				imported, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				if why := broken(folder, imported); why != "" {
					t.Errorf("%s imports %s: %s", folder, imported, why)
				}
			}
		}
	}
	if n < 50 {
		t.Errorf("saw %d imports: this test looks in the wrong place", n)
	}
}

func TestBrokenSeesWhatIsForbidden(t *testing.T) {
	for _, tt := range []struct {
		from, imported string
		bad            bool
	}{
		{"lb", "net/netip", false},
		{"lb", "vipd/internal/latest", true},
		{"lb", "golang.org/x/sys/unix", true},
		{"proxier/iptables", "vipd/config", true},
		{"proxier/iptables", "vipd/proxier", false},
		{"vip", "vipd/proxier/iptables", false}, // see TestNoPackageKnowsAMode
		{"cmd/vipd", "vipd/internal/kerneltest", true},
		{"newthing", "fmt", true},
	} {
		if got := broken(tt.from, tt.imported) != ""; got != tt.bad {
			t.Errorf("%s imports %s: forbidden is %v, want %v", tt.from, tt.imported, got, tt.bad)
		}
	}
}

// A mode and a source are known to the program alone, which lists them in wire.go, and
// to the benchmarks.
func TestNoPackageKnowsAMode(t *testing.T) {
	for folder, files := range sources(t) {
		for _, f := range files {
			for _, spec := range f.Imports {
				imported := strings.Trim(spec.Path.Value, `"`)
				for _, kind := range []string{"vipd/proxier/", "vipd/discovery/"} {
					if strings.HasPrefix(imported, kind) && !below(folder, "cmd") && !below(folder, "bench") && !below(module+"/"+folder, imported) {
						t.Errorf("%s imports %s: only cmd/vipd/wire.go and the benchmarks know which modes and sources there are", folder, imported)
					}
				}
			}
		}
	}
}

// State that belongs to a package is shared by everything in the process, tests too.
func TestNoGlobalChanges(t *testing.T) {
	for folder, files := range sources(t) {
		globals := map[string]bool{}
		for _, f := range files {
			for _, d := range f.Decls {
				if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
					for _, s := range g.Specs {
						for _, name := range s.(*ast.ValueSpec).Names {
							globals[name.Name] = true
						}
					}
				}
			}
		}
		for _, f := range files {
			for _, name := range assigned(f, globals) {
				t.Errorf("%s assigns to its global %s: hold state in a value with an owner", folder, name)
			}
		}
	}
}

func TestAssignedSeesEveryWayToChangeAGlobal(t *testing.T) {
	const text = `package p
var a, b, c, d, e, f int
func g() {
	a = 1; b++; c += 2; d[1] = 3; e.x.y = 4
	f := 5; f = 6
	if true { a := 7; a = 8; _ = a }
}
func h(b int) { b = 1 }`
	f, err := parser.ParseFile(token.NewFileSet(), "p.go", text, 0)
	if err != nil {
		t.Fatal(err)
	}
	globals := map[string]bool{"a": true, "b": true, "c": true, "d": true, "e": true, "f": true}
	if got := fmt.Sprint(assigned(f, globals)); got != "[a b c d e]" {
		t.Errorf("assigned globals are %v, want [a b c d e]", got)
	}
}

// assigned returns the names among globals that a file assigns to, or to a part of.
// The parser has resolved names within the file: a name that it found elsewhere than
// at the top of the file is a local one.
func assigned(f *ast.File, globals map[string]bool) []string {
	found := map[string]bool{}
	note := func(e ast.Expr) {
		id := base(e)
		if id == nil || id.Name == "_" || !globals[id.Name] {
			return
		}
		if id.Obj == nil || f.Scope.Lookup(id.Name) == id.Obj {
			found[id.Name] = true
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, e := range n.Lhs {
					note(e)
				}
			}
		case *ast.IncDecStmt:
			note(n.X)
		}
		return true
	})
	return slices.Sorted(maps.Keys(found))
}

// base returns the variable that an expression is a part of: a of a.b[c].
func base(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// sources parses all Go files of the module but tests, by folder.
func sources(t *testing.T) map[string][]*ast.File {
	t.Helper()
	const root = "../.."
	all := map[string][]*ast.File{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			hidden := name != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata")
			if hidden || name == path.Join(root, "tools") || name == path.Join(root, "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(root, filepath.Dir(name))
		if err != nil {
			return err
		}
		all[filepath.ToSlash(folder)] = append(all[filepath.ToSlash(folder)], f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
