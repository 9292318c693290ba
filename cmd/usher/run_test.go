package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// The tests here run usher in processes of its own, over real sockets.

// TestScaleIn is the product's one job, from the command line to the cloud and back.
func TestScaleIn(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(6, false))
	w := startWorker(t, c, keys, "- wait: {for: 100ms}\n- wait: {for: 50ms}", "")
	w.awaitReady(t)
	if s := w.health(t); s.code != 0 || s.stdout != "ok\n" {
		t.Errorf("healthy: %+v", s)
	}
	activity := c.scaleIn(t, 5)
	c.awaitCompleted(t, 1, "CONTINUE")
	acked := w.awaitRecords(t, 1, audit.Acked)[0]
	until(t, "the instances released", func() bool { return len(c.state(t).Groups[0].Instances) == 1 })
	w.signal(t, syscall.SIGTERM)
	w.wantExit(t)

	if len(acked.Instances) != 5 || string(acked.Token) != activity.Tokens[0] || acked.Result != "CONTINUE" || acked.Reason != "5 of 5 jobs succeeded" {
		t.Errorf("closing record %+v", acked)
	}
	records := w.records(t)
	for _, r := range records {
		if r.Schema != audit.Schema || r.Time.IsZero() || r.Worker == "" {
			t.Errorf("record without time, schema or worker: %+v", r)
		}
		if r.Event.Closes() != (r.Event == audit.Acked) {
			t.Errorf("%s closes the delivery, too", r.Event)
		}
	}
	want := []audit.Event{audit.Received, audit.Admitted}
	for range 5 {
		want = append(want, audit.StepStarted, audit.StepFinished, audit.StepStarted, audit.StepFinished)
	}
	want = append(want, audit.Completed, audit.Acked)
	// A slow machine may have to renew the message before a step.
	got := slices.DeleteFunc(eventsOf(records, acked.MessageID), func(e audit.Event) bool { return e == audit.Extended })
	// The jobs run at once: only each one's own steps have an order.
	inOrder, wanted := slices.Clone(got), slices.Clone(want)
	slices.Sort(inOrder)
	slices.Sort(wanted)
	if !slices.Equal(inOrder, wanted) || !slices.Equal(got[:2], want[:2]) || !slices.Equal(got[len(got)-2:], want[len(want)-2:]) {
		t.Errorf("the action's trail is %v, want %v", got, want)
	}
	for _, id := range activity.Instances {
		var steps []string
		for _, r := range records {
			if string(r.Instance) == id {
				steps = append(steps, strings.TrimSpace(string(r.Event)+" "+r.Result))
			}
		}
		if want := []string{"step_started", "step_finished ok", "step_started", "step_finished ok"}; !slices.Equal(steps, want) {
			t.Errorf("trail of %s: %v, want %v", id, steps, want)
		}
	}
	all := eventsOf(records, "")
	if all[0] != audit.Started || all[len(all)-1] != audit.Stopped {
		t.Errorf("the log is not framed by started and stopped: %v", all)
	}
	for _, text := range []string{"msg=started", "msg=admitted", "msg=closed", "msg=stopping", "msg=stopped"} {
		if !strings.Contains(w.stderr.String(), text) {
			t.Errorf("the operational log lacks %s", text)
		}
	}
	c.signal(t, syscall.SIGTERM)
	c.wantExit(t)
}

// TestAuditFile: the audit log goes to its file alone and is added to at the next start.
func TestAuditFile(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(2, false))
	file := filepath.Join(t.TempDir(), "audit.log")
	for i := 1; i <= 2; i++ {
		w := startWorker(t, c, keys, "- wait: {for: 1ms}", "audit: {file: "+file+"}\n")
		c.scaleIn(t, 1)
		c.awaitCompleted(t, i, "CONTINUE")
		w.signal(t, syscall.SIGINT)
		w.wantExit(t)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		records := parseRecords(t, string(text))
		if count(records, audit.Acked) != i || count(records, audit.Stopped) != i {
			t.Errorf("after run %d the file has %v", i, eventsOf(records, ""))
		}
		if w.stdout.String() != "" {
			t.Errorf("standard output has %s", w.stdout.String())
		}
	}
}

// TestAuditFileTornByACrash: a worker was killed while its disk took only half a record.
// The next one begins on a line of its own.
func TestAuditFileTornByACrash(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(1, false))
	file := filepath.Join(t.TempDir(), "audit.log")
	const torn = `{"time":"2026-01-01T00:00:00Z","sch`
	if err := os.WriteFile(file, []byte(torn), 0o600); err != nil {
		t.Fatal(err)
	}
	w := startWorker(t, c, keys, "- wait: {for: 1ms}", "audit: {file: "+file+"}\n")
	c.scaleIn(t, 1)
	c.awaitCompleted(t, 1, "CONTINUE")
	w.signal(t, syscall.SIGINT)
	w.wantExit(t)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rest, ok := strings.CutPrefix(string(text), torn+"\n")
	if !ok {
		t.Fatalf("the file begins with %.100q", text)
	}
	if records := parseRecords(t, rest); count(records, audit.Started) != 1 || count(records, audit.Stopped) != 1 {
		t.Errorf("after the torn line the file has %v", eventsOf(records, ""))
	}
}

// TestStepsReachTheInstance: http, wait_connections and command do what they say on a
// simulated instance, whose scripts really run here.
func TestStepsReachTheInstance(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"sh", "awk"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the connection script needs %s: %v", tool, err)
		}
	}
	if _, err := os.Stat("/proc/net/tcp"); err != nil {
		t.Skipf("the connection script needs /proc/net/tcp: %v", err)
	}
	c := startCloud(t, scenario(2, false), "--exec")
	in := c.state(t).Groups[0].Instances[0]
	proof := filepath.Join(t.TempDir(), "proof")
	port := strconv.Itoa(in.Port)
	w := startWorker(t, c, keys, `- http: {method: PUT, url: "http://{{.PrivateIP}}:`+port+`/actuator/health/down", expect: [200, 204], timeout: 10s}
- http: {url: "http://{{.PrivateIP}}:`+port+`/actuator/health", expect: [503], every: 1s, clear_checks: 2, timeout: 10s}
- wait_connections: {ports: [`+port+`], exclude: [127.0.0.1/32], local_address: "{{.PrivateIP}}", every: 1s, clear_checks: 2, quiet_for: 1s, timeout: 40s}
- command: {script: 'echo "$USHER_SIMULATOR_INSTANCE" >`+proof+`', timeout: 20s}`, "")

	// A client in the middle of a request, from another address than the health checks'.
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.9:0"))}
	busy, err := dialer.DialContext(t.Context(), "tcp", net.JoinHostPort(in.Address, port))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	fmt.Fprint(busy, "GET / HTTP/1.1\r\n")

	c.scaleIn(t, 1)
	until(t, "the connection script", func() bool { return c.state(t).Commands == 1 })
	// Long enough for the script to find the connections quiet, were the busy one not there.
	watched := time.After(4 * time.Second)
	select {
	case <-watched:
	case <-w.ended:
		t.Fatal("the worker has ended")
	}
	if n := count(w.records(t), audit.StepFinished); n != 2 {
		t.Errorf("%d steps are finished while a client is in the middle of a request, want 2", n)
	}
	closed := time.Now()
	busy.Close()
	c.awaitCompleted(t, 1, "CONTINUE")

	finished := w.awaitRecords(t, 4, audit.StepFinished)
	for i, name := range []string{"http", "http", "wait_connections", "command"} {
		r := finished[i]
		if r.Step != name || r.Result != "ok" || r.Reason == "" || string(r.Instance) != in.ID {
			t.Errorf("step %d: %+v", i+1, r)
		}
		if name == "wait_connections" && r.Time.Before(closed) {
			t.Error("wait_connections was over before the connection was")
		}
	}
	if text, err := os.ReadFile(proof); err != nil || string(text) != in.ID+"\n" {
		t.Errorf("the command wrote %q, %v", text, err)
	}
	if n := c.state(t).Commands; n != 2 {
		t.Errorf("%d commands ran, want 2: a wait costs one", n)
	}
}

// TestFailedStep: the answer is the policy's, the audit log names the step.
func TestFailedStep(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(2, false)) // without --exec: no instance has an agent
	w := startWorker(t, c, keys, "- command: {script: 'true', timeout: 10s}", "")
	c.scaleIn(t, 2)
	c.awaitCompleted(t, 1, "ROLLBACK")
	r := w.awaitRecords(t, 1, audit.Completed)[0]
	if r.Result != "ROLLBACK" || !strings.Contains(r.Reason, "2 of 2 jobs failed; step command of i-") {
		t.Errorf("got %+v", r)
	}
}

// TestBadMessages: nothing that stands in the queue stops the worker or is lost
// without a trace.
func TestBadMessages(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(2, false))
	for _, body := range []string{"garbage", `{\"product\":`, strings.Repeat("A", 64<<10), `{\"product\":\"ESS\",\"event\":\"AUTOSCALING:SCALE_IN_SUCCESS\",\"content\":{}}`} {
		ask[any](t, c, "POST", "/simulator/queues/lifecycle/messages", `{"body": "`+body+`"}`)
	}
	w := startWorker(t, c, keys, "- wait: {for: 10ms}", "max_receives: 1\n")
	c.scaleIn(t, 2)
	c.awaitCompleted(t, 1, "CONTINUE")
	for _, r := range w.awaitRecords(t, 3, audit.Quarantined) {
		if r.Body == "" && r.BodyBase64 == nil || r.Error == "" {
			t.Errorf("quarantined without body or error: %.300v", r)
		}
	}
	if r := w.awaitRecords(t, 1, audit.Ignored)[0]; !strings.Contains(r.Reason, "SCALE_IN_SUCCESS") {
		t.Errorf("ignored for %q", r.Reason)
	}
	w.signal(t, syscall.SIGTERM)
	w.wantExit(t)
	records := w.records(t)
	if n := count(records, audit.Received); n != 5 {
		t.Errorf("%d received, want 5", n)
	}
	for _, r := range records {
		if r.Event == audit.Received {
			closing := slices.DeleteFunc(eventsOf(records, r.MessageID), func(e audit.Event) bool { return !e.Closes() })
			if len(closing) != 1 {
				t.Errorf("message %s has the closing records %v, want one", r.MessageID, closing)
			}
		}
	}
}

// TestKilledWorker: what a killed worker held is taken over within one visibility
// timeout, from the first step, and each action is answered once.
func TestKilledWorker(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second // of configFor
	c := startCloud(t, scenario(3, true))
	first := startWorker(t, c, keys, "- wait: {for: 1ms}\n- wait: {for: 1m}", "name: first\n")
	c.scaleIn(t, 3)
	first.awaitRecords(t, 6, audit.StepStarted)
	first.awaitRecords(t, 3, audit.Extended) // the lease is the worker's own from now on
	second := startWorker(t, c, keys, "- wait: {for: 1ms}\n- wait: {for: 10ms}", "name: second\n")
	second.awaitPolling(t, c)
	killed := first.signal(t, syscall.SIGKILL)
	c.awaitCompleted(t, 3, "CONTINUE")

	var latest time.Time
	for _, e := range c.events(t, simulator.MessageReceived) {
		if e.Receives > 2 {
			t.Errorf("message %s was received %d times", e.MessageID, e.Receives)
		}
		if e.Receives == 2 && e.Time.After(latest) {
			latest = e.Time
		}
	}
	took := latest.Sub(killed)
	t.Logf("all were taken over %v after the kill, the visibility timeout is %v", took, lease)
	if took > 2*lease { // it comes as soon as the second worker is given the time
		t.Errorf("a takeover took %v, longer than one visibility timeout", took)
	}
	acked := second.awaitRecords(t, 3, audit.Acked)
	for _, r := range acked {
		want := []audit.Event{
			audit.Received, audit.Admitted, audit.StepStarted, audit.StepFinished, audit.StepStarted, audit.StepFinished, audit.Completed, audit.Acked,
		}
		got := slices.DeleteFunc(eventsOf(second.records(t), r.MessageID), func(e audit.Event) bool { return e == audit.Extended })
		if !slices.Equal(got, want) || r.ReceiveCount != 2 {
			t.Errorf("receive %d: %v, want %v", r.ReceiveCount, got, want)
		}
	}
	if n := count(first.records(t), audit.Completed); n != 0 {
		t.Errorf("the killed worker has completed %d", n)
	}
}

// TestKilledBeforeDeleting: an action that was answered, whose message was not deleted,
// is over for the next worker; nothing is done twice.
func TestKilledBeforeDeleting(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(1, false))
	first := startWorker(t, c, keys, "- wait: {for: 10ms}", "name: first\n")
	c.fault(t, `{"service": "mns", "action": "DeleteMessage", "kind": "hang", "count": 1}`)
	c.scaleIn(t, 1)
	until(t, "a deletion that hangs", func() bool {
		calls := c.state(t).APICalls
		return calls["mns.DeleteMessage"]+calls["mns.BatchDeleteMessage"] > 0
	})
	second := startWorker(t, c, keys, "- wait: {for: 10ms}", "name: second\n")
	first.signal(t, syscall.SIGKILL)
	c.awaitCompleted(t, 1, "CONTINUE")
	second.awaitRecords(t, 1, audit.Stale)
	if n := count(second.records(t), audit.StepStarted); n != 0 {
		t.Errorf("%d steps were run again", n)
	}
	if got := len(c.events(t, simulator.ActionCompleted)); got != 1 || count(first.records(t), audit.Completed) != 1 {
		t.Errorf("completed %d times", got)
	}
}

// TestPausedWorker: a worker that slept through its lease, as in a paused virtual
// machine, does not touch what another has taken over.
func TestPausedWorker(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(1, false))
	first := startWorker(t, c, keys, "- wait: {for: 3s}\n- wait: {for: 10ms}", "name: first\n")
	c.scaleIn(t, 1)
	first.awaitRecords(t, 1, audit.StepStarted)
	first.signal(t, syscall.SIGSTOP)
	second := startWorker(t, c, keys, "- wait: {for: 8s}", "name: second\n")
	second.awaitRecords(t, 1, audit.StepStarted)
	first.signal(t, syscall.SIGCONT)
	lost := first.awaitRecords(t, 1, audit.Lost)[0]
	c.awaitCompleted(t, 1, "CONTINUE")
	second.awaitRecords(t, 1, audit.Acked)

	if len(lost.Instances) != 1 || lost.Error == "" {
		t.Errorf("lost: %+v", lost)
	}
	if got := first.records(t); count(got, audit.Completed) != 0 || count(got, audit.StepStarted) != 1 || count(got, audit.Heartbeat) != 0 {
		t.Errorf("the paused worker went on: %v", eventsOf(got, ""))
	}
	if n := len(c.events(t, simulator.ActionCompleted)); n != 1 {
		t.Errorf("completed %d times", n)
	}
	// It is of use again.
	first.awaitReady(t)
	first.signal(t, syscall.SIGTERM)
	first.wantExit(t)
}
