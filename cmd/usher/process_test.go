package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// patience bounds every wait of these tests. It is no expectation.
const patience = 2 * time.Minute

// soon is less than what must not be sat out (a long poll, a job, a grace), and far more
// than what is done takes on a busy machine.
const soon = 15 * time.Second

// lookEvery is how often something that tells nobody of its changes is asked.
const lookEvery = 20 * time.Millisecond

// mark is in every key, secret and token of these tests, so that it can be looked for in
// all that a process says. The gate looks for it in what the tests themselves print.
const (
	mark      = "usherTESTsecret"
	keyID     = mark + "KeyId"
	keySecret = mark + "Key"
)

// captured is what a process writes, and can be waited for.
type captured struct {
	mu    sync.Mutex
	text  []byte        // guarded by mu
	grown chan struct{} // guarded by mu; closed when text has grown
}

func (o *captured) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	if o.grown != nil {
		close(o.grown)
		o.grown = nil
	}
	return len(p), nil
}

// look gives what there is, and a channel that is closed when there is more.
func (o *captured) look() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.grown == nil {
		o.grown = make(chan struct{})
	}
	return string(o.text), o.grown
}

func (o *captured) String() string {
	text, _ := o.look()
	return text
}

// process is usher in a process of its own.
type process struct {
	*exec.Cmd
	stdout, stderr captured
	ended          chan struct{} // closed when it has ended and all output is there
}

// start runs the program with these arguments until the test ends, at the latest.
func start(tb testing.TB, program string, env []string, args ...string) *process {
	tb.Helper()
	return startInto(tb, nil, program, env, args...)
}

// startInto is start with another standard output; nil: what the process keeps.
func startInto(tb testing.TB, stdout io.Writer, program string, env []string, args ...string) *process {
	tb.Helper()
	p := &process{Cmd: exec.Command(program, args...), ended: make(chan struct{})}
	// Under the race detector a process would sleep for a second before it ends.
	p.Env = append(slices.Clone(env), asUsher+"=1", "GORACE=atexit_sleep_ms=0", "PATH="+os.Getenv("PATH"), "HOME="+tb.TempDir(), "TMPDIR="+tb.TempDir())
	p.Stdout, p.Stderr = stdout, &p.stderr
	if stdout == nil {
		p.Stdout = &p.stdout
	}
	stdin, err := p.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := p.Start(); err != nil {
		tb.Fatal(err)
	}
	var waiting sync.WaitGroup
	waiting.Go(func() {
		defer close(p.ended)
		_ = p.Wait() // the exit code is looked at by who cares
	})
	tb.Cleanup(func() {
		// Killing works on a stopped process, too. One that has ended is no problem.
		_ = p.Process.Kill()
		waiting.Wait()
		stdin.Close()
		if strings.Contains(p.stderr.String(), "DATA RACE") {
			tb.Error("the race detector has found something")
		}
		if strings.Contains(p.stdout.String()+p.stderr.String(), mark) {
			tb.Error("a secret, or the id of a key, was printed") // and is not printed again
			return
		}
		if tb.Failed() {
			tb.Logf("usher %s\nstdout:\n%s\nstderr:\n%s", strings.ReplaceAll(strings.Join(args, " "), mark, "***"), tail(p.stdout.String()), tail(p.stderr.String()))
		}
	})
	return p
}

// tail is the end of a log, where what went wrong stands.
func tail(text string) string { return text[max(0, len(text)-6000):] }

func (p *process) signal(tb testing.TB, s syscall.Signal) time.Time {
	tb.Helper()
	at := time.Now()
	if err := p.Process.Signal(s); err != nil {
		tb.Fatalf("%v: %v", s, err)
	}
	return at
}

// wantExit waits for the end, wants exit code 0, and says when it came.
func (p *process) wantExit(tb testing.TB) time.Time {
	tb.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		tb.Fatal("it does not end")
	}
	at := time.Now()
	if code := p.ProcessState.ExitCode(); code != 0 {
		tb.Errorf("exit code %d (%v), want 0", code, p.ProcessState)
	}
	return at
}

// await waits until text that the process writes is as wanted.
func (p *process) await(tb testing.TB, o *captured, what string, found func(text string) bool) {
	tb.Helper()
	late := time.After(patience)
	for ended := false; ; {
		text, grown := o.look()
		if found(text) {
			return
		}
		if ended {
			tb.Fatalf("it has ended, and not said: %s", what)
		}
		select {
		case <-grown:
		case <-p.ended:
			ended = true
		case <-late:
			tb.Fatalf("waited %v for: %s", patience, what)
		}
	}
}

// records are the audit records on standard output so far.
func (p *process) records(tb testing.TB) []audit.Record {
	tb.Helper()
	return parseRecords(tb, p.stdout.String())
}

func parseRecords(tb testing.TB, text string) []audit.Record {
	tb.Helper()
	var records []audit.Record
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, "\n") {
			break // not all of it is there
		}
		var r audit.Record
		dec := json.NewDecoder(strings.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&r); err != nil {
			tb.Fatalf("an audit line is no record: %v: %s", err, line)
		}
		records = append(records, r)
	}
	return records
}

// awaitRecords waits for n records of an event.
func (p *process) awaitRecords(tb testing.TB, n int, event audit.Event) []audit.Record {
	tb.Helper()
	var found []audit.Record
	p.await(tb, &p.stdout, fmt.Sprintf("%d x %s in the audit log", n, event), func(text string) bool {
		found = slices.DeleteFunc(parseRecords(tb, text), func(r audit.Record) bool { return r.Event != event })
		return len(found) >= n
	})
	return found
}

// eventsOf are the audit events in order; of one message, if it is named.
func eventsOf(records []audit.Record, messageID string) []audit.Event {
	var events []audit.Event
	for _, r := range records {
		if messageID == "" || r.MessageID == messageID {
			events = append(events, r.Event)
		}
	}
	return events
}

func count(records []audit.Record, event audit.Event) int {
	n := 0
	for _, r := range records {
		if r.Event == event {
			n++
		}
	}
	return n
}

// client keeps no connections, and so no goroutines.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}

func fetch(tb testing.TB, req *http.Request) (int, string) {
	tb.Helper()
	res, err := client.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func newRequest(tb testing.TB, method, url, body string) *http.Request {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), method, url, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	return req
}

// until asks again and again until found says so.
func until(tb testing.TB, what string, found func() bool) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for !found() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tb.Fatalf("waited %v for: %s", patience, what)
		}
	}
}

// cloud is usher simulate in a process of its own.
type cloud struct {
	*process
	url string
}

// group is the scaling group of scenario.
const group = "asg-web"

// scenario is one group with a scale-in hook. Each instance is an action of its own
// with split.
func scenario(instances int, split bool) string {
	return fmt.Sprintf(`region: cn-shenzhen
queues: [{name: lifecycle, visibility_timeout: 3s}]
balancers: [{id: alb-web}]
scaling_groups:
  - id: %s
    instances: %d
    split_activity: %t
    balancers: [alb-web]
    hooks: [{id: ash-in, name: drain, transition: scale_in, queue: lifecycle, metadata: "for 中文"}]
`, group, instances, split)
}

func startCloud(t *testing.T, scenario string, args ...string) *cloud {
	t.Helper()
	file := filepath.Join(t.TempDir(), "scenario.yaml")
	if err := os.WriteFile(file, []byte(scenario), 0o600); err != nil {
		t.Fatal(err)
	}
	args = append([]string{"simulate", "--listen", "127.0.0.1:0", "--access-key-id", keyID, "--access-key-secret", keySecret, "--scenario", file}, args...)
	c := &cloud{process: start(t, os.Args[0], nil, args...)}
	c.await(t, &c.stdout, "the line with the endpoints", func(text string) bool { return strings.HasSuffix(text, "\n") })
	line := decodeJSON[map[string]string](t, c.stdout.String())
	c.url = line["mns"]
	for _, key := range []string{"mns", "ess", "ecs", "control", "region", "account"} {
		if line[key] == "" {
			t.Fatalf("the line with the endpoints lacks %s: %v", key, line)
		}
	}
	return c
}

func ask[T any](t *testing.T, c *cloud, method, path, body string) T {
	t.Helper()
	status, text := fetch(t, newRequest(t, method, c.url+path, body))
	if status >= 300 {
		t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
	var v T
	if text != "" {
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatalf("%s %s: %v: %s", method, path, err, text)
		}
	}
	return v
}

func (c *cloud) state(t *testing.T) simulator.State {
	t.Helper()
	return ask[simulator.State](t, c, http.MethodGet, "/simulator/state", "")
}

func (c *cloud) events(t *testing.T, types ...simulator.EventType) []simulator.Event {
	t.Helper()
	all := ask[[]simulator.Event](t, c, http.MethodGet, "/simulator/events", "")
	return slices.DeleteFunc(all, func(e simulator.Event) bool { return len(types) > 0 && !slices.Contains(types, e.Type) })
}

func (c *cloud) scaleIn(t *testing.T, n int) simulator.Activity {
	t.Helper()
	return ask[simulator.Activity](t, c, http.MethodPost, "/simulator/scaling-groups/"+group+"/scale-in", fmt.Sprintf(`{"count": %d}`, n))
}

func (c *cloud) fault(t *testing.T, text string) {
	t.Helper()
	ask[any](t, c, http.MethodPost, "/simulator/faults", text)
}

func (c *cloud) clearFaults(t *testing.T) {
	t.Helper()
	ask[any](t, c, http.MethodDelete, "/simulator/faults", "")
}

// mns makes a signed call of MNS 2015-06-06 (signature V2).
func (c *cloud) mns(t *testing.T, method, path, body string) {
	t.Helper()
	req := newRequest(t, method, c.url+path, body)
	req.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	req.Header.Set("X-Mns-Version", "2015-06-06")
	req.Header.Set("Content-Type", "text/xml")
	mac := hmac.New(sha1.New, []byte(keySecret))
	fmt.Fprintf(mac, "%s\n\ntext/xml\n%s\nx-mns-version:2015-06-06\n%s", method, req.Header.Get("Date"), path)
	req.Header.Set("Authorization", "MNS "+keyID+":"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	if status, text := fetch(t, req); status >= 300 {
		t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
}

func (c *cloud) createQueue(t *testing.T) {
	t.Helper()
	c.mns(t, http.MethodPut, "/queues/lifecycle", `<Queue xmlns="http://mns.aliyuncs.com/doc/v1/"><VisibilityTimeout>3</VisibilityTimeout></Queue>`)
}

func (c *cloud) deleteQueue(t *testing.T) {
	t.Helper()
	c.mns(t, http.MethodDelete, "/queues/lifecycle", "")
}

// awaitCompleted waits until n actions are completed and their messages deleted, and
// wants what must hold in every test: each was answered once, by a call, with this
// result, and no message was deleted before its action was over.
func (c *cloud) awaitCompleted(t *testing.T, n int, result string) {
	t.Helper()
	until(t, fmt.Sprintf("%d actions completed and an empty queue", n), func() bool {
		st := c.state(t)
		done := 0
		for _, a := range st.Actions {
			if a.Status == "Completed" {
				done++
			}
		}
		queue, ok := st.Queue("lifecycle")
		return done >= n && (!ok || queue.Active+queue.Inactive+queue.Delayed == 0)
	})
	for _, a := range c.state(t).Actions {
		if a.Status != "Completed" || a.Result != result || a.EndedBy != "call" {
			t.Errorf("action %s: %s, %s, ended by %s; want Completed, %s, by call", a.Token, a.Status, a.Result, a.EndedBy, result)
		}
	}
	c.wantOrder(t)
}

// wantOrder wants each action ended at most once and no message deleted before that.
func (c *cloud) wantOrder(t *testing.T) {
	t.Helper()
	ended := map[string]int{}
	for _, e := range c.events(t) {
		switch e.Type {
		case simulator.ActionCompleted, simulator.ActionTimedOut:
			if ended[e.Token]++; ended[e.Token] > 1 {
				t.Errorf("action %s was ended twice", e.Token)
			}
		case simulator.MessageDeleted:
			if e.Token != "" && ended[e.Token] == 0 {
				t.Errorf("message %s was deleted before its action %s was over", e.MessageID, e.Token)
			}
		}
	}
}

// worker is usher run in a process of its own.
type worker struct {
	*process
	address string // of /healthz and /readyz
}

// keys are the environment of a worker that the cloud accepts.
var keys = []string{"ALIBABA_CLOUD_ACCESS_KEY_ID=" + keyID, "ALIBABA_CLOUD_ACCESS_KEY_SECRET=" + keySecret}

// steps is YAML, one step a line; settings are lines of usher.yaml.
func startWorker(t *testing.T, c *cloud, env []string, steps, settings string) *worker {
	t.Helper()
	return startWorkerInto(t, nil, c, env, steps, settings)
}

func startWorkerInto(t *testing.T, stdout io.Writer, c *cloud, env []string, steps, settings string) *worker {
	t.Helper()
	return startWorkerOn(t, stdout, env, configFor(t, c.url, steps, settings))
}

// startWorkerOn runs a worker with the config folder dir.
func startWorkerOn(t *testing.T, stdout io.Writer, env []string, dir string) *worker {
	t.Helper()
	w := &worker{process: startInto(t, stdout, os.Args[0], env, "run", "--config", dir)}
	address := regexp.MustCompile(`serving /healthz and /readyz" address=(\S+)`)
	w.await(t, &w.stderr, "where the health endpoints are", func(text string) bool {
		m := address.FindStringSubmatch(text)
		if m != nil {
			w.address = m[1]
		}
		return m != nil
	})
	return w
}

// configFor writes the config folder of a worker for scenario's group. Its lease is
// the shortest that there is.
func configFor(tb testing.TB, url, steps, settings string) string {
	tb.Helper()
	dir := tb.TempDir()
	var indented strings.Builder
	for line := range strings.Lines(steps) {
		indented.WriteString("      " + line)
	}
	for name, text := range map[string]string{
		"web.yaml": fmt.Sprintf(`provider: alibaba
region: cn-shenzhen
scaling_group: %s
queue: {name: lifecycle, endpoint: "%s"}
endpoints: {ess: "%s", ecs: "%s"}
hooks:
  - transition: scale_in
    deadline: 5m
    on_failure: ROLLBACK
    steps:
%s
`, group, url, url, url, indented.String()),
		"usher.yaml": "http: 127.0.0.1:0\nvisibility_timeout: 10s\nlog: {level: debug}\n" + settings,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

// health asks /healthz or /readyz as the health command does.
func (w *worker) health(t *testing.T, args ...string) said {
	t.Helper()
	return usher(t, "", append([]string{"health", "--http", w.address}, args...)...)
}

func (w *worker) awaitReady(t *testing.T) {
	t.Helper()
	until(t, "a worker that is ready", func() bool { return w.health(t, "--ready").code == 0 })
}

// awaitPolling waits until a long poll of the worker is open.
func (w *worker) awaitPolling(t *testing.T, c *cloud) {
	t.Helper()
	before := c.state(t).APICalls["mns.BatchReceiveMessage"]
	until(t, "a poll", func() bool { return c.state(t).APICalls["mns.BatchReceiveMessage"] >= max(before, 1) })
}
