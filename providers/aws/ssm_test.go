package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/host/hosttest"
	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

// commanded is a cloud whose instances run what a test says, and the client of Systems Manager.
type commanded struct {
	*testing.T
	*Commander
	sim *simulator.Simulator
	ids []messages.InstanceID

	mu   sync.Mutex
	ran  []string                            // scripts; guarded by mu
	does map[string]simulator.CommandOutcome // by the end of a script; guarded by mu
}

func inCommanded(t *testing.T, change func(*simulator.Options), test func(c *commanded)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &commanded{T: t, does: map[string]simulator.CommandOutcome{}}
		so := simulator.Options{
			AccessKeyID: balancedKey, AccessKeySecret: balancedSecret, NoServers: true, Commands: c.outcome,
			Scenario: simulator.Scenario{Provider: "aws", ScalingGroups: []simulator.GroupConfig{{ID: balancedGroup, Instances: 2}}},
		}
		if change != nil {
			change(&so)
		}
		sim, err := simulator.New(so)
		if err != nil {
			t.Fatal(err)
		}
		l := simulator.NewPipeListener()
		srv := &http.Server{Handler: sim}
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.Serve(l) }()
		t.Cleanup(func() { _ = sim.Close(); _ = srv.Close(); <-served })
		c.sim = sim
		const at = "http://cloud.test"
		c.Commander, err = NewCommander(Options{
			Region: "eu-west-1", SSMEndpoint: at, EC2Endpoint: at, Credentials: StaticCredentials(balancedKey, balancedSecret), DialContext: l.DialContext,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		g, _ := sim.State().Group(balancedGroup)
		for _, in := range g.Instances {
			c.ids = append(c.ids, messages.InstanceID(in.ID))
		}
		test(c)
	})
}

func (c *commanded) outcome(_, script string) simulator.CommandOutcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ran = append(c.ran, script)
	for end, out := range c.does {
		if strings.HasSuffix(script, end) {
			return out
		}
	}
	return simulator.CommandOutcome{Output: "ok\n", Duration: time.Second}
}

func (c *commanded) scripts() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ran)
}

func (c *commanded) inject(f simulator.Fault) {
	c.Helper()
	if _, err := c.sim.InjectFault(f); err != nil {
		c.Fatal(err)
	}
}

func (c *commanded) command(script, key string) providers.Command {
	return providers.Command{Instance: c.ids[0], Name: "usher command", Script: script, Timeout: time.Minute, Key: key}
}

// ended runs a command and waits for its end.
func (c *commanded) ended(command providers.Command) providers.CommandResult {
	c.Helper()
	id, err := c.RunCommand(c.Context(), command)
	if err != nil {
		c.Fatal(err)
	}
	for {
		r, err := c.CommandResult(c.Context(), id, command.Instance)
		if err != nil {
			c.Fatal(err)
		}
		if r.Done {
			return r
		}
		time.Sleep(time.Second)
	}
}

func TestRunCommandOnAWS(t *testing.T) {
	inCommanded(t, nil, func(c *commanded) {
		key := strings.Repeat("k", maxKey)
		script := "echo 'ü + & = ~ *'\n" + strings.Repeat("#", 15<<10)
		r := c.ended(c.command(script, key))
		if r.Err != nil || r.ExitCode != 0 || r.Output != "ok\n" || r.RequestID == "" {
			t.Errorf("%+v", r)
		}
		if got := c.scripts(); len(got) != 1 || got[0] != "exec 2>&1\n"+script {
			t.Errorf("%d scripts: %.100q", len(got), got)
		}
		before := c.sim.State().APICalls["ssm.SendCommand"]
		for _, bad := range []providers.Command{
			{Script: "x", Key: "k"},
			{Instance: "i-1", Key: "k"},
			{Instance: "i-1", Script: "x"},
			{Instance: "i-1", Script: "x", Key: key + "k"},
			{Instance: "i-1", Script: "x", Key: "kéy"},
			{Instance: "i-1", Script: "x\x00", Key: "k"},
			{Instance: "i-1", Script: "x\xff", Key: "k"},
			{Instance: "i-1", Script: strings.Repeat("x", MaxScript+1), Key: "k"},
		} {
			if _, err := c.RunCommand(c.Context(), bad); !errors.Is(err, providers.ErrInvalid) || !providers.Untouched(err) {
				t.Errorf("%.40v: %v", bad, err)
			}
		}
		if n := c.sim.State().APICalls["ssm.SendCommand"]; n != before {
			t.Error("a command that is wrong was sent")
		}
	})
}

// TestSameKeyRunsOnce: by the same client, by another one, after a lost answer, and where the
// service does not list at once what it was sent.
func TestSameKeyRunsOnce(t *testing.T) {
	for name, listing := range map[string]time.Duration{"listed at once": 0, "listed later": 5 * time.Second} {
		t.Run(name, func(t *testing.T) {
			inCommanded(t, func(o *simulator.Options) { o.Scenario.Timings.Listing = listing }, func(c *commanded) {
				for _, f := range []simulator.Fault{
					{}, {Kind: simulator.FaultDropAfterEffect, Count: 1}, {Kind: simulator.FaultDrop, Count: 2},
					{Kind: simulator.FaultThrottle, Count: 3}, {Kind: simulator.Fault5xx, Count: 2},
				} {
					if f.Kind != "" {
						f.Service, f.Action = "ssm", "SendCommand"
						c.inject(f)
					}
					before := len(c.scripts())
					command := c.command("true", "key-"+string(f.Kind))
					first, err := c.RunCommand(c.Context(), command)
					if err != nil {
						t.Fatalf("%s: %v", f.Kind, err)
					}
					time.Sleep(listing)
					again, err := c.RunCommand(c.Context(), command)
					if err != nil || again != first {
						t.Errorf("%s: again: %s after %s, %v", f.Kind, again, first, err)
					}
					other := command
					other.Instance = c.ids[1]
					third, err := c.RunCommand(c.Context(), other)
					if err != nil || third == first {
						t.Errorf("%s: on another instance: %s, %v", f.Kind, third, err)
					}
					synctest.Wait() // until those that were started run
					if n := len(c.scripts()) - before; n != 2 {
						t.Errorf("%s: it ran %d times, want once on each instance", f.Kind, n)
					}
					time.Sleep(time.Minute)
				}
			})
		})
	}
}

// TestJoinsOnLaterPages: an instance has more commands than one page.
func TestJoinsOnLaterPages(t *testing.T) {
	inCommanded(t, nil, func(c *commanded) {
		first, err := c.RunCommand(c.Context(), c.command("true", "the-first"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 2*commandPage + 1 {
			if _, err := c.send(c.Context(), c.command("true", fmt.Sprintf("other-%d", i))); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		before := len(c.scripts())
		if again, err := c.RunCommand(c.Context(), c.command("true", "the-first")); err != nil || again != first || len(c.scripts()) != before {
			t.Errorf("%s after %s, %v", again, first, err)
		}
	})
}

func TestCommandResultsOnAWS(t *testing.T) {
	inCommanded(t, nil, func(c *commanded) {
		for end, row := range map[string]struct {
			does simulator.CommandOutcome
			exit int
			kind error
		}{
			"fine":      {simulator.CommandOutcome{Output: "done\n", Duration: 5 * time.Second}, 0, nil},
			"exit 3":    {simulator.CommandOutcome{ExitCode: 3, Output: "no\n"}, 3, nil},
			"slow":      {simulator.CommandOutcome{Duration: 2 * time.Minute}, 0, providers.ErrCommandTimeout},
			"no agent":  {simulator.CommandOutcome{ErrorCode: "ClientNotRunning"}, 0, providers.ErrAgentUnavailable},
			"stopped":   {simulator.CommandOutcome{ErrorCode: "InstanceNotRunning"}, 0, providers.ErrAgentUnavailable},
			"wrong one": {simulator.CommandOutcome{ErrorCode: "CommandNotApplicable"}, 0, providers.ErrCommandFailed},
			"cut short": {simulator.CommandOutcome{ErrorCode: "ExecutionInterrupted"}, 0, providers.ErrCommandFailed},
		} {
			c.mu.Lock()
			c.does = map[string]simulator.CommandOutcome{end: row.does}
			c.mu.Unlock()
			r := c.ended(c.command("# "+end, "key-"+strings.ReplaceAll(end, " ", "-")))
			if r.ExitCode != row.exit || (r.Err == nil) != (row.kind == nil) || !errors.Is(r.Err, row.kind) || !strings.HasPrefix(r.Output, row.does.Output) {
				t.Errorf("%s: %+v", end, r)
			}
		}
	})
}

// TestOutputIsCut: what Systems Manager may have cut is said to be.
func TestOutputIsCut(t *testing.T) {
	inCommanded(t, nil, func(c *commanded) {
		c.does["# much"] = simulator.CommandOutcome{Output: strings.Repeat("ä", 30_000)}
		r := c.ended(c.command("# much", "key-1"))
		if r.Err != nil || !strings.HasPrefix(r.Output, strings.Repeat("ä", 10_000)) || len(r.Output) > 2*maxStdout+200 {
			t.Errorf("%d bytes, %v", len(r.Output), r.Err)
		}
	})
}

// TestCommandOnNoAgent: an instance that Systems Manager does not know is not gone until EC2 says so.
func TestCommandOnNoAgent(t *testing.T) {
	inCommanded(t, nil, func(c *commanded) {
		unknown := c.command("true", "key-1")
		unknown.Instance = "i-0123456789abcdef0"
		if _, err := c.RunCommand(c.Context(), unknown); !errors.Is(err, providers.ErrAgentUnavailable) || !strings.Contains(err.Error(), "SSM agent") {
			t.Errorf("unknown: %v", err)
		}
		if err := c.sim.Terminate(string(c.ids[0])); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := c.RunCommand(c.Context(), c.command("true", "key-2")); !errors.Is(err, providers.ErrInstanceGone) {
			t.Errorf("terminated: %v", err)
		}
	})
}

// TestInvocationNotThereYet: for some seconds it is not done; then it is not found.
func TestInvocationNotThereYet(t *testing.T) {
	inCommanded(t, nil, func(c *commanded) {
		const none = "00000000-0000-4000-8000-000000000000"
		if r, err := c.CommandResult(c.Context(), none, c.ids[0]); err != nil || r.Done {
			t.Errorf("%+v, %v", r, err)
		}
		time.Sleep(unlistedFor + time.Second)
		if r, err := c.CommandResult(c.Context(), none, c.ids[0]); !errors.Is(err, providers.ErrNotFound) {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestDeniedCommands(t *testing.T) {
	inCommanded(t, nil, func(c *commanded) {
		for _, action := range []string{"ListCommands", "SendCommand"} {
			c.inject(simulator.Fault{Service: "ssm", Action: action, Kind: simulator.FaultDenied, Count: 1})
			_, err := c.RunCommand(c.Context(), c.command("true", "key-1"))
			if e, ok := errors.AsType[*providers.Error](err); !ok || !errors.Is(err, providers.ErrDenied) || !strings.Contains(e.Hint, "ssm:"+action) {
				t.Errorf("%s: %v", action, err)
			}
		}
		c.inject(simulator.Fault{Service: "ssm", Action: "GetCommandInvocation", Kind: simulator.FaultDenied, Count: 1})
		_, err := c.CommandResult(c.Context(), "00000000-0000-4000-8000-000000000000", c.ids[0])
		if e, ok := errors.AsType[*providers.Error](err); !ok || !strings.Contains(e.Hint, "ssm:GetCommandInvocation") {
			t.Errorf("GetCommandInvocation: %v", err)
		}
		c.inject(simulator.Fault{Service: "ssm", Kind: simulator.FaultHang})
		ctx, cancel := context.WithTimeout(c.Context(), 30*time.Second)
		defer cancel()
		if _, err := c.RunCommand(ctx, c.command("true", "key-2")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a service that hangs: %v", err)
		}
	})
}

// scriptRows are scripts and what a shell makes of them as they are.
var scriptRows = map[string]struct {
	script, output string
	exit           int
}{
	"plain":              {"echo out; echo err >&2; exit 3", "out\nerr\n", 3},
	"shebang":            {"#!/bin/sh\necho out; echo err >&2", "out\nerr\n", 0},
	"env":                {"#!/usr/bin/env bash\necho ${BASH_VERSION:+bash}; false", "bash\n", 1},
	"braces":             {"echo '{{ssm:secret}}' \"it's\"; echo err >&2; exit 4", "{{ssm:secret}} it's\nerr\n", 4},
	"braces in bash":     {"#!/bin/bash -e\necho '{{.Names}}'; echo ${BASH_VERSION:+bash}; false; echo never", "{{.Names}}\nbash\n", 1},
	"braces and exit":    {"trap 'echo bye' EXIT\necho '{{ commands }}'\nexit 0", "{{ commands }}\nbye\n", 0},
	"unicode and dashes": {"printf '%s\\n' 'ü—\\n' '{{'", "ü—\\n\n{{\n", 0},
}

// TestShellTextRuns: what is sent comes to what the script would.
func TestShellTextRuns(t *testing.T) {
	t.Parallel()
	for name, row := range scriptRows {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := shellText(row.script)
			if strings.Contains(text, "{{") {
				t.Errorf("Systems Manager would change %q", text)
			}
			// As the agent does: by the first line, or else with sh.
			file := hosttest.Program(t, t.TempDir(), "_script.sh", text)
			out, err := exec.Command("sh", "-c", file).Output()
			exit := 0
			if e, ok := errors.AsType[*exec.ExitError](err); ok {
				exit = e.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if string(out) != row.output || exit != row.exit {
				t.Errorf("%q, exit code %d", out, exit)
			}
		})
	}
	if other := "#!/usr/bin/python3\nprint('ok')"; shellText(other) != other {
		t.Errorf("not for sh: %q", shellText(other))
	}
}

// TestRealScripts: against the simulator over its wire, with scripts that really run.
func TestRealScripts(t *testing.T) {
	t.Parallel()
	sim, err := simulator.New(simulator.Options{
		AccessKeyID: balancedKey, AccessKeySecret: balancedSecret, Exec: true,
		Scenario: simulator.Scenario{Provider: "aws", ScalingGroups: []simulator.GroupConfig{{ID: balancedGroup, Instances: 1}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	srv := httptest.NewServer(sim)
	t.Cleanup(srv.Close)
	cm, err := NewCommander(Options{Region: "eu-west-1", SSMEndpoint: srv.URL, EC2Endpoint: srv.URL, Credentials: StaticCredentials(balancedKey, balancedSecret)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cm.Close)
	g, _ := sim.State().Group(balancedGroup)
	id := messages.InstanceID(g.Instances[0].ID)
	for name, row := range map[string]string{"plain": "echo out; echo err >&2; exit 3", "braces": "echo '{{x}}'; echo err >&2; exit 3"} {
		invocation, err := cm.RunCommand(t.Context(), providers.Command{Instance: id, Name: "test", Script: row, Timeout: 5 * time.Minute, Key: "key-" + name})
		if err != nil {
			t.Fatal(err)
		}
		for {
			r, err := cm.CommandResult(t.Context(), invocation, id)
			if err != nil {
				t.Fatal(err)
			}
			if r.Done {
				if r.Err != nil || r.ExitCode != 3 || !strings.HasSuffix(r.Output, "\nerr\n") {
					t.Errorf("%s: %+v", name, r)
				}
				break
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-t.Context().Done():
				t.Fatal("it did not end")
			}
		}
	}
}
