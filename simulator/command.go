package simulator

import (
	"cmp"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The invocation statuses of Cloud Assistant that are used here.
const (
	runPending    = "Pending"
	runRunning    = "Running"
	runSuccess    = "Success"
	runFailed     = "Failed"
	runError      = "Error"
	runTimeout    = "Timeout"
	runAborted    = "Aborted"
	runCancelled  = "Cancelled"
	runTerminated = "Terminated"
)

// CommandOutcome is what a simulated machine does with a script.
type CommandOutcome struct {
	ExitCode int
	Output   string
	// ErrorOutput is what goes to standard error, which only AWS tells apart.
	ErrorOutput string
	// Duration is how long it takes; the invocation's timeout cuts it short.
	Duration time.Duration
	// ErrorCode, such as ClientNotRunning, is why the script did not run at all. On AWS
	// ClientNotRunning lets the command wait until its delivery times out, and
	// InstanceNotRunning makes it undeliverable.
	ErrorCode string
}

// invocation is one RunCommand.
type invocation struct {
	id, commandID, name, kind, script string
	timeout                           time.Duration
	created                           time.Time
	runs                              []*run
	ssm                               *ssmCommand // of AWS only
}

// run is an invocation on one instance. Its fields are guarded by the simulator's
// mutex, but for live, which has its own.
type run struct {
	invocation                 *invocation
	instanceID                 string
	instance                   *instance
	status                     string
	exitCode                   int
	output                     string
	dropped                    int
	errorCode, errorInfo       string
	started, finished, stopped time.Time
	ending                     *entry
	kill                       context.CancelFunc // of a script that really runs
	live                       *capture
	problems                   *capture // standard error; live, but on AWS
	errors                     string   // what was written to it, on AWS
}

func (r *run) done() bool { return r.status != runPending && r.status != runRunning }

func (r *run) recordStatus() string {
	switch {
	case !r.done():
		return "Running"
	case r.status == runSuccess:
		return "Finished"
	case r.status == runCancelled || r.status == runTerminated:
		return "Stopped"
	}
	return "Failed"
}

func (r *run) outputSoFar() (string, int) {
	if r.live != nil && !r.done() {
		return r.live.text()
	}
	return r.output, r.dropped
}

func (s *Simulator) hasAgent() bool {
	return s.options.Exec || s.options.Commands != nil || s.options.Machines != nil
}

func (s *Simulator) activeRuns(in *instance) int {
	n := 0
	for r := range in.runs {
		if r.status == runRunning {
			n++
		}
	}
	return n
}

// startRun begins an invocation on one instance. The caller holds s.mu.
func (s *Simulator) startRun(r *run) {
	s.commands++
	if r.instance.runs == nil {
		r.instance.runs = map[*run]struct{}{}
	}
	r.instance.runs[r] = struct{}{}
	s.record(Event{Type: CommandStarted, Instance: r.instanceID, Group: r.instance.group.cfg.ID, Invocation: r.invocation.id})
	switch {
	case !r.instance.running:
		s.endLater(r, CommandOutcome{ErrorCode: "InstanceNotRunning", Duration: s.scenario.Timings.Command})
	case !r.instance.hasAgent(s):
		s.endLater(r, CommandOutcome{ErrorCode: "ClientNotRunning", Duration: s.scenario.Timings.Command})
	case r.invocation.kind != "RunShellScript":
		s.endLater(r, CommandOutcome{ErrorCode: "CommandNotApplicable"})
	case s.options.Exec || s.options.Machines != nil:
		ctx, kill := context.WithTimeout(context.Background(), r.invocation.timeout)
		r.kill, r.live = kill, &capture{}
		r.problems = r.live
		if r.invocation.ssm != nil {
			r.live, r.problems = &capture{limit: maxSSMCapture}, &capture{limit: maxSSMCapture}
		}
		r.status, r.started = runRunning, time.Now()
		env := s.environment(r.instance)
		s.work.Go(func() { s.execute(ctx, r, env) })
	default:
		if r.invocation.ssm == nil { // else it is still to be delivered
			r.status, r.started = runRunning, time.Now()
		}
		s.work.Go(func() { s.imagine(r) })
	}
}

// imagine asks the owner of the simulator what the script does.
func (s *Simulator) imagine(r *run) {
	out := s.options.Commands(r.instanceID, r.invocation.script)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLater(r, out)
}

// endLater ends the run as out says, or at its timeout. The caller holds s.mu.
func (s *Simulator) endLater(r *run, out CommandOutcome) {
	if r.done() {
		return
	}
	if r.invocation.ssm != nil {
		r.take(&out)
	}
	status, code := statusOf(out)
	if out.ErrorCode == "" && out.Duration > r.invocation.timeout {
		out.Duration, status, code = r.invocation.timeout, runTimeout, "ExecutionTimeout"
	}
	r.ending = s.clock.at(time.Now().Add(out.Duration), func() {
		kept := &capture{}
		kept.Write([]byte(out.Output + out.ErrorOutput))
		r.output, r.dropped = kept.text()
		if r.invocation.ssm != nil {
			r.output, r.errors = out.Output, out.ErrorOutput
		}
		r.exitCode = out.ExitCode
		s.endRun(r, status, code)
	})
}

func statusOf(out CommandOutcome) (status, code string) {
	switch out.ErrorCode {
	case "":
	case "ExecutionTimeout":
		return runTimeout, out.ErrorCode
	case "AccountNotExists", "DirectoryNotExists", "ExecutionException":
		return runError, out.ErrorCode
	case "CommandNotApplicable":
		return "Invalid", out.ErrorCode
	case "ExecutionInterrupted", "ExitCodeNonzero":
		return runFailed, out.ErrorCode
	default:
		return runAborted, out.ErrorCode
	}
	if out.ExitCode != 0 {
		return runFailed, "ExitCodeNonzero"
	}
	return runSuccess, ""
}

var errorInfos = map[string]string{
	"ClientNotRunning":     "The aliyun service is not running on the instance.",
	"InstanceNotRunning":   "The status of the instance is not running.",
	"ExitCodeNonzero":      "The exit code of the command is not zero.",
	"ExecutionTimeout":     "The command execution has timed out.",
	"ExecutionInterrupted": "The command execution is interrupted.",
	"ExecutionException":   "An exception occurred when the command was executed.",
	"CommandNotApplicable": "The command is not applicable to the instance.",
}

// endRun ends a run that has not ended. The caller holds s.mu.
func (s *Simulator) endRun(r *run, status, errorCode string) {
	if r.done() {
		return
	}
	s.clock.cancel(r.ending)
	r.status, r.errorCode, r.errorInfo, r.finished = status, errorCode, errorInfos[errorCode], time.Now()
	delete(r.instance.runs, r)
	s.record(Event{Type: CommandEnded, Instance: r.instanceID, Group: r.instance.group.cfg.ID, Invocation: r.invocation.id, State: status})
	if r.kill != nil {
		r.output, r.dropped = r.live.text()
		r.errors, _ = r.problems.text()
		r.kill()
	}
}

// stopRun is StopInvocation for one instance.
func (s *Simulator) stopRun(r *run) {
	if r.done() {
		return
	}
	r.stopped = time.Now()
	if r.status == runPending {
		s.endRun(r, runCancelled, "")
		return
	}
	s.endRun(r, runTerminated, "")
}

// interruptCommands ends what runs on a machine that is being stopped.
func (s *Simulator) interruptCommands(in *instance) {
	for r := range in.runs {
		if r.status == runPending {
			s.endRun(r, runAborted, "InstanceReleased")
		} else {
			s.endRun(r, runFailed, "ExecutionInterrupted")
		}
	}
}

// interrupt kills the scripts that really run.
func (v *invocation) interrupt() {
	for _, r := range v.runs {
		if r.kill != nil {
			r.kill()
		}
	}
}

// environment is what a script sees: where it pretends to run, and nothing of this
// process's own environment but the search path.
func (s *Simulator) environment(in *instance) []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.TempDir(), "LANG=C",
		"USHER_SIMULATOR_INSTANCE=" + in.id,
		"USHER_SIMULATOR_ADDRESS=" + in.addr.Addr().String(),
		"USHER_SIMULATOR_PORT=" + port(in.addr),
	}
}

// execute runs the script on this host or the instance's machine, in a process group of
// its own that is killed at the end, whatever is left of it.
func (s *Simulator) execute(ctx context.Context, r *run, env []string) {
	cmd := s.script(ctx, r)
	cmd.Env, cmd.Dir = env, os.TempDir()
	cmd.Stdout, cmd.Stderr = r.live, r.problems
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for children that keep the output open
	err := cmd.Run()
	if cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	timedOut := errors.Is(ctx.Err(), context.DeadlineExceeded)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case timedOut:
		s.endRun(r, runTimeout, "ExecutionTimeout")
	case cmd.ProcessState == nil:
		s.log.Warn("script does not start", "instance", r.instanceID, "error", err)
		s.endRun(r, runError, "ExecutionException")
	default:
		r.exitCode = exitCode(cmd.ProcessState)
		status, code := statusOf(CommandOutcome{ExitCode: r.exitCode})
		s.endRun(r, status, code)
	}
	r.kill()
}

// exitCode is as a shell tells it: 128 and the signal's number for a killed one.
func exitCode(p *os.ProcessState) int {
	if w, ok := p.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return p.ExitCode()
}

// capture keeps the beginning of an output and counts the rest.
type capture struct {
	limit   int // bytes; 0: 24 KB
	mu      sync.Mutex
	kept    strings.Builder
	dropped int
}

func (c *capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(p), cmp.Or(c.limit, maxCommandOutput)-c.kept.Len())
	c.kept.Write(p[:n])
	c.dropped += len(p) - n
	return len(p), nil
}

func (c *capture) text() (string, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kept.String(), c.dropped
}
