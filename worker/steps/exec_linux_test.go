package steps

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// shell is a step that runs a line of sh, which finds its arguments in $1 and so on.
func shell(line string, args ...string) Exec {
	return Exec{Command: append([]string{"/bin/sh", "-c", line, "sh"}, args...)}
}

// fifo is a pipe with a name, by which a program says how far it is: opening one end
// waits for the other, and reading ends when nobody holds it for writing any more.
func fifo(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func openFifo(t *testing.T, name string) *bufio.Reader {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return bufio.NewReader(file)
}

func line(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	text, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(text)
}

// allGone returns when no process holds the fifo any more.
func allGone(t *testing.T, r *bufio.Reader) {
	t.Helper()
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("read %q, %v, want nothing and the end", rest, err)
	}
}

// started runs the step beside the test.
func started(ctx context.Context, e Exec, in messages.Instance) (end func() (string, error)) {
	type result struct {
		detail string
		err    error
	}
	done := make(chan result, 1)
	go func() {
		detail, err := e.Run(ctx, in, 0)
		done <- result{detail, err}
	}()
	return func() (string, error) { r := <-done; return r.detail, r.err }
}

// The program gets the facts, what the operator gave it, and nothing else that the worker
// has: above all no keys.
func TestExecEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"ALIBABA_CLOUD_ACCESS_KEY_SECRET": "usherTESTsecret", "ALIBABA_CLOUD_SECURITY_TOKEN": "usherTESTsecret",
		"USHER_MAX_JOBS": "7", "STEPS_TEST_GIVEN": "a b", "STEPS_TEST_OTHER": "x",
	} {
		t.Setenv(name, value)
	}
	out := filepath.Join(t.TempDir(), "out")
	e := Exec{
		Command: []string{"/bin/sh", "-c", `exec env -0 >"$0"`, out},
		Env:     map[string]string{"MODE": "{{.Token}} $HOME"}, Inherit: []string{"STEPS_TEST_GIVEN", "STEPS_TEST_UNSET"},
	}
	if err := e.Validate(); err != nil {
		t.Fatal(err)
	}
	if detail, err := e.Run(t.Context(), instance("10.0.0.7"), 1); err != nil || detail != "exit code 0" {
		t.Fatalf("%q, %v", detail, err)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.Trim(string(data), "\x00"), "\x00")
	got = slices.DeleteFunc(got, func(v string) bool { // what sh itself sets
		name, _, _ := strings.Cut(v, "=")
		return name == "PWD" || name == "OLDPWD" || name == "SHLVL" || name == "_"
	})
	slices.Sort(got)
	want := []string{
		"MODE={{.Token}} $HOME", "PATH=" + execPath, "STEPS_TEST_GIVEN=a b",
		"USHER_ACTIVITY=asa-bp1example", "USHER_ATTEMPT=2", "USHER_HOOK=ash-bp1example", "USHER_INSTANCE_ID=i-bp1example1",
		"USHER_PRIVATE_IP=10.0.0.7", "USHER_REGION=cn-hangzhou", "USHER_SCALING_GROUP=asg-bp1example", "USHER_TOKEN=token-1",
		"USHER_TRANSITION=scale_in",
	}
	if !slices.Equal(got, want) {
		t.Errorf("environment:\n%q\nwant:\n%q", got, want)
	}
}

// What the program is started with: arguments as they are, the folder, no input, no
// signal that is ignored.
func TestExecIsNoShell(t *testing.T) {
	t.Parallel()
	e := Exec{Command: []string{"/bin/echo", "{{.InstanceID}};`id`", "$HOME", "> /x", "{{.PrivateIP}}"}}
	if detail, err := e.Run(t.Context(), instance("10.0.0.7"), 0); err != nil || detail != "exit code 0, output \"i-bp1example1;`id` $HOME > /x 10.0.0.7\"" {
		t.Errorf("%s, %v", detail, err)
	}
	if _, err := e.Run(t.Context(), instance(""), 0); !errors.Is(err, errNoPrivateIP) {
		t.Errorf("without an address: %v", err)
	}
	dir := t.TempDir()
	e = shell(`pwd; cat; [ "${USHER_PRIVATE_IP-none}" = none ]`)
	e.Dir = dir
	if detail, err := e.Run(t.Context(), instance(""), 0); err != nil || detail != fmt.Sprintf("exit code 0, output %q", dir) {
		t.Errorf("%s, %v", detail, err)
	}
	if detail, err := shell(`pwd`).Run(t.Context(), instance(""), 0); err != nil || detail != `exit code 0, output "/"` {
		t.Errorf("%s, %v", detail, err)
	}
}

func TestExecEnds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, line, want string
		gone             bool
	}{
		{"failure", `echo on its way; echo why >&2; exit 3`, `exec /bin/sh: exit status 3, output "on its way\nwhy"`, false},
		{"gone", `exit 68`, `exec /bin/sh: instance is gone: exit status 68`, true},
		{"signal", `kill -9 $$`, `exec /bin/sh: signal: killed`, false},
		{"control characters", `printf 'a\033[2Jb\n\001'; exit 1`, `exec /bin/sh: exit status 1, output "a\x1b[2Jb\n\x01"`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := shell(c.line)
			e.GoneCode = 68
			detail, err := e.Run(t.Context(), instance("10.0.0.7"), 0)
			if detail != "" || err == nil || strings.Replace(err.Error(), providers.ErrInstanceGone.Error(), "instance is gone", 1) != c.want {
				t.Errorf("%q, %v, want %s", detail, err, c.want)
			}
			if errors.Is(err, providers.ErrInstanceGone) != c.gone {
				t.Errorf("gone: %v", !c.gone)
			}
		})
	}
	if _, err := shell(`exit 68`).Run(t.Context(), instance(""), 0); err == nil || errors.Is(err, providers.ErrInstanceGone) {
		t.Errorf("a code that was not named: %v", err)
	}
	for _, e := range []Exec{{Command: []string{"/nowhere/at/all"}}, {Command: []string{"/etc/passwd"}}, {Command: []string{"/bin/true"}, Dir: "/nowhere"}} {
		if _, err := e.Run(t.Context(), instance(""), 0); err == nil || !strings.Contains(err.Error(), "start it") {
			t.Errorf("%q in %q: %v", e.Command, e.Dir, err)
		}
	}
}

// Megabytes of output cost no memory and no line of the log, and do not stop the program.
func TestExecOutputIsBounded(t *testing.T) {
	t.Parallel()
	detail, err := shell(`i=0; while [ $i -lt 2000 ]; do printf '%01000d\n' $i; i=$((i+1)); done; echo last`).Run(t.Context(), instance(""), 0)
	if err != nil || len(detail) > 1100 || !strings.HasPrefix(detail, `exit code 0, output ends with ..."000`) || !strings.HasSuffix(detail, `1999\nlast"`) {
		t.Errorf("%d bytes: %s, %v", len(detail), detail, err)
	}
	out := new(lastOutput)
	for range 3 {
		if n, err := out.Write(make([]byte, 1<<20)); n != 1<<20 || err != nil {
			t.Fatal(n, err)
		}
		if n, err := out.Write(make([]byte, 3000)); n != 3000 || err != nil {
			t.Fatal(n, err)
		}
	}
	if cap(out.kept) > 4*execOutput || len(out.kept) != execOutput {
		t.Errorf("%d bytes are kept, in %d", len(out.kept), cap(out.kept))
	}
}

// When the step's time is up, the whole group is told to end, and one that does not is
// killed. The children go with it, and nobody stays a zombie.
func TestExecIsEndedWithItsChildren(t *testing.T) {
	t.Parallel()
	for name, program := range map[string]string{
		"ends at SIGTERM":       `exec 3>"$1"; (while :; do sleep 60; done) & echo $$ >&3; wait`,
		"cleans up at SIGTERM":  `exec 3>"$1"; trap 'echo cleaned; exit 0' TERM; sleep 600 & echo $$ >&3; wait`,
		"ignores SIGTERM":       `exec 3>"$1"; trap '' TERM; sleep 600 & echo $$ >&3; while :; do sleep 60; done`,
		"children of children":  `exec 3>"$1"; trap '' TERM; sh -c 'sh -c "sleep 600" & sleep 600' & echo $$ >&3; wait; sleep 600`,
		"floods while it stops": `exec 3>"$1"; trap 'while :; do echo no; done' TERM; echo $$ >&3; sleep 600 & wait`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pipe := fifo(t)
			e := shell(program, pipe)
			e.grace = 50 * time.Millisecond
			if name == "cleans up at SIGTERM" {
				e.grace = 5 * time.Minute // it is not what ends it
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			end := started(ctx, e, instance(""))
			r := openFifo(t, pipe)
			pid := line(t, r)
			cancel(errors.New("time is up"))
			_, err := end()
			if err == nil || !strings.Contains(err.Error(), "told to end before it was done") {
				t.Errorf("%v", err)
			}
			if name == "cleans up at SIGTERM" && !strings.Contains(err.Error(), `(exit status 0), output "cleaned"`) {
				t.Errorf("%v", err)
			}
			allGone(t, r)
			if _, err := os.Stat("/proc/" + pid); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the program is still known to the kernel: %v", err)
			}
		})
	}
}

// A program that ends leaves nothing behind: not in its group, and what has left that
// group does not keep the step from ending.
func TestExecLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	pipe := fifo(t)
	end := started(t.Context(), shell(`exec 3>"$1"; (trap '' TERM HUP; sleep 600) & (sleep 600) & echo up >&3; exit 0`, pipe), instance(""))
	r := openFifo(t, pipe)
	line(t, r)
	if detail, err := end(); err != nil || detail != "exit code 0" {
		t.Errorf("%s, %v", detail, err)
	}
	allGone(t, r)

	// This one is in a session of its own and holds the output open.
	// Pipes that nobody has open yet: each end waits for the other.
	away, back := fifo(t), fifo(t)
	end = started(t.Context(), shell(`setsid sh -c 'echo $$ >"$0"; sleep 600' "$1" & read x <"$2"; echo done`, away, back), instance(""))
	pid, err := strconv.Atoi(line(t, openFifo(t, away)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(-pid, syscall.SIGKILL) }()
	w, err := os.OpenFile(back, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(w, "go on")
	w.Close()
	if detail, err := end(); err != nil || detail != `exit code 0, output "done"` {
		t.Errorf("%s, %v", detail, err)
	}
}

// Where the worker is the first process of its container, the orphans of a program are its
// own: none may stay as a zombie.
func TestExecLeavesNoZombies(t *testing.T) {
	const prSetChildSubreaper = 36 // linux/prctl.h; does to this process what being the first would
	adopt := func(on uintptr) {
		if _, _, err := syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, on, 0); err != 0 {
			t.Fatal(err)
		}
	}
	adopt(1)
	defer adopt(0)
	detail, err := shell(`(sleep 600 & sleep 600) & sh -c 'sleep 600 & exit' & sleep 600 & echo $$`).Run(t.Context(), instance(""), 0)
	group, ok := strings.CutPrefix(detail, `exit code 0, output "`)
	if group = strings.Trim(group, `"`); err != nil || !ok {
		t.Fatalf("%s, %v", detail, err)
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		t.Fatal(err)
	}
	for _, name := range stats {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		// proc(5): pid (comm) state ppid pgrp ...
		_, rest, _ := strings.Cut(string(data), ") ")
		if fields := strings.Fields(rest); len(fields) > 2 && fields[2] == group {
			t.Errorf("left of the group: %s", data)
		}
	}
}

// A context that has ended already starts nothing.
func TestExecAfterTheEnd(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("time is up"))
	touched := filepath.Join(t.TempDir(), "touched")
	if _, err := shell(`: >"$1"`, touched).Run(ctx, instance(""), 0); err == nil || err.Error() != "time is up" {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(touched); err == nil {
		t.Error("it ran")
	}
}

func TestExecValidate(t *testing.T) {
	t.Parallel()
	good := Exec{Command: []string{"/bin/sh", "{{.InstanceID}}"}, Dir: "/", Env: map[string]string{"A": "b"}, Inherit: []string{"LANG"}, GoneCode: 68}
	if err := good.Validate(); err != nil {
		t.Errorf("good: %v", err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Exec){
		"absolute path of a program":                          func(e *Exec) { e.Command = []string{"sh"} },
		"exec: command must begin":                            func(e *Exec) { e.Command = nil },
		"can't be found":                                      func(e *Exec) { e.Command = []string{"/nowhere/at/all"} },
		"is no file that can be executed":                     func(e *Exec) { e.Command = []string{plain} },
		"/bin is no file that":                                func(e *Exec) { e.Command = []string{"/bin"} },
		"exec: command[1]: ":                                  func(e *Exec) { e.Command = []string{"/bin/sh", "{{.None}}"} },
		"dir x is not the":                                    func(e *Exec) { e.Dir = "x" },
		"dir " + plain:                                        func(e *Exec) { e.Dir = plain },
		"variable USHER_TOKEN is not for":                     func(e *Exec) { e.Env = map[string]string{"USHER_TOKEN": "x"} },
		"variable alibaba_cloud_access_key_secret is not for": func(e *Exec) { e.Inherit = []string{"alibaba_cloud_access_key_secret"} },
		"gone_code: 1 to 255, got 256":                        func(e *Exec) { e.GoneCode = 256 },
	} {
		e := good
		change(&e)
		if err := e.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want ... %s", err, want)
		}
	}
}
