package hosttest

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Program writes an executable script and gives its path. No process begins meanwhile: one
// that did would have the file open for writing until it runs a program of its own, and who
// runs the script in that moment is told that its text is busy (go.dev/issue/22315).
func Program(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	syscall.ForkLock.RLock()
	err := os.WriteFile(path, []byte(text), 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
