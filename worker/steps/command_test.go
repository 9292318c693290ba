package steps

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// thisHost runs scripts here, once for each key, as Cloud Assistant does there.
type thisHost struct {
	mu   sync.Mutex
	runs map[string]*exec.Cmd // guarded by mu
	done map[string]providers.CommandResult
	wg   sync.WaitGroup
}

func newThisHost(t *testing.T) *thisHost {
	h := &thisHost{runs: map[string]*exec.Cmd{}, done: map[string]providers.CommandResult{}}
	t.Cleanup(h.wg.Wait)
	return h
}

func (h *thisHost) RunCommand(_ context.Context, c providers.Command) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.runs[c.Key] != nil {
		return c.Key, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
	cmd := exec.CommandContext(ctx, "sh", "-s")
	cmd.Stdin = strings.NewReader(c.Script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	h.runs[c.Key] = cmd
	h.wg.Go(func() {
		defer cancel()
		_ = cmd.Run()
		res := providers.CommandResult{Done: true, ExitCode: cmd.ProcessState.ExitCode(), Output: out.String()}
		if ctx.Err() != nil {
			res.Err = providers.ErrCommandTimeout
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.done[c.Key] = res
	})
	return c.Key, nil
}

func (h *thisHost) CommandResult(_ context.Context, invocation string, _ messages.InstanceID) (providers.CommandResult, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.done[invocation], nil
}

func TestCommandRuns(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		script, want string // want "": success
		timeout      time.Duration
	}{
		"fine":    {"echo ready", "", time.Minute},
		"exit 7":  {"echo first; printf 'no \\033[31mspace\\n' >&2; exit 7", `exit code 7, output ends with "first\nno \x1b[31mspace"`, time.Minute},
		"long":    {"i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; exit 1", `line 499"`, time.Minute},
		"timeout": {"echo begun; exec sleep 20", "command timed out", 500 * time.Millisecond},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := Command{Script: tt.script, Timeout: tt.timeout, Commander: newThisHost(t)}
			detail, err := c.Run(t.Context(), instance("10.0.0.1"), 0)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, %v, want %q", detail, err, tt.want)
			}
			if err != nil && len(err.Error()) > 600 {
				t.Errorf("%d bytes are too many to say", len(err.Error()))
			}
		})
	}
}

// TestCommandJoins: workers that run the same attempt at once run the script once;
// another attempt, instance, action or step is a run of its own.
func TestCommandJoins(t *testing.T) {
	t.Parallel()
	ran := filepath.Join(t.TempDir(), "ran")
	c := Command{Script: "echo ran >>" + ran, Timeout: time.Minute, Commander: newThisHost(t)}
	count := func() int {
		b, err := os.ReadFile(ran)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(b, []byte("\n"))
	}
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, err := c.Run(t.Context(), instance("10.0.0.1"), 0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := count(); n != 1 {
		t.Errorf("5 workers ran the script %d times", n)
	}
	if _, err := c.Run(t.Context(), instance("10.0.0.1"), 1); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 2 {
		t.Errorf("after another attempt the script has run %d times, want 2", n)
	}
}

func TestCommandKeys(t *testing.T) {
	t.Parallel()
	in := instance("10.0.0.1")
	keys := map[string]string{}
	add := func(what, key string) {
		if other, ok := keys[key]; ok {
			t.Errorf("%s has the key of %s", what, other)
		}
		if len(key) > 64 || strings.Trim(key, "0123456789abcdef") != "" {
			t.Errorf("%s: key %q is not up to 64 hex digits", what, key)
		}
		keys[key] = what
	}
	add("the first", commandKey("command", in, 1, "true", 0))
	add("another attempt", commandKey("command", in, 1, "true", 1))
	add("another position", commandKey("command", in, 11, "true", 0))
	add("another script", commandKey("command", in, 1, "false", 0))
	add("another step", commandKey("wait_connections", in, 1, "true", 0))
	for what, change := range map[string]func(*messages.Instance){
		"another instance": func(i *messages.Instance) { i.ID = "i-other" },
		"another token":    func(i *messages.Instance) { i.Action.Token = "token-2" },
		"another hook":     func(i *messages.Instance) { i.Action.Hook = "ash-other" },
		"another region":   func(i *messages.Instance) { i.Action.Region = "cn-beijing" },
	} {
		other := in
		change(&other)
		add(what, commandKey("command", other, 1, "true", 0))
	}
	// What a takeover may see otherwise does not matter: the key must be the same.
	moved := in
	moved.State, moved.PrivateIP, moved.Action.Instances = "Removing:Wait", netip.Addr{}, nil
	if keys[commandKey("command", moved, 1, "true", 0)] != "the first" {
		t.Error("the key depends on what changes")
	}
}

// replies answers question after question, the last one for ever, and notes when it was asked.
type replies struct {
	start   error
	results []reply
	asked   []time.Time
	sent    providers.Command
}

type reply struct {
	res providers.CommandResult
	err error
}

func (r *replies) RunCommand(_ context.Context, c providers.Command) (string, error) {
	r.sent = c
	return "t-1", r.start
}

func (r *replies) CommandResult(context.Context, string, messages.InstanceID) (providers.CommandResult, error) {
	r.asked = append(r.asked, time.Now())
	next := r.results[min(len(r.asked), len(r.results))-1]
	return next.res, next.err
}

func ended(code int, output string) reply {
	return reply{res: providers.CommandResult{Done: true, ExitCode: code, Output: output}}
}

func TestCommandPolls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &replies{results: append(make([]reply, 250), ended(0, ""))}
		start := time.Now()
		c := Command{Script: "true", Timeout: 30 * time.Minute, Commander: r}
		if _, err := c.Run(t.Context(), instance(""), 0); err != nil {
			t.Fatal(err)
		}
		if first := r.asked[0].Sub(start); first != time.Second {
			t.Errorf("first asked after %v, want 1s", first)
		}
		if last := r.asked[250].Sub(r.asked[249]); last != 10*time.Second {
			t.Errorf("asked every %v in the end, want 10s", last)
		}
		if took := time.Since(start); took < 40*time.Minute {
			t.Errorf("251 questions in %v are too many", took)
		}
		// An end is known no later than a quarter of the run time afterwards.
		for i := 1; i < 20; i++ {
			if gap, ran := r.asked[i].Sub(r.asked[i-1]), r.asked[i-1].Sub(start); gap > max(time.Second, ran/4) {
				t.Errorf("asked after %v, and then %v later", ran, gap)
			}
		}
	})
}

// TestCommandTimeUp: the last question comes a second before the step's timeout.
func TestCommandTimeUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &replies{results: []reply{{}}}
		ctx, cancel := context.WithTimeout(t.Context(), 31*time.Second)
		defer cancel()
		start := time.Now()
		_, err := Command{Script: "true", Timeout: 31 * time.Second, Commander: r}.Run(ctx, instance(""), 0)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "t-1") || time.Since(start) != 31*time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		if last := r.asked[len(r.asked)-1].Sub(start); last != 30*time.Second {
			t.Errorf("last asked after %v, want 30s", last)
		}
	})
}

func TestCommandErrors(t *testing.T) {
	t.Parallel()
	api := func(kind error) error { return &providers.Error{Op: "DescribeInvocationResults", Kind: kind} }
	end := func(kind error) reply { return reply{res: providers.CommandResult{Done: true, Err: kind}} }
	tests := map[string]struct {
		r    replies
		want error // nil: success
		asks int
	}{
		"not started: gone":      {replies{start: api(providers.ErrInstanceGone)}, providers.ErrInstanceGone, 0},
		"not started: no agent":  {replies{start: api(providers.ErrAgentUnavailable)}, providers.ErrAgentUnavailable, 0},
		"gone meanwhile":         {replies{results: []reply{{}, end(providers.ErrInstanceGone)}}, providers.ErrInstanceGone, 2},
		"killed":                 {replies{results: []reply{end(providers.ErrCommandTimeout)}}, providers.ErrCommandTimeout, 1},
		"denied to the end":      {replies{results: []reply{{err: api(providers.ErrDenied)}}}, providers.ErrDenied, -1},
		"denied, then an end":    {replies{results: []reply{{err: api(providers.ErrDenied)}, {err: api(providers.ErrCredentials)}, ended(0, "")}}, nil, 3},
		"refused":                {replies{results: []reply{{err: api(providers.ErrInvalid)}}}, providers.ErrInvalid, 1},
		"throttled, then an end": {replies{results: []reply{{err: api(providers.ErrThrottled)}, {err: api(providers.ErrUnavailable)}, ended(0, "")}}, nil, 3},
		"unavailable to the end": {replies{results: []reply{{err: api(providers.ErrUnavailable)}}}, providers.ErrUnavailable, -1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := tt.r
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err := Command{Script: "true", Timeout: time.Minute, Commander: &r}.Run(ctx, instance(""), 0)
				if !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				if tt.asks >= 0 && len(r.asked) != tt.asks {
					t.Errorf("asked %d times, want %d", len(r.asked), tt.asks)
				}
			})
		})
	}
}

func TestCommandValidate(t *testing.T) {
	t.Parallel()
	good := Command{Script: "true", Timeout: time.Minute, Commander: &replies{}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	tests := map[string]struct {
		change func(*Command)
		want   string
	}{
		"empty":        {func(c *Command) { c.Script = " \n" }, "empty"},
		"too long":     {func(c *Command) { c.Script = strings.Repeat("x", MaxScript+1) }, "16384"},
		"NUL":          {func(c *Command) { c.Script = "true\x00" }, "NUL"},
		"no timeout":   {func(c *Command) { c.Timeout = 0 }, "timeout"},
		"no commander": {func(c *Command) { c.Commander = nil }, "commander"},
	}
	for name, tt := range tests {
		c := good
		tt.change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		w := Wait{For: time.Minute}
		if detail, err := w.Run(t.Context(), instance(""), 0); err != nil || detail != "waited 1m0s" || time.Since(start) != time.Minute {
			t.Errorf("got %q, %v after %v", detail, err, time.Since(start))
		}
		why := errors.New("lost")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(why) })
		start = time.Now()
		if _, err := w.Run(ctx, instance(""), 0); !errors.Is(err, why) || time.Since(start) != time.Second {
			t.Errorf("got %v after %v, want %v after 1s", err, time.Since(start), why)
		}
		if _, err := w.Run(ctx, instance(""), 0); !errors.Is(err, why) || time.Since(start) != time.Second {
			t.Errorf("with an ended context: got %v, want %v at once", err, why)
		}
	})
	if w := (Wait{}); w.Validate() == nil || (Wait{For: 1}).Validate() != nil {
		t.Error("only a time of zero or less is wrong")
	}
}
