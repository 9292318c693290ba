package main

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"example.org/usher/worker/audit"
)

// execWorker starts a worker whose one step runs program, a line of sh, with the name of a
// fifo as $1, and gives the fifo once the program has opened it, with its first line.
func execWorker(t *testing.T, program, settings string) (c *cloud, w *worker, pipe *bufio.Reader, first string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("exec steps need Linux")
	}
	name := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	c = startCloud(t, scenario(3, true))
	step := `- exec: {command: [/bin/sh, -c, '` + program + `', "{{.InstanceID}}", ` + name + `], gone_code: 68, timeout: 4m}`
	w = startWorker(t, c, keys, step, settings)
	c.scaleIn(t, 1)
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	pipe = bufio.NewReader(file)
	if first, err = pipe.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return c, w, pipe, strings.TrimSpace(first)
}

// TestExec: from the config file to a program and its end, which the audit log has.
func TestExec(t *testing.T) {
	t.Parallel()
	c, w, _, ignored := execWorker(t, `exec 3>"$1"; grep SigIgn: /proc/self/status >&3; echo "$0" is "$USHER_INSTANCE_ID"; env`, "")
	mask, err := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(ignored, "SigIgn:")), 16, 64)
	if err != nil || mask&(1<<(syscall.SIGPIPE-1)) != 0 {
		t.Errorf("the program ignores SIGPIPE, which only the worker is to survive: %s, %v", ignored, err)
	}
	c.awaitCompleted(t, 1, "CONTINUE")
	end := w.awaitRecords(t, 1, audit.StepFinished)[0]
	id := string(end.Instance)
	if !strings.HasPrefix(end.Reason, `exit code 0, output `) || !strings.Contains(end.Reason, id+" is "+id) || strings.Contains(end.Reason, "ALIBABA_CLOUD") {
		t.Errorf("recorded: %+v", end)
	}
	w.signal(t, syscall.SIGTERM)
	w.wantExit(t)
}

// TestExecGone: the exit code that was named ends the job as done.
func TestExecGone(t *testing.T) {
	t.Parallel()
	c, w, _, _ := execWorker(t, `echo up >"$1"; exit 68`, "")
	c.awaitCompleted(t, 1, "CONTINUE")
	if end := w.awaitRecords(t, 1, audit.StepFinished)[0]; end.Result != "gone" {
		t.Errorf("recorded: %+v", end)
	}
}

// TestExecDiesWithItsWorker: a worker that is killed leaves no program behind that another
// worker would start beside it.
func TestExecDiesWithItsWorker(t *testing.T) {
	t.Parallel()
	// exec: Linux kills the program itself, not its children.
	_, w, pipe, _ := execWorker(t, `exec 3>"$1"; echo up >&3; exec sleep 600`, "")
	w.signal(t, syscall.SIGKILL)
	if rest, err := io.ReadAll(pipe); err != nil || len(rest) > 0 {
		t.Errorf("read %q, %v", rest, err)
	}
}

// TestExecAtAStop: a worker that is told to stop ends the program with its children, and
// hands the action back.
func TestExecAtAStop(t *testing.T) {
	t.Parallel()
	_, w, pipe, _ := execWorker(t, `exec 3>"$1"; trap "echo bye >&3; exit 0" TERM; sleep 600 & echo up >&3; wait`, "shutdown_grace: 0s\n")
	w.signal(t, syscall.SIGTERM)
	w.wantExit(t)
	if rest, err := io.ReadAll(pipe); err != nil || string(rest) != "bye\n" {
		t.Errorf("read %q, %v", rest, err)
	}
	if end := w.awaitRecords(t, 1, audit.StepFinished)[0]; end.Result != "cancelled" {
		t.Errorf("recorded: %+v", end)
	}
	if n := count(w.records(t), audit.Released); n != 1 {
		t.Errorf("%d actions were handed back, want 1", n)
	}
}

// TestExecWithoutItsProgram: what can't be run is told at the start.
func TestExecWithoutItsProgram(t *testing.T) {
	t.Parallel()
	dir := configFor(t, "http://127.0.0.1:1", "- exec: {command: [/nowhere/at/all]}", "")
	said := usher(t, "", "run", "--config", dir)
	if said.code != 1 || !strings.Contains(said.stderr, "usher: web.yaml: line 11: exec: the program can't be found: stat /nowhere/at/all: no such file or directory") {
		t.Errorf("%+v", said)
	}
}
