package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

const (
	// execGrace is how long a program may go on after SIGTERM: less than the time after
	// which the worker reports a step that does not end.
	execGrace = 5 * time.Second
	// execRelease is how long the output of a program that has ended may be held open by
	// what it has started outside of its process group.
	execRelease = time.Second
	// execOutput is how much of a program's output is kept: the end.
	execOutput = 4 << 10
	// execTold is how much of it the audit log has.
	execTold = 1000
	// execPath is the PATH of a program.
	execPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Exec runs a program beside the worker, in a process group of its own, and waits until it
// has ended. There is no shell: Command is what execve gets. The program has nothing on
// its standard input, and this environment alone: PATH; what Env and Inherit name; and
// the facts USHER_INSTANCE_ID, USHER_PRIVATE_IP (if the cloud tells it),
// USHER_SCALING_GROUP, USHER_REGION, USHER_HOOK, USHER_TOKEN, USHER_TRANSITION,
// USHER_ACTIVITY and USHER_ATTEMPT, which counts from 1.
//
// Nothing of the group outlives the step. When the step's time is up the group gets
// SIGTERM and, if it does not end, SIGKILL; what a program that has ended left behind gets
// SIGKILL at once. The program itself dies with the worker.
type Exec struct {
	// Command is the program, an absolute path, and its arguments, which are templates.
	Command []string
	// Dir is where it runs; "": /.
	Dir string
	// Env are variables that it gets besides, as they are.
	Env map[string]string
	// Inherit names variables of the worker's own environment that it gets, if they are set.
	Inherit []string
	// GoneCode is the exit code that says that there is no such instance any more; 0: none does.
	GoneCode int

	grace time.Duration // 0: execGrace
}

// Name is "exec".
func (e Exec) Name() string { return "exec" }

// Validate says what is wrong with the settings, or nil. The program must be there.
func (e Exec) Validate() error {
	if !execWorks {
		return errors.New("exec: needs Linux")
	}
	if len(e.Command) == 0 || !filepath.IsAbs(e.Command[0]) {
		return errors.New("exec: command must begin with the absolute path of a program")
	}
	var errs []error
	if info, err := os.Stat(e.Command[0]); err != nil {
		errs = append(errs, fmt.Errorf("exec: the program can't be found: %w", err))
	} else if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		errs = append(errs, fmt.Errorf("exec: %s is no file that can be executed", e.Command[0]))
	}
	for i, arg := range e.Command[1:] {
		if _, err := render(fmt.Sprintf("exec: command[%d]", i+1), arg, sample); err != nil {
			errs = append(errs, err)
		}
	}
	if e.Dir != "" {
		if info, err := os.Stat(e.Dir); err != nil || !info.IsDir() || !filepath.IsAbs(e.Dir) {
			errs = append(errs, fmt.Errorf("exec: dir %s is not the absolute path of a folder", e.Dir))
		}
	}
	for _, name := range slices.Sorted(allNames(e.Env, e.Inherit)) {
		if reservedVariable(name) {
			errs = append(errs, fmt.Errorf("exec: the variable %s is not for programs", name))
		}
	}
	if e.GoneCode < 0 || e.GoneCode > 255 {
		errs = append(errs, fmt.Errorf("exec: gone_code: 1 to 255, got %d", e.GoneCode))
	}
	return errors.Join(errs...)
}

func allNames(env map[string]string, names []string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for name := range env {
			if !yield(name) {
				return
			}
		}
		for _, name := range names {
			if !yield(name) {
				return
			}
		}
	}
}

// reservedVariable says whether a variable is the worker's own: its keys, where they come
// from, and the facts.
func reservedVariable(name string) bool {
	for _, prefix := range []string{"USHER_", "ALIBABA_CLOUD_", "ALICLOUD_", "ALIBABACLOUD_"} {
		if strings.HasPrefix(strings.ToUpper(name), prefix) {
			return true
		}
	}
	return false
}

// Run runs the program. Any exit code but 0 is a failure, and GoneCode matches
// providers.ErrInstanceGone. So is an end after SIGTERM, whatever the code.
func (e Exec) Run(ctx context.Context, in messages.Instance, attempt int) (string, error) {
	f := factsOf(in)
	command := slices.Clone(e.Command)
	for i := range command[1:] {
		var err error
		if command[i+1], err = render(fmt.Sprintf("exec: command[%d]", i+1), command[i+1], f); err != nil {
			return "", err
		}
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	out := new(lastOutput)
	end, err := runProgram(ctx, program{
		command: command, env: e.environment(f, attempt), dir: e.directory(), output: out, grace: e.patience(),
	})
	switch {
	case err != nil:
		return "", fmt.Errorf("exec %s: %w", command[0], err)
	case end.interrupted:
		return "", fmt.Errorf("exec %s: it was told to end before it was done (%s)%s", command[0], end.state, out.told())
	case e.GoneCode != 0 && end.code == e.GoneCode:
		return "", fmt.Errorf("exec %s: %w: %s%s", command[0], providers.ErrInstanceGone, end.state, out.told())
	case end.code != 0:
		return "", fmt.Errorf("exec %s: %s%s", command[0], end.state, out.told())
	}
	return "exit code 0" + out.told(), nil
}

func (e Exec) directory() string {
	if e.Dir == "" {
		return "/"
	}
	return e.Dir
}

func (e Exec) patience() time.Duration {
	if e.grace == 0 {
		return execGrace
	}
	return e.grace
}

// environment is all that the program gets: a worker's own may hold keys.
func (e Exec) environment(f facts, attempt int) []string {
	env := []string{"PATH=" + execPath}
	for _, name := range e.Inherit {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	for name, value := range e.Env {
		env = append(env, name+"="+value)
	}
	env = append(env,
		"USHER_INSTANCE_ID="+string(f.InstanceID),
		"USHER_SCALING_GROUP="+string(f.ScalingGroup),
		"USHER_REGION="+f.Region,
		"USHER_HOOK="+string(f.Hook),
		"USHER_TOKEN="+string(f.Token),
		"USHER_TRANSITION="+string(f.Transition),
		"USHER_ACTIVITY="+string(f.Activity),
		fmt.Sprint("USHER_ATTEMPT=", attempt+1),
	)
	if f.privateIP.IsValid() {
		env = append(env, "USHER_PRIVATE_IP="+f.privateIP.String())
	}
	return env // of two of one name the last counts
}

// program is what runProgram runs.
type program struct {
	command []string
	env     []string
	dir     string
	output  *lastOutput
	// grace is the time between SIGTERM and SIGKILL.
	grace time.Duration
}

// programEnd is how a program ended.
type programEnd struct {
	// code is -1 after a signal.
	code  int
	state string
	// interrupted: it was sent SIGTERM before it ended.
	interrupted bool
}

// lastOutput keeps the end of what is written to it.
type lastOutput struct {
	mu      sync.Mutex
	kept    []byte // guarded by mu
	dropped bool   // guarded by mu
}

func (o *lastOutput) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(p)
	if len(p) > execOutput {
		p, o.dropped = p[len(p)-execOutput:], true
	}
	if over := len(o.kept) + len(p) - execOutput; over > 0 {
		o.kept, o.dropped = o.kept[:copy(o.kept, o.kept[over:])], true
	}
	o.kept = append(o.kept, p...)
	return n, nil
}

// told is the output as the audit log has it: cut and quoted.
func (o *lastOutput) told() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := strings.TrimSpace(string(o.kept))
	if text == "" {
		return ""
	}
	if o.dropped || len(text) > execTold {
		return ", output ends with " + tail(text, execTold)
	}
	return ", output " + tail(text, execTold)
}
