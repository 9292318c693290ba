package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.org/usher/worker/audit"
)

// wantUpNotReady wants the process up and healthy, and not ready for these reasons.
func (w *worker) wantUpNotReady(t *testing.T, reasons ...string) {
	t.Helper()
	until(t, "a worker that is not ready because "+strings.Join(reasons, ", "), func() bool {
		s := w.health(t, "--ready")
		for _, reason := range append(reasons, "503") {
			if !strings.Contains(s.stderr, reason) {
				return false
			}
		}
		return s.code == 1
	})
	w.health(t).want(t, 0, "ok")
}

// TestQueueMissing: a worker whose queue does not exist stays up, says which and what
// to do, and works as soon as there is one.
func TestQueueMissing(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(2, false))
	c.deleteQueue(t)
	w := startWorker(t, c, keys, "- wait: {for: 10ms}", "")
	w.wantUpNotReady(t, "queue lifecycle: ", "queue does not exist", "QueueNotExist", "check queue.name, queue.endpoint and the account")
	if n := strings.Count(w.stderr.String(), `msg="can't receive"`); n != 1 {
		t.Errorf("the log says it %d times, want once", n)
	}
	c.createQueue(t)
	w.awaitReady(t)
	c.scaleIn(t, 1)
	c.awaitCompleted(t, 1, "CONTINUE")
	w.signal(t, syscall.SIGTERM)
	w.wantExit(t)
}

// TestQueueDeletedWhileHeld: an action that is held goes on without its message.
func TestQueueDeletedWhileHeld(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(3, false))
	w := startWorker(t, c, keys, "- wait: {for: 4s}", "")
	c.scaleIn(t, 1)
	w.awaitRecords(t, 1, audit.StepStarted)
	c.deleteQueue(t)
	w.wantUpNotReady(t, "queue lifecycle: ", "queue does not exist")
	c.awaitCompleted(t, 1, "CONTINUE")
	w.awaitRecords(t, 1, audit.Acked)
	c.createQueue(t)
	w.awaitReady(t)
	c.scaleIn(t, 1)
	c.awaitCompleted(t, 2, "CONTINUE")
}

// TestReconcile: instances that wait in a hook are found and drained although no message
// tells of them.
func TestReconcile(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(3, false))
	c.deleteQueue(t)
	c.scaleIn(t, 2)
	w := startWorker(t, c, keys, "- wait: {for: 10ms}", "reconcile: {every: 10s}\n")
	c.awaitCompleted(t, 1, "CONTINUE")
	w.awaitRecords(t, 1, audit.Acked)
	records := w.records(t)
	if adopted, steps := count(records, audit.Adopted), count(records, audit.StepFinished); adopted != 1 || steps != 2 {
		t.Errorf("%d actions adopted, %d steps: %v", adopted, steps, eventsOf(records, ""))
	}
	w.signal(t, syscall.SIGTERM)
	w.wantExit(t)
}

// TestRefusedKeys: keys that the cloud does not know, that are wrong or that are not
// there leave the worker up, not ready, with a reason that says what to do and gives
// nothing away.
func TestRefusedKeys(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(2, false))
	for name, refused := range map[string]struct {
		env  []string
		want []string
	}{
		"unknown id":   {[]string{"ALIBABA_CLOUD_ACCESS_KEY_ID=somebody", keys[1]}, []string{"denied", "InvalidAccessKeyId"}},
		"wrong secret": {[]string{keys[0], keys[1] + "x"}, []string{"denied", "SignatureDoesNotMatch"}},
		"none":         {nil, []string{"no credentials", "ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET"}},
		"no token":     {append(slices.Clone(keys), "ALIBABA_CLOUD_SECURITY_TOKEN="+mark+"Token"), []string{"denied", "InvalidSecurityToken"}},
		"line feed":    {[]string{keys[0], keys[1] + "\n"}, []string{"no credentials", "white space"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := startWorker(t, c, refused.env, "- wait: {for: 10ms}", "")
			w.wantUpNotReady(t, append(refused.want, "queue lifecycle: ")...)
			stopped := w.signal(t, syscall.SIGTERM)
			if took := w.wantExit(t).Sub(stopped); took > soon {
				t.Errorf("the stop took %v", took)
			}
		})
	}
}

// TestNobodyReadsTheAudit: when the reader of its standard output has died, a worker
// does not die of it with what it holds: it says that it is unhealthy, and can be
// stopped in order.
func TestNobodyReadsTheAudit(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(2, false))
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w := startWorkerInto(t, write, c, keys, "- wait: {for: 10ms}", "")
	w.awaitReady(t)
	if err := errors.Join(write.Close(), read.Close()); err != nil {
		t.Fatal(err)
	}
	c.scaleIn(t, 1)
	until(t, "an unhealthy worker", func() bool {
		s := w.health(t)
		return s.code == 1 && strings.Contains(s.stderr, "write audit log") && strings.Contains(s.stderr, "broken pipe")
	})
	c.awaitCompleted(t, 1, "CONTINUE")
	w.signal(t, syscall.SIGTERM)
	select {
	case <-w.ended:
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	if code := w.ProcessState.ExitCode(); code != exitFailed {
		t.Errorf("exit code %d (%v), want %d: records are lost", code, w.ProcessState, exitFailed)
	}
}

// TestStormWhileHeld: all calls fail with 503 for a while, then one hangs, and the
// action that is held is answered in the end, once.
func TestStormWhileHeld(t *testing.T) {
	t.Parallel()
	// With a lease that lasts, the storm strikes the answer; with one that lapses in it, the
	// worker waits for the queue to say whether it may answer (see TestStormAmidLapsedLease).
	c := startCloud(t, strings.Replace(scenario(3, false), "3s", "30s", 1))
	w := startWorker(t, c, keys, "- wait: {for: 1s}", "")
	c.scaleIn(t, 1)
	w.awaitRecords(t, 1, audit.StepStarted)
	for _, service := range []string{"mns", "ess", "ecs"} {
		c.fault(t, `{"service": "`+service+`", "kind": "5xx"}`)
	}
	completes := func() int { return c.state(t).APICalls["ess.CompleteLifecycleAction"] }
	// The provider sends a call eight times; more than that is the worker's own endurance.
	until(t, "answers that are refused", func() bool { return completes() > 3 })
	if a := c.state(t).Actions[0]; a.Status != "Pending" {
		t.Errorf("the action is %s in the storm", a.Status)
	}
	if s := w.health(t); s.code != 0 {
		t.Errorf("unhealthy in the storm: %+v", s)
	}
	c.clearFaults(t)
	c.awaitCompleted(t, 1, "CONTINUE")
	w.awaitRecords(t, 1, audit.Acked)
	w.awaitReady(t)

	// The next one's answer hangs.
	c.fault(t, `{"service": "ess", "action": "CompleteLifecycleAction", "kind": "hang", "count": 1}`)
	begin := time.Now()
	c.scaleIn(t, 1)
	c.awaitCompleted(t, 2, "CONTINUE")
	t.Logf("completed %v after a call of it began to hang", time.Since(begin))
}

// TestStormAmidLapsedLease: while the queue gives no answer, and the lease is over,
// nobody can say whose the message is: the answer waits for the queue.
func TestStormAmidLapsedLease(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(3, false))
	// The lease lasts 10 s at most, and with less than 2 s of it left it is not trusted.
	w := startWorker(t, c, keys, "- wait: {for: 9s}", "")
	c.scaleIn(t, 1)
	w.awaitRecords(t, 1, audit.StepStarted)
	c.fault(t, `{"service": "mns", "kind": "5xx"}`)
	w.awaitRecords(t, 1, audit.StepFinished)
	w.await(t, &w.stderr, "that it waits for the queue", func(text string) bool { return strings.Contains(text, "waiting for the queue") })
	if n := c.state(t).APICalls["ess.CompleteLifecycleAction"]; n != 0 {
		t.Error("it has answered with a lease that was over")
	}
	c.clearFaults(t)
	c.awaitCompleted(t, 1, "CONTINUE")
}

// TestHangingQueue: a queue that does not answer makes a worker not ready, and it stops
// as soon as any other.
func TestHangingQueue(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(2, false))
	c.fault(t, `{"service": "mns", "kind": "hang"}`)
	w := startWorker(t, c, keys, "- wait: {for: 10ms}", "")
	until(t, "a receive that hangs", func() bool { return c.state(t).APICalls["mns.BatchReceiveMessage"] > 0 })
	w.wantUpNotReady(t, "queue lifecycle: the queue has not answered yet")
	w.wantUpNotReady(t, "queue lifecycle: ", "BatchReceiveMessage: unavailable")
	c.clearFaults(t)
	w.awaitReady(t)
	c.scaleIn(t, 1)
	c.awaitCompleted(t, 1, "CONTINUE")
}
