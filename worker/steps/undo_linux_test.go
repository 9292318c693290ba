package steps

import (
	"os/exec"
	"strings"
	"testing"
)

func undoOutput(t *testing.T) (string, int) {
	t.Helper()
	cmd := exec.Command("sh", "-s")
	cmd.Stdin = strings.NewReader(firewall{action: actionUndo}.script())
	out, _ := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), cmd.ProcessState.ExitCode()
}

// TestUndoKilledWait: the table that a killed wait has left goes with an undo, and no other.
func TestUndoKilledWait(t *testing.T) {
	ownNetwork(t, func(t *testing.T) {
		run(t, "nft", "add table inet usher_wait_999999999; add table inet usher_waiting")
		if out, code := undoOutput(t); code != 0 {
			t.Errorf("exit %d: %s", code, out)
		}
		if out, err := exec.Command("nft", "list", "tables").CombinedOutput(); err != nil || string(out) != "table inet usher_waiting\n" {
			t.Errorf("left: %s %v", out, err)
		}
	})
}
