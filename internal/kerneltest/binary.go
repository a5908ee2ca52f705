package kerneltest

import (
	"context"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"testing"
	"time"
)

// BinaryEnv names the environment variable with the directory of programs that the
// lane has built already.
const BinaryEnv = "VIPD_BIN_DIR"

// Binary returns the path of a program of this repository, given its import path
// ("vipd/cmd/vipd"). The lanes have built it; a test that runs by itself builds it
// for itself.
func Binary(t testing.TB, importPath string) string {
	t.Helper()
	name := path.Base(importPath)
	if dir := os.Getenv(BinaryEnv); dir != "" {
		file := filepath.Join(dir, name)
		if _, err := os.Stat(file); err != nil {
			t.Fatalf("kerneltest: the lane has not built %s: %v", importPath, err)
		}
		return file
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	file := filepath.Join(t.TempDir(), name)
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", file, importPath).CombinedOutput(); err != nil {
		t.Fatalf("kerneltest: build %s: %v\n%s", importPath, err, out)
	}
	return file
}
