package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"example.org/usher/configs"
	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quick is a real demo in less time, and may take more of it on a machine that is busy.
var quick = Timings{WarmUp: 1500 * time.Millisecond, After: 300 * time.Millisecond, Slow: 2 * time.Second, Limit: 5 * time.Minute}

// output is a Progress that a test can watch.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
	// seen is called with each write.
	seen func(text string)
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.seen != nil {
		o.seen(string(b))
	}
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func TestDemo(t *testing.T) {
	t.Parallel()
	type half struct {
		name     string
		provider string
		screen   *Screen
		blind    bool
		steps    []string
		out      output
		result   *Result
		err      error
	}
	// A scale-in that does not wait for its requests is counted like any other.
	hurried := &half{}
	halves := []*half{
		{name: "lines", steps: []string{"http", "wait_connections"}},
		{name: "terminal, no script", screen: &Screen{Size: func() (int, int) { return 60, 30 }}, blind: true, steps: []string{"http", "wait"}},
		{name: "AWS", provider: "aws", steps: []string{"deregister", "wait_connections"}},
	}
	if !canLook(t.Context()) {
		halves[0].steps, halves[2].steps = halves[1].steps, []string{"deregister", "wait"}
	}
	// AWS takes members out of a target group more slowly, so that this demo lasts longest.
	slow := func(h *half) bool { return underRace && h.provider != "" }
	// All at once: most of a demo is waiting. Under the race detector one after the other, since
	// a small machine does not serve more without a failed request.
	var running sync.WaitGroup
	turns := make(chan struct{}, len(halves)+1)
	if underRace {
		turns = make(chan struct{}, 1)
	}
	for _, h := range halves {
		if slow(h) {
			continue
		}
		running.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			h.result, h.err = Run(t.Context(), Options{Provider: h.provider, Progress: &h.out, Screen: h.screen, Timings: quick, blind: h.blind})
		})
	}
	running.Go(func() {
		turns <- struct{}{}
		defer func() { <-turns }()
		// Requests slow enough to be cut by a worker that hurries on a slow machine.
		long := quick
		long.Slow = 10 * time.Second
		hurried.result, hurried.err = Run(t.Context(), Options{Progress: &hurried.out, Timings: long, hurry: true})
	})
	running.Wait()
	t.Run("usher in a hurry", func(t *testing.T) {
		r := hurried.result
		if r == nil || !errors.Is(hurried.err, ErrUnexpected) || !strings.Contains(hurried.err.Error(), "with usher") {
			t.Fatalf("got %v", hurried.err)
		}
		if r.With.Failed == 0 || r.With.Drained != groupSize || r.With.Result != messages.Continue {
			t.Errorf("got %+v", r.With)
		}
	})
	for _, h := range halves {
		t.Run(h.name, func(t *testing.T) {
			if slow(h) {
				t.Skip("under the race detector a small machine does not serve a demo on AWS without a failed request; the others race the same code")
			}
			if h.err != nil {
				t.Fatalf("%v\n%s", h.err, h.out.String())
			}
			checkResult(t, h.result)
			if h.provider == "aws" {
				checkAuditOfEach(t, h.result.AuditLog, h.steps)
			} else {
				checkAudit(t, h.result.AuditLog, h.steps)
			}
			if h.screen == nil {
				checkLines(t, h.out.String(), h.result)
			} else {
				checkFrames(t, h.out.String(), 60)
			}
		})
	}
}

func checkResult(t *testing.T, r *Result) {
	t.Helper()
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if want := []string{"failed", "requests"}; !slices.Equal(slices.Sorted(maps.Keys(got["without_usher"])), want) {
		t.Errorf("without_usher in %s, want %v", raw, want)
	}
	if want := []string{"drained", "failed", "requests", "result"}; !slices.Equal(slices.Sorted(maps.Keys(got["with_usher"])), want) || len(got) != 2 {
		t.Errorf("with_usher in %s, want %v", raw, want)
	}
	if got["with_usher"]["failed"] != 0.0 || got["with_usher"]["drained"] != 3.0 || got["with_usher"]["result"] != "CONTINUE" {
		t.Errorf("with_usher: %s", raw)
	}
	if r.Without.Failed == 0 || r.Without.Requests < 100 || r.With.Requests < 100 {
		t.Errorf("too little happened: %s", raw)
	}
}

// checkAudit holds the order of the audit log: steps of each instance in order, the
// answer after all of them, the ack after the answer.
func checkAudit(t *testing.T, log []byte, steps []string) {
	t.Helper()
	var events []string
	done := map[messages.InstanceID][]string{}
	for line := range bytes.Lines(log) {
		var r audit.Record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		switch r.Event {
		case audit.StepStarted, audit.Extended, audit.Heartbeat:
			continue
		case audit.StepFinished:
			done[r.Instance] = append(done[r.Instance], r.Step)
		}
		events = append(events, string(r.Event))
	}
	want := slices.Concat([]string{"started", "received", "admitted"}, slices.Repeat([]string{"step_finished"}, 3*len(steps)), []string{"completed", "acked", "stopped"})
	if !slices.Equal(events, want) {
		t.Errorf("events %v, want %v", events, want)
	}
	if len(done) != groupSize {
		t.Errorf("%d instances had steps", len(done))
	}
	for id, got := range done {
		if !slices.Equal(got, steps) {
			t.Errorf("%s: steps %v, want %v", id, got, steps)
		}
	}
}

// checkAuditOfEach holds each instance's own action to its order: AWS has one for each.
func checkAuditOfEach(t *testing.T, log []byte, steps []string) {
	t.Helper()
	got := map[messages.Token][]string{}
	for line := range bytes.Lines(log) {
		var r audit.Record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		switch r.Event {
		case audit.Extended, audit.Heartbeat, audit.StepStarted:
		case audit.StepFinished:
			got[r.Token] = append(got[r.Token], r.Step)
		default:
			if r.Token != "" {
				got[r.Token] = append(got[r.Token], string(r.Event))
			}
		}
	}
	if len(got) != groupSize {
		t.Errorf("%d actions, want %d", len(got), groupSize)
	}
	want := slices.Concat([]string{"received", "admitted"}, steps, []string{"completed", "acked"})
	for token, events := range got {
		if !slices.Equal(events, want) {
			t.Errorf("action %s: %v, want %v", token, events, want)
		}
	}
}

func checkLines(t *testing.T, out string, r *Result) {
	t.Helper()
	at := 0
	for _, want := range []string{"the fleet: 6 instances", "1/3 Without usher", "scale-in: i-", "without usher: " + r.Without.String(),
		"2/3 Restoring", "whole again", "3/3 With usher", "scale-in: i-", "usher: completed with CONTINUE", "usher: deleted the message", "with usher: " + r.With.String()} {
		i := strings.Index(out[at:], want)
		if i < 0 {
			t.Fatalf("no %q after byte %d of\n%s", want, at, out)
		}
		at += i
	}
	if strings.Contains(out, "\x1b") {
		t.Error("escape sequences in plain lines")
	}
}

// checkFrames holds that no line is wider than the terminal and that it is given back.
func checkFrames(t *testing.T, out string, width int) {
	t.Helper()
	if !strings.HasPrefix(out, "\x1b[?25l\x1b[?7l") || !strings.HasSuffix(out, "\x1b[?7h\x1b[?25h") {
		t.Errorf("the terminal is not taken and given back: %q ... %q", head(out), tail(out))
	}
	if frames := strings.Count(out, "usher demo"); frames < 20 {
		t.Errorf("%d frames", frames)
	}
	for line := range strings.SplitSeq(out, "\r\n") {
		if n := columns(line); n > width {
			t.Fatalf("a line of %d columns: %q", n, line)
		}
	}
	for _, want := range []string{"3/3 With usher", "Removing:Wait", "wait ok", "Released"} {
		if !strings.Contains(out, want) {
			t.Errorf("no frame shows %q", want)
		}
	}
}

func head(s string) string { return s[:min(len(s), 40)] }
func tail(s string) string { return s[max(len(s)-40, 0):] }

// columns counts what a terminal shows of a line.
func columns(line string) int {
	n, escape := 0, false
	for _, r := range line {
		switch {
		case r == '\x1b':
			escape = true
		case escape:
			escape = r == '[' || r == '?' || r == ';' || r >= '0' && r <= '9'
		case r != '\r':
			n++
		}
	}
	return n
}

func TestInterruptEndsTheDemo(t *testing.T) {
	t.Parallel()
	interrupt := errors.New("received interrupt")
	var running sync.WaitGroup
	defer running.Wait()
	for _, at := range []string{"1/3", "2/3", "http ok", "completed"} {
		running.Go(func() {
			ctx, cancel := context.WithCancelCause(t.Context())
			var when time.Time
			out := &output{seen: func(text string) {
				if strings.Contains(text, at) && when.IsZero() {
					when = time.Now()
					cancel(interrupt)
				}
			}}
			result, err := Run(ctx, Options{Progress: out, Timings: quick})
			if result != nil || !errors.Is(err, interrupt) {
				t.Errorf("%s: got %v, %v, want the interrupt", at, result, err)
			}
			took := time.Since(when)
			t.Logf("%s: stopped after %v", at, took)
		})
	}
}

func TestLimitEndsTheDemo(t *testing.T) {
	t.Parallel()
	result, err := Run(t.Context(), Options{Progress: &output{}, Timings: Timings{Limit: 300 * time.Millisecond}})
	if result != nil || err == nil || !strings.Contains(err.Error(), "not over after 300ms") {
		t.Errorf("got %v, %v", result, err)
	}
}

func TestNoFileIsLeft(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	ctx, cancel := context.WithCancel(t.Context())
	out := &output{seen: func(text string) {
		if strings.Contains(text, "scale-in") {
			cancel()
		}
	}}
	if _, err := Run(ctx, Options{Progress: out, Timings: Timings{WarmUp: time.Millisecond}}); err == nil {
		t.Error("the demo was not interrupted")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// As in a container whose root file system is read-only.
func TestConfigWithoutATemporaryFolder(t *testing.T) {
	if _, err := os.Stat("/dev/shm"); err != nil {
		t.Skip("no /dev/shm here")
	}
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	dir, err := temporaryFolder()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Error(err)
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		events []audit.Event
		closed bool
		want   string // part of the error
	}{
		{"nothing yet", []audit.Event{audit.Started, audit.Received, audit.Admitted}, false, ""},
		{"one more delivery", []audit.Event{audit.Admitted, audit.Ignored}, false, ""},
		{"answered", []audit.Event{audit.Admitted, audit.Completed}, false, ""},
		{"acked", []audit.Event{audit.Admitted, audit.Completed, audit.Acked}, true, ""},
		{"answered, the message comes back", []audit.Event{audit.Completed, audit.Released}, true, ""},
		{"handed back", []audit.Event{audit.Admitted, audit.Released}, true, "without a result: released"},
		{"lost", []audit.Event{audit.Admitted, audit.Lost}, true, "without a result: lost"},
		{"stale", []audit.Event{audit.Received, audit.Stale}, true, "without a result: stale"},
	} {
		var records []audit.Record
		for _, e := range tt.events {
			records = append(records, audit.Record{Event: e})
		}
		closed, err := verdict(records, 1)
		if closed != tt.closed || (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, %v", tt.name, closed, err)
		}
	}
}

// TestVerdictOfSeveral: all are waited for, and each needs a result of its own.
func TestVerdictOfSeveral(t *testing.T) {
	t.Parallel()
	of := func(token messages.Token, events ...audit.Event) (records []audit.Record) {
		for _, e := range events {
			records = append(records, audit.Record{Event: e, Token: token})
		}
		return records
	}
	first, second := of("a", audit.Admitted, audit.Completed, audit.Acked), of("b", audit.Admitted, audit.Completed, audit.Acked)
	if closed, err := verdict(first, 2); closed || err != nil {
		t.Errorf("one of two: %v, %v", closed, err)
	}
	if closed, err := verdict(append(slices.Clone(first), second...), 2); !closed || err != nil {
		t.Errorf("both: %v, %v", closed, err)
	}
	if closed, err := verdict(append(slices.Clone(first), of("b", audit.Admitted, audit.Released)...), 2); !closed || err == nil {
		t.Errorf("one without a result: %v, %v", closed, err)
	}
}

func TestPlansAreGoodConfigs(t *testing.T) {
	t.Parallel()
	base := plan{Provider: "alibaba", Region: "cn-shenzhen", Group: hookedGroup, Queue: "ess-lifecycle", URL: "http://127.0.0.1:4000"}
	for _, tt := range []struct {
		name  string
		port  int
		wait  time.Duration
		kinds string
	}{
		{"script", 8080, 0, "http wait_connections"},
		{"no script", 8080, 8 * time.Second, "http wait"},
		{"no port in common", 0, 8 * time.Second, "wait"},
		{"target group", 8080, 0, "deregister wait_connections"},
		{"target group, no port in common", 0, 8 * time.Second, "deregister wait"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := base
			if strings.HasPrefix(tt.name, "target group") {
				p.Provider, p.Region = "aws", "eu-west-1"
				p.TargetGroup = "arn:aws:elasticloadbalancing:eu-west-1:111122223333:targetgroup/tg-demo/9513e8cf1d785837"
			}
			p.Port, p.Wait = tt.port, tt.wait
			dir, err := p.write()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			c, err := configs.Load(dir, nil)
			if err != nil {
				raw, _ := os.ReadFile(filepath.Join(dir, "demo.yaml"))
				t.Fatalf("%v\n%s", err, raw)
			}
			var kinds []string
			for _, s := range c.Groups[0].Hooks[0].Steps {
				kinds = append(kinds, s.Kind)
			}
			if got := strings.Join(kinds, " "); got != tt.kinds || len(kinds) != p.count() {
				t.Errorf("steps %s, count %d, want %s", got, p.count(), tt.kinds)
			}
			if c.Worker.HTTP != "" {
				t.Errorf("the worker listens on %s", c.Worker.HTTP)
			}
		})
	}
}

func TestCommonPort(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		instances []simulator.InstanceState
		want      int
	}{
		{"each its address", []simulator.InstanceState{{Address: "127.2.0.1", Port: 80}, {Address: "127.2.0.2", Port: 80}}, 80},
		{"another port", []simulator.InstanceState{{Address: "127.2.0.1", Port: 80}, {Address: "127.2.0.2", Port: 81}}, 0},
		{"one address", []simulator.InstanceState{{Address: "127.0.0.1", Port: 80}, {Address: "127.0.0.1", Port: 80}}, 0},
		{"none", nil, 0},
	} {
		st := simulator.State{Groups: []simulator.GroupState{{ID: plainGroup}, {ID: hookedGroup, Instances: tt.instances}}}
		if got := commonPort(st); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestProblemsAreTold(t *testing.T) {
	t.Parallel()
	fine := Result{Without: Counts{Requests: 10, Failed: 1}, With: Drained{Counts: Counts{Requests: 10}, Drained: 3, Result: messages.Continue}}
	for _, tt := range []struct {
		name   string
		change func(*Result)
		want   string
	}{
		{"fine", func(*Result) {}, ""},
		{"none failed without", func(r *Result) { r.Without.Failed = 0 }, "without usher no request failed"},
		{"some failed with", func(r *Result) { r.With.Failed, r.With.reasons = 2, "2 cut off" }, "with usher 2 requests failed (2 cut off)"},
		{"not all drained", func(r *Result) { r.With.Drained = 2 }, "drained 2 of 3"},
		{"abandoned", func(r *Result) { r.With.Result = messages.Abandon }, "result ABANDON"},
		{"no answer", func(r *Result) { r.With.Result = "" }, "result none"},
	} {
		r := fine
		tt.change(&r)
		got := strings.Join(r.problems(), "; ")
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	for _, tt := range []struct {
		actions []simulator.ActionState
		want    string
	}{
		{[]simulator.ActionState{{Status: "Completed", EndedBy: "call", Result: "CONTINUE"}}, ""},
		{[]simulator.ActionState{{Status: "Timeout", EndedBy: "timeout", Result: "CONTINUE"}}, "ended by timeout"},
		{[]simulator.ActionState{{Status: "Completed", EndedBy: "call", Result: "ABANDON"}}, "ABANDON"},
		{nil, "0 lifecycle actions"},
	} {
		got := strings.Join(doubts(simulator.State{Actions: tt.actions}, 1, messages.Continue), "; ")
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%v: got %q, want %q", tt.actions, got, tt.want)
		}
	}
}

func TestSummary(t *testing.T) {
	t.Parallel()
	r := &Result{
		Without: Counts{Requests: 525, Failed: 12, Took: 100 * time.Millisecond, reasons: "9 answered 502, 3 cut off"},
		With:    Drained{Counts: Counts{Requests: 1243, Took: 8100 * time.Millisecond}, Drained: 3, Result: messages.Continue},
	}
	want := `              without usher     with usher
  requests              525           1243
  failed                 12              0
  took                0.1 s          8.1 s
  drained                 -         3 of 3
  result                  -       CONTINUE

  Failed without usher: 9 answered 502, 3 cut off.

  Next: write a file for your scaling group (README.md shows how), check it with
  usher validate DIR, and start the worker with usher run --config DIR.
`
	var plain []string
	for line := range strings.Lines(r.Summary(false)) {
		plain = append(plain, strings.TrimRight(line, " \n")+"\n")
		if columns(strings.TrimSuffix(line, "\n")) > 80 {
			t.Errorf("too wide: %q", line)
		}
	}
	if got := strings.Join(plain, ""); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if coloured := r.Summary(true); !strings.Contains(coloured, fmt.Sprintf("\x1b[31m%15d\x1b[0m", 12)) {
		t.Errorf("the failures are not red: %q", coloured)
	}
}
