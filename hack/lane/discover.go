package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// pkg is a package with kernel tests.
type pkg struct {
	path, dir string
	tests     []string // of the files with the tag kernel
	// vm are those of them that run in the virtual machine, by mode; "" is that which
	// the test takes by itself.
	vm map[string][]string
}

// vmDirective marks a test, or by standing before the package clause a file of tests,
// as one that runs in the virtual machine too. Emulation is 20 to 50 times slower
// where programs are started, so that is for what its kernel alone has. A package
// without any mark runs all its kernel tests there.
//
// "//lane:vm ipvs" has the test run there in that mode ($VIPD_MODE); both marks
// together, both ways.
const vmDirective = "//lane:vm"

// kernelTests finds the tests in files that are there with the tag kernel only.
func kernelTests(ctx context.Context) ([]pkg, error) {
	plain, err := testFiles(ctx)
	if err != nil {
		return nil, err
	}
	tagged, err := testFiles(ctx, "-tags=kernel")
	if err != nil {
		return nil, err
	}
	var found []pkg
	for _, p := range tagged {
		var without []string
		if i := slices.IndexFunc(plain, func(q listed) bool { return q.ImportPath == p.ImportPath }); i >= 0 {
			without = plain[i].files()
		}
		one := pkg{path: p.ImportPath, dir: p.Dir}
		for _, f := range p.files() {
			if slices.Contains(without, f) {
				continue
			}
			if err := one.addTests(f); err != nil {
				return nil, err
			}
		}
		if len(one.vm) == 0 {
			one.vm = map[string][]string{"": one.tests}
		}
		if len(one.tests) > 0 {
			found = append(found, one)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("found no test with the tag kernel")
	}
	return found, nil
}

// listed is what `go list -json` says of a package.
type listed struct {
	ImportPath, Dir           string
	TestGoFiles, XTestGoFiles []string
}

func (l listed) files() []string { return slices.Concat(l.TestGoFiles, l.XTestGoFiles) }

func testFiles(ctx context.Context, flags ...string) ([]listed, error) {
	args := append([]string{"list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles"}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, packages())...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list packages: %w", err)
	}
	var all []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var l listed
		switch err := d.Decode(&l); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("list packages: %w", err)
		}
		all = append(all, l)
	}
}

// addTests adds the tests of one file.
func (p *pkg) addTests(name string) error {
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	var all []string
	for _, c := range f.Comments {
		if c.End() < f.Package {
			all = append(all, marks(c)...)
		}
	}
	if p.vm == nil {
		p.vm = map[string][]string{}
	}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Test") || fn.Name.Name == "TestMain" {
			continue
		}
		p.tests = append(p.tests, fn.Name.Name)
		for _, mode := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(all, marks(fn.Doc))))) {
			p.vm[mode] = append(p.vm[mode], fn.Name.Name)
		}
	}
	return nil
}

// marks returns the modes that the directives in a comment name.
func marks(c *ast.CommentGroup) []string {
	var modes []string
	if c == nil {
		return nil
	}
	for _, line := range c.List {
		if rest, ok := strings.CutPrefix(line.Text, vmDirective); ok && (rest == "" || rest[0] == ' ') {
			modes = append(modes, strings.TrimSpace(rest))
		}
	}
	return modes
}
