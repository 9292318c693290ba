package worker_test

import (
	"bytes"
	"context"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

func (c *cloud) inject(f simulator.Fault) {
	c.t.Helper()
	f.Service, f.Action = c.service(f.Service), c.operation(f.Action)
	if _, err := c.InjectFault(f); err != nil {
		c.t.Fatal(err)
	}
}

// service is the cloud's own that does what one of Alibaba Cloud's does.
func (c *cloud) service(name string) string {
	if c.name == messages.Alibaba {
		return name
	}
	return map[string]string{"mns": "sqs", "ess": "autoscaling", "ecs": "ec2"}[name]
}

// operation is service for an operation: AWS tells what waits by its instances alone.
func (c *cloud) operation(name string) string {
	if c.name == messages.AWS && (name == "DescribeLifecycleActions" || name == "DescribeScalingInstances") {
		return "DescribeAutoScalingInstances"
	}
	return name
}

// For ten minutes one call fails in one way; the action is answered all the same, once,
// and no default strikes.
func TestCloudTrouble(t *testing.T) {
	t.Parallel()
	calls := []struct{ service, action string }{
		{"ess", "CompleteLifecycleAction"}, {"ess", "RecordLifecycleActionHeartbeat"}, {"ess", "DescribeLifecycleActions"},
		{"ess", "DescribeScalingInstances"}, {"ess", "DescribeLifecycleHooks"}, {"mns", "ReceiveMessage"}, {"mns", "DeleteMessage"}, {"mns", "GetQueueAttributes"},
	}
	kinds := []simulator.FaultKind{simulator.Fault5xx, simulator.FaultThrottle, simulator.FaultHang, simulator.FaultDrop, simulator.FaultDropAfterEffect, simulator.FaultDenied}
	for _, call := range calls {
		for _, kind := range kinds {
			t.Run(call.action+" "+string(kind), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					s := scenario(4, true)
					s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = time.Hour
					if call.action == "RecordLifecycleActionHeartbeat" {
						s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 10 * time.Minute
					}
					cloud := newCloud(t, s)
					r := cloud.start(settings{plans: []worker.Plan{plan(2*time.Hour, takes(11*time.Minute))}})
					// Struck from 2 minutes into the wait to 5, but for what happens at its
					// beginning and its end: there the trouble lasts 5 minutes.
					early := call.action != "RecordLifecycleActionHeartbeat" && call.action != "CompleteLifecycleAction" && call.action != "DeleteMessage"
					if early {
						cloud.inject(simulator.Fault{Service: call.service, Action: call.action, Kind: kind})
					}
					cloud.scaleIn(3)
					if early {
						time.Sleep(5 * time.Minute)
					} else {
						time.Sleep(6 * time.Minute)
						cloud.inject(simulator.Fault{Service: call.service, Action: call.action, Kind: kind})
						time.Sleep(3 * time.Minute)
						if call.action != "RecordLifecycleActionHeartbeat" {
							time.Sleep(7 * time.Minute)
						}
					}
					cloud.ClearFaults()
					cloud.until(time.Hour, "answered", cloud.settled)
					cloud.answered(messages.Continue)
					if n := cloud.count(simulator.ActionCompleted); n != 3 {
						t.Errorf("%d completions, want 3", n)
					}
					r.stop()
					r.balanced()
				})
			})
		}
	}
}

// Trouble with extending: a refusal costs nothing, a lost answer costs the receipt, and
// then the action is begun again; either way it is answered once and by a worker.
func TestExtendTrouble(t *testing.T) {
	t.Parallel()
	for _, kind := range []simulator.FaultKind{simulator.Fault5xx, simulator.FaultThrottle, simulator.FaultHang, simulator.FaultDrop, simulator.FaultDropAfterEffect, simulator.FaultDenied} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud := newCloud(t, scenario(4, true))
				plans := []worker.Plan{plan(5*time.Hour, takes(20*time.Minute))}
				a := cloud.start(settings{name: "a", plans: plans})
				b := cloud.start(settings{name: "b", plans: plans})
				cloud.scaleIn(3)
				time.Sleep(5 * time.Minute)
				cloud.inject(simulator.Fault{Service: "mns", Action: "ChangeMessageVisibility", Kind: kind})
				time.Sleep(5 * time.Minute)
				cloud.ClearFaults()
				cloud.until(2*time.Hour, "answered", cloud.settled)
				cloud.answered(messages.Continue)
				a.stop()
				b.stop()
				a.balanced()
				b.balanced()
			})
		})
	}
}

// The queue is deleted while actions are held: they go on and are answered; the worker
// is not ready, and stays up.
func TestDeletedQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(4, true)
		cloud := newCloud(t, s)
		r := cloud.start(settings{plans: []worker.Plan{plan(2*time.Hour, takes(10*time.Minute), takes(time.Minute))}})
		cloud.scaleIn(3)
		cloud.until(time.Minute, "held", func() bool { return len(r.find(audit.Admitted)) == 3 })
		if err := r.w.Ready(); err != nil {
			t.Errorf("not ready with a good queue: %v", err)
		}
		cloud.deleteQueue()
		cloud.until(time.Hour, "answered", cloud.over)
		cloud.answered(messages.Continue)
		if err := r.w.Ready(); err == nil || !strings.Contains(err.Error(), queueName) || !strings.Contains(err.Error(), "exist") {
			t.Errorf("ready gives %v, want that the queue does not exist", err)
		}
		if err := r.w.Healthy(); err != nil {
			t.Errorf("unhealthy: %v", err)
		}
		cloud.until(time.Minute, "all closed", func() bool { return len(r.find(audit.Acked))+len(r.find(audit.Released)) == 3 })
		r.stop()
		r.balanced()
	})
}

// Wrong keys, a queue that is not there: the worker stays up and not ready, says what to
// do, and works as soon as it can.
func TestWrongKeysAtStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(2, false))
		r := cloud.start(settings{keyID: keyID, plans: []worker.Plan{plan(time.Hour)}})
		cloud.scaleIn(1)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		err := r.w.Ready()
		if err == nil || !strings.Contains(err.Error(), "SignatureDoesNotMatch") {
			t.Errorf("ready gives %v", err)
		}
		if n := cloud.State().APICalls["mns.BatchReceiveMessage"]; n > 60 {
			t.Errorf("%d receives in 10 minutes of refusals", n)
		}
		if cloud.empty() {
			t.Error("the message is gone")
		}
		r.stop()
	})
}

// A worker on an idle queue is ready at once, not after its first long poll, and so it
// is when a queue that failed is well again.
func TestReadyOnAnIdleQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(2, false))
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour)}})
		cloud.until(time.Second, "ready after the start", func() bool { return r.w.Ready() == nil })
		cloud.inject(simulator.Fault{Service: "mns", Kind: simulator.Fault5xx})
		cloud.until(time.Minute, "not ready", func() bool { return r.w.Ready() != nil })
		cloud.ClearFaults()
		cloud.until(32*time.Second, "ready after a failure", func() bool { return r.w.Ready() == nil })
		calls := cloud.State().APICalls["mns.BatchReceiveMessage"]
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n := cloud.State().APICalls["mns.BatchReceiveMessage"] - calls; n > 11 {
			t.Errorf("an idle queue costs %d receives in 5 minutes, want one long poll of 30 s after the other", n)
		}
		r.stop()
	})
}

// A hanging queue costs one receive at a time, and the worker reports being stuck only
// when its own timeout has failed; a stop ends it at once.
func TestHangingQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(2, false))
		cloud.inject(simulator.Fault{Service: "mns", Kind: simulator.FaultHang})
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour)}})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if err := r.w.Ready(); err == nil {
			t.Error("ready although the queue never answered")
		}
		if err := r.w.Healthy(); err != nil {
			t.Errorf("unhealthy: %v", err)
		}
		begin := time.Now()
		r.stop()
		if took := time.Since(begin); took > 50*time.Millisecond {
			t.Errorf("the stop took %v", took)
		}
	})
}

// The message's retention ends in mid-drain: nobody else can have it, the action is
// completed, and its vanished message is no error.
func TestRetentionEndsInMidDrain(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		s := scenario(2, false)
		s.Queues[0].Retention = 5 * time.Minute
		cloud := newCloud(t, on(s))
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(20*time.Minute), takes(time.Minute))}})
		time.Sleep(time.Second)
		cloud.scaleIn(1)
		cloud.until(time.Hour, "answered", cloud.settled)
		cloud.answered(messages.Continue)
		cloud.until(time.Minute, "closed", func() bool { return len(r.find(audit.Acked)) == 1 })
		r.stop()
		r.balanced()
	})
}

// The action ends in the cloud while jobs run (an operator completes it, another hook
// abandons it): they are cancelled at the next heartbeat, and the message goes.
func TestActionEndsElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(2, false)
		s.ScalingGroups[0].Hooks = append(s.ScalingGroups[0].Hooks, simulator.HookConfig{ID: "ash-2", Name: "second", Transition: "scale_in", Queue: queueName})
		cloud := newCloud(t, s)
		var cut atomic.Int32
		first := plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
			<-ctx.Done()
			cut.Add(1)
			return "", ctx.Err()
		})})
		first.Hook = hookID
		second := plan(time.Hour, takes(2*time.Minute))
		second.Hook, second.OnSuccess = "second", messages.Abandon
		r := cloud.start(settings{plans: []worker.Plan{first, second}})
		cloud.scaleIn(1)
		cloud.until(30*time.Minute, "settled", cloud.settled)
		if cut.Load() != 1 {
			t.Errorf("the job of the cancelled action was cut %d times", cut.Load())
		}
		if n := len(r.find(audit.Completed)); n != 1 {
			t.Errorf("%d completions, want the second hook's only", n)
		}
		r.stop()
		r.balanced()
	})
}

// After an action is answered there are no more heartbeats for it.
func TestNoHeartbeatAfterTheAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(21, true)
		s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 30 * time.Second
		cloud := newCloud(t, s)
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(5*time.Minute))}})
		cloud.scaleIn(20)
		cloud.until(20*time.Minute, "answered", cloud.settled)
		before := cloud.State().APICalls["ess.RecordLifecycleActionHeartbeat"]
		time.Sleep(time.Hour)
		synctest.Wait()
		if after := cloud.State().APICalls["ess.RecordLifecycleActionHeartbeat"]; after != before || before < 20 {
			t.Errorf("%d heartbeats at the answers, %d an hour later", before, after)
		}
		for _, rec := range r.find(audit.Heartbeat) {
			if rec.Error != "" {
				t.Errorf("a heartbeat was refused: %s", rec.Error)
			}
		}
	})
}

// An extension that falls due while its message is being deleted must not overtake the
// deletion: it would kill its receipt.
func TestNoExtensionWhileDeleting(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(scenario(41, true)))
		cloud.inject(simulator.Fault{Service: "mns", Action: "DeleteMessage", Kind: simulator.FaultLatency, Latency: 2 * time.Second})
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}, change: func(o *worker.Options) { o.VisibilityTimeout = 10 * time.Second }})
		cloud.scaleIn(40)
		cloud.until(10*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		if n := cloud.count(simulator.MessageReceived); n != 40 {
			t.Errorf("%d deliveries, want 40", n)
		}
		r.stop()
		r.balanced()
	})
}

// While a hook can't be read, the actions that arrived together still get their first
// heartbeats in time.
func TestUnreadableHookDelaysNoHeartbeat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(17, true)
		s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = time.Minute
		cloud := newCloud(t, s)
		cloud.inject(simulator.Fault{Service: "ess", Action: "DescribeLifecycleHooks", Kind: simulator.FaultHang})
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(5*time.Minute))}})
		cloud.scaleIn(16)
		cloud.until(30*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		r.stop()
		r.balanced()
	})
}

// A stop while actions are being verified and the queue hangs: they are handed back side
// by side, not one time limit after the other.
func TestStopWhileVerifyingAndHanging(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(scenario(17, true)))
		cloud.inject(simulator.Fault{Service: "ess", Kind: simulator.FaultHang})
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour)}})
		cloud.scaleIn(16)
		cloud.until(time.Minute, "received", func() bool { return len(r.find(audit.Received)) == 16 })
		cloud.inject(simulator.Fault{Service: "mns", Action: "ChangeMessageVisibility", Kind: simulator.FaultHang})
		begin := time.Now()
		r.stop()
		if took := time.Since(begin); took > 25*time.Second {
			t.Errorf("the stop took %v", took)
		}
		r.balanced()
	})
}

// The listing lags behind, and the rest of the same answer comes late: an action that was
// too young to be listed when the listing was read must not be taken for one that never was.
func TestListingReadTooEarly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(3, true)
		s.Timings.Listing = 5 * time.Second
		cloud := newCloud(t, s)
		cloud.inject(simulator.Fault{Service: "ess", Action: "DescribeScalingInstances", Kind: simulator.FaultHang})
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}, timeout: 5 * time.Second})
		cloud.scaleIn(2)
		time.Sleep(35 * time.Second)
		cloud.ClearFaults()
		cloud.until(10*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		r.stop()
		r.balanced()
	})
}

// A stop at once, while messages can't be deleted: the deletion is given its time, and
// what came of it is on record although that is late.
func TestLateClosingRecord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(21, true))
		cloud.inject(simulator.Fault{Service: "mns", Action: "DeleteMessage", Kind: simulator.FaultHang})
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour)}, change: func(o *worker.Options) { o.ShutdownGrace = -1 }, timeout: time.Minute})
		cloud.scaleIn(20)
		cloud.until(time.Minute, "answered", cloud.over)
		r.stop()
		r.balanced()
	})
}

// fullDisk takes no record while it is full.
type fullDisk struct {
	*running
	full *atomic.Bool
}

func (d fullDisk) Write(p []byte) (int, error) {
	if d.full.Load() {
		return 0, &fs.PathError{Op: "write", Path: "usher.jsonl", Err: syscall.ENOSPC}
	}
	return d.running.Write(p)
}

// What waited for a full disk is written when there is room again, also if nothing is to
// be recorded any more. Meanwhile the log says once what is wrong.
func TestFullDiskOfAnIdleWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(2, false))
		var log bytes.Buffer
		d := fullDisk{&running{t: t}, new(atomic.Bool)}
		d.full.Store(true)
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour)}, logs: &log, change: func(o *worker.Options) { o.Audit = audit.New(d, "a", nil) }})
		cloud.scaleIn(1)
		cloud.until(time.Minute, "answered", cloud.settled)
		if r.w.Healthy() == nil || len(d.records()) != 0 {
			t.Fatalf("healthy with a full disk, or it is not full: %d records", len(d.records()))
		}
		d.full.Store(false)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if err := r.w.Healthy(); err != nil || len(d.find(audit.Acked)) != 1 {
			t.Errorf("10 s after there was room again: %v, %d records", err, len(d.records()))
		}
		r.stop()
		d.balanced()
		if n := strings.Count(log.String(), "can't write the audit log\""); n != 1 {
			t.Errorf("the full disk was logged %d times:\n%s", n, &log)
		}
	})
}
