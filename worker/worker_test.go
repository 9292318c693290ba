package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// One notification with five instances is one answer, after all five jobs, whatever
// they came to.
func TestFiveInstancesOneAnswer(t *testing.T) {
	t.Parallel()
	ok := func(context.Context) error { return nil }
	fail := func(context.Context) error { return errors.New("backup failed") }
	vanish := func(context.Context) error { return fmt.Errorf("run: %w", providers.ErrInstanceGone) }
	crash := func(context.Context) error { panic("index out of range") }
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	type job = func(context.Context) error
	for _, c := range []struct {
		name      string
		jobs      [5]job
		onFailure messages.Result
		want      messages.Result
		reason    string
	}{
		{"all succeed", [5]job{ok, ok, ok, ok, ok}, messages.Abandon, messages.Continue, "5 of 5 jobs succeeded"},
		{"one fails", [5]job{ok, ok, fail, ok, ok}, messages.Abandon, messages.Abandon, "1 of 5 jobs failed; step test of"},
		{"one fails, rollback", [5]job{fail, ok, ok, ok, ok}, messages.Rollback, messages.Rollback, "backup failed"},
		{"one fails, continue", [5]job{ok, ok, ok, ok, fail}, messages.Continue, messages.Continue, "1 of 5 jobs failed"},
		{"all fail", [5]job{fail, fail, fail, fail, fail}, messages.Abandon, messages.Abandon, "5 of 5 jobs failed"},
		{"two are gone", [5]job{vanish, ok, vanish, ok, ok}, messages.Abandon, messages.Continue, "2 of them because the instance was gone"},
		{"gone and failed", [5]job{vanish, fail, ok, ok, ok}, messages.Rollback, messages.Rollback, "1 of 5 jobs failed"},
		{"one panics", [5]job{ok, crash, ok, ok, ok}, messages.Abandon, messages.Abandon, "panic: index out of range"},
		{"one hangs", [5]job{ok, ok, hang, ok, ok}, messages.Abandon, messages.Abandon, "the deadline has passed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud := newCloud(t, scenario(6, false))
				var next, ended atomic.Int32
				p := plan(20*time.Minute, worker.PlannedStep{Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
					i := next.Add(1) - 1
					defer ended.Add(1)
					select {
					case <-time.After(time.Duration(i) * time.Minute):
					case <-ctx.Done():
					}
					if cloud.over() {
						t.Error("answered before all jobs had ended")
					}
					return "", c.jobs[i](ctx)
				})})
				p.OnFailure = c.onFailure
				r := cloud.start(settings{plans: []worker.Plan{p}})
				cloud.scaleIn(5)
				cloud.until(30*time.Minute, "answered", cloud.settled)
				cloud.answered(c.want)
				if n := cloud.count(simulator.ActionCompleted); n != 1 || ended.Load() != 5 {
					t.Errorf("%d completions after %d jobs, want 1 after 5", n, ended.Load())
				}
				done := r.find(audit.Completed)
				if len(done) != 1 || done[0].Result != string(c.want) || !strings.Contains(done[0].Reason, c.reason) || done[0].RequestID == "" {
					t.Errorf("completed records %+v, want one with %s because of %q", done, c.want, c.reason)
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// A killed worker's action is another's within one visibility timeout, and runs again
// from its first step.
func TestTakeoverAfterKill(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(scenario(6, true)))
		const visibility = 40 * time.Second
		a := cloud.start(settings{name: "a", plans: []worker.Plan{plan(time.Hour, takes(10*time.Minute))}, lease: visibility})
		cloud.scaleIn(3)
		cloud.until(time.Minute, "a holds all", func() bool { return len(a.find(audit.Admitted)) == 3 })
		time.Sleep(5 * time.Minute)
		a.kill()
		killed := time.Now()
		b := cloud.start(settings{name: "b", plans: []worker.Plan{plan(time.Hour, takes(10*time.Minute))}, lease: visibility})
		cloud.until(visibility+time.Second, "b takes over", func() bool { return len(b.find(audit.Admitted)) == 3 })
		t.Logf("taken over after %v", time.Since(killed))
		cloud.until(15*time.Minute, "answered", cloud.settled)
		cloud.answered(messages.Continue)
		if n := len(b.find(audit.StepStarted)); n != 3 {
			t.Errorf("b ran %d steps, want all 3 again", n)
		}
		b.stop()
		b.balanced()
	})
}

// A queue that hides messages for longer than the worker's lease does not make a
// takeover wait for the queue's time.
func TestTakeoverWithLongQueueVisibility(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(3, false)
		s.Queues[0].VisibilityTimeout = time.Hour
		cloud := newCloud(t, s)
		var logs bytes.Buffer
		plans := []worker.Plan{plan(5*time.Hour, takes(5*time.Minute))}
		a := cloud.start(settings{name: "a", plans: plans, logs: &logs})
		cloud.scaleIn(1)
		cloud.until(time.Minute, "a holds it by its own lease", func() bool { return len(a.find(audit.Extended)) == 1 })
		a.kill()
		b := cloud.start(settings{name: "b", plans: plans})
		cloud.until(worker.DefaultVisibilityTimeout, "b takes over", func() bool { return len(b.find(audit.Admitted)) == 1 })
		cloud.until(10*time.Minute, "answered", cloud.settled)
		cloud.answered(messages.Continue)
		if !strings.Contains(logs.String(), "queue_visibility=1h") {
			t.Errorf("the log does not warn:\n%s", logs.String())
		}
	})
}

// While its network is cut, another worker takes the action over; back on the network
// the first one must neither complete nor delete it.
func TestLostActionIsLeftAlone(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(scenario(2, false)))
		second := atomic.Int32{}
		steps := []worker.PlannedStep{takes(10 * time.Minute), {Step: stepFunc(func(context.Context, messages.Instance, int) (string, error) {
			second.Add(1)
			return "", nil
		})}}
		a := cloud.start(settings{name: "a", plans: []worker.Plan{plan(time.Hour, steps...)}})
		cloud.scaleIn(1)
		cloud.until(time.Minute, "a holds it", func() bool { return len(a.find(audit.Admitted)) == 1 })
		a.sever()
		b := cloud.start(settings{name: "b", plans: []worker.Plan{plan(time.Hour, takes(30*time.Minute))}})
		cloud.until(2*time.Minute, "b takes over", func() bool { return len(b.find(audit.Admitted)) == 1 })
		a.mend()
		cloud.until(2*time.Minute, "a notices", func() bool { return len(a.find(audit.Lost)) == 1 })
		if cloud.over() || second.Load() != 0 {
			t.Fatal("a went on with what b has taken over")
		}
		cloud.until(time.Hour, "answered", cloud.settled)
		cloud.answered(messages.Continue)
		if len(a.find(audit.Completed)) != 0 || len(b.find(audit.Completed)) != 1 {
			t.Error("the wrong worker completed")
		}
		a.stop()
		b.stop()
		a.balanced()
		b.balanced()
	})
}

// The same, but the first worker's jobs are done while its network is cut: it must ask
// before it answers.
func TestAnswerAfterPauseAsksFirst(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(scenario(2, false)))
		a := cloud.start(settings{name: "a", plans: []worker.Plan{plan(time.Hour, takes(90*time.Second))}})
		cloud.scaleIn(1)
		cloud.until(time.Minute, "a holds it", func() bool { return len(a.find(audit.Admitted)) == 1 })
		a.sever()
		b := cloud.start(settings{name: "b", plans: []worker.Plan{plan(time.Hour, takes(30*time.Minute))}})
		cloud.until(3*time.Minute, "b has it and a is done", func() bool {
			return len(b.find(audit.Admitted)) == 1 && len(a.find(audit.StepFinished)) == 1
		})
		a.mend()
		cloud.until(2*time.Minute, "a notices", func() bool { return len(a.find(audit.Lost)) == 1 })
		if cloud.over() {
			t.Fatal("a completed what b has taken over")
		}
		cloud.until(time.Hour, "answered", cloud.settled)
		cloud.answered(messages.Continue)
	})
}

// An answer that hangs, and is sent again by the provider, outlasts the lease: it is not
// sent again without asking, since another worker may have begun anew by then.
func TestAnswerIsNotRepeatedPastTheLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(2, false))
		hung := simulator.Fault{Service: "ess", Action: "CompleteLifecycleAction", Kind: simulator.FaultHang, Count: 1}
		cloud.inject(hung)
		lease := func(o *worker.Options) { o.VisibilityTimeout = 10 * time.Second }
		a := cloud.start(settings{name: "a", timeout: 25 * time.Second, change: lease, plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}})
		cloud.scaleIn(1)
		cloud.until(2*time.Minute, "a answers", func() bool { return cloud.State().APICalls["ess.CompleteLifecycleAction"] == 1 })
		a.severQueue()
		cloud.until(time.Minute, "the lease is over", func() bool { return cloud.count(simulator.MessageVisible) == 1 })
		b := cloud.start(settings{name: "b", plans: []worker.Plan{plan(time.Hour, takes(30*time.Minute))}})
		cloud.until(time.Minute, "b takes over", func() bool { return len(b.find(audit.Admitted)) == 1 })
		time.Sleep(5 * time.Minute)
		if cloud.over() {
			t.Fatal("a completed what b has taken over")
		}
		a.mend()
		cloud.until(2*time.Minute, "a notices", func() bool { return len(a.find(audit.Lost)) == 1 })
		cloud.until(time.Hour, "answered", cloud.settled)
		cloud.answered(messages.Continue)
	})
}

// A drain of 5 h 50 min stays alive within 20 heartbeats, with one delivery of its message.
func TestLongDrainStaysAlive(t *testing.T) {
	t.Parallel()
	for _, hookTimeout := range []time.Duration{30 * time.Second, 10 * time.Minute, time.Hour} {
		t.Run(hookTimeout.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := scenario(2, false)
				s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = hookTimeout
				cloud := newCloud(t, s)
				r := cloud.start(settings{plans: []worker.Plan{plan(6*time.Hour, takes(5*time.Hour+50*time.Minute))}})
				cloud.scaleIn(1)
				cloud.until(6*time.Hour, "answered", cloud.settled)
				cloud.answered(messages.Continue)
				if n := cloud.count(simulator.MessageReceived); n != 1 {
					t.Errorf("the message was delivered %d times", n)
				}
				r.stop()
				r.balanced()
				t.Logf("%d heartbeats", cloud.State().Actions[0].HeartbeatsUsed)
			})
		})
	}
}

// A drain that exceeds the cloud's cap ends with the failure result before the default strikes.
func TestDrainBeyondTheCapFailsInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(2, false))
		r := cloud.start(settings{plans: []worker.Plan{plan(6*time.Hour, takes(7*time.Hour))}})
		cloud.scaleIn(1)
		cloud.until(7*time.Hour, "answered", cloud.settled)
		cloud.answered(messages.Abandon)
		if done := r.find(audit.Completed); len(done) != 1 || !strings.Contains(done[0].Reason, "deadline") {
			t.Errorf("completed records %+v, want the deadline as the reason", done)
		}
	})
}

// Five restarts in six hours: never more than 20 heartbeats, the wait never lapses.
func TestRestartsKeepTheBudget(t *testing.T) {
	t.Parallel()
	for _, crash := range []bool{true, false} {
		t.Run(fmt.Sprintf("crash=%v", crash), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud := newCloud(t, scenario(2, false))
				begin := time.Now()
				steps := worker.PlannedStep{Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
					select {
					case <-time.After(time.Until(begin.Add(5*time.Hour + 55*time.Minute))):
						return "", nil
					case <-ctx.Done():
						return "", ctx.Err()
					}
				})}
				s := settings{plans: []worker.Plan{plan(6*time.Hour, steps)}, change: func(o *worker.Options) { o.ShutdownGrace = -1 }}
				r := cloud.start(s)
				cloud.scaleIn(1)
				for range 5 {
					time.Sleep(55*time.Minute + 7*time.Second)
					if crash {
						r.kill()
					} else {
						r.stop()
						r.balanced()
					}
					r = cloud.start(s)
				}
				cloud.until(2*time.Hour, "answered", cloud.settled)
				cloud.answered(messages.Continue)
				t.Logf("%d heartbeats", cloud.State().Actions[0].HeartbeatsUsed)
			})
		})
	}
}

// SIGTERM: what can finish within the grace does, the rest is handed back at once.
func TestStopHandsBack(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(scenario(10, true)))
		var slow atomic.Int32
		p := plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
			d := 5 * time.Second
			if slow.Add(1)%2 == 0 {
				d = 20 * time.Minute
			}
			select {
			case <-time.After(d):
				return "", nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		})})
		a := cloud.start(settings{name: "a", plans: []worker.Plan{p}, change: func(o *worker.Options) { o.MaxJobs, o.ShutdownGrace = 4, 10*time.Second }})
		cloud.scaleIn(8)
		cloud.until(time.Minute, "a holds all and works", func() bool { return len(a.find(audit.Admitted)) == 8 && len(a.find(audit.StepStarted)) == 4 })
		begin := time.Now()
		a.stop()
		if took := time.Since(begin); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("the stop took %v, want the grace of 10 s", took)
		}
		a.balanced()
		acked, released := len(a.find(audit.Acked)), len(a.find(audit.Released))
		if acked == 0 || released == 0 || acked+released != 8 {
			t.Errorf("%d acked and %d released, want some of each and 8 in all", acked, released)
		}
		b := cloud.start(settings{name: "b", plans: []worker.Plan{plan(time.Hour)}})
		cloud.until(3*time.Second, "b has the rest at once", func() bool { return len(b.find(audit.Admitted)) == released })
		cloud.until(time.Minute, "answered", cloud.settled)
		cloud.answered(messages.Continue)
		if len(a.find(audit.Started)) != 1 || len(a.find(audit.Stopped)) != 1 {
			t.Error("the worker's own records are missing")
		}
	})
}

// Actions that wait for a slot are kept alive like those that run: one delivery each,
// no default result.
func TestWaitingActionsAreKeptAlive(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(scenario(51, true)))
		plans := []worker.Plan{plan(5*time.Hour, takes(10*time.Minute))}
		limit := func(o *worker.Options) { o.MaxJobs = 5 }
		a := cloud.start(settings{name: "a", plans: plans, change: limit})
		b := cloud.start(settings{name: "b", plans: plans, change: limit})
		cloud.scaleIn(50)
		cloud.until(2*time.Hour, "answered", cloud.settled)
		cloud.answered(messages.Continue)
		if n := cloud.count(simulator.MessageReceived); n != 50 {
			t.Errorf("%d deliveries, want 50", n)
		}
		if n := len(a.find(audit.StepStarted)) + len(b.find(audit.StepStarted)); n != 50 {
			t.Errorf("%d jobs, want 50", n)
		}
		a.stop()
		b.stop()
		a.balanced()
		b.balanced()
	})
}

// A deadline that comes while an action waits for a slot gets an explicit answer too.
func TestDeadlineWhileWaiting(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(scenario(3, true)))
		var began atomic.Int32
		p := plan(30*time.Minute, worker.PlannedStep{Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
			began.Add(1)
			time.Sleep(30*time.Minute + 40*time.Second) // slow to heed its context, it keeps its slot
			return "", ctx.Err()
		})})
		cloud.start(settings{plans: []worker.Plan{p}, change: func(o *worker.Options) { o.MaxJobs = 1 }})
		cloud.scaleIn(2)
		cloud.until(31*time.Minute, "the waiting action is answered", func() bool { return cloud.count(simulator.ActionCompleted) == 1 })
		cloud.until(15*time.Minute, "the other too", cloud.settled)
		cloud.answered(messages.Abandon)
		if n := began.Load(); n != 1 {
			t.Errorf("%d steps began, want 1: the other action never got a slot", n)
		}
	})
}

// One group's hanging jobs don't keep another's from starting.
func TestGroupsDoNotBlockEachOther(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		s := scenario(30, true)
		other := s.ScalingGroups[0]
		other.ID, other.Instances = "asg-other", 3
		other.Hooks = []simulator.HookConfig{{ID: "ash-other", Transition: "scale_in", Queue: queueName, HeartbeatTimeout: 10 * time.Minute}}
		s.ScalingGroups = append(s.ScalingGroups, other)
		cloud := newCloud(t, on(s))
		p := plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(ctx context.Context, in messages.Instance, _ int) (string, error) {
			if in.Action.Group == groupID {
				<-ctx.Done()
			}
			return "", ctx.Err()
		})})
		r := cloud.start(settings{plans: []worker.Plan{p}, groups: []string{groupID, "asg-other"}, change: func(o *worker.Options) { o.MaxJobs, o.MaxActions = 4, 20 }})
		cloud.scaleIn(29)
		cloud.until(time.Minute, "the first group takes what it may", func() bool { return len(r.find(audit.StepStarted)) == 3 })
		if _, err := cloud.ScaleIn("asg-other", 2); err != nil {
			t.Fatal(err)
		}
		cloud.until(10*time.Second, "the other group is done", func() bool {
			n := 0
			for _, a := range cloud.State().Actions {
				if a.Group == "asg-other" && a.EndedBy == "call" {
					n++
				}
			}
			return n == 2
		})
		r.endWork()
		r.wait()
		r.balanced()
	})
}

// Two hooks on one instance are two actions, and both are completed.
func TestTwoHooksOfOneInstance(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		s := scenario(2, false)
		s.ScalingGroups[0].Hooks = append(s.ScalingGroups[0].Hooks, simulator.HookConfig{ID: "ash-second", Name: "backup", Transition: "scale_in", Queue: queueName})
		cloud := newCloud(t, on(s))
		named := plan(time.Hour, takes(time.Minute))
		named.Hook = "backup"
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(2*time.Minute)), named}})
		cloud.scaleIn(1)
		cloud.until(5*time.Minute, "answered", func() bool { return cloud.settled() && len(cloud.State().Actions) == 2 })
		cloud.answered(messages.Continue)
		if n := len(r.find(audit.Completed)); n != 2 {
			t.Errorf("%d completions, want 2", n)
		}
	})
}

// The same action under two message ids runs once, and both messages go after it.
func TestDuplicatedMessage(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(scenario(2, false)))
		cloud.inject(simulator.Fault{Service: "mns", Action: "SendMessage", Kind: simulator.FaultDuplicate, Count: 1})
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(5*time.Minute))}})
		cloud.scaleIn(1)
		cloud.until(10*time.Minute, "answered", cloud.settled)
		cloud.answered(messages.Continue)
		if n := cloud.count(simulator.MessageSent); n != 2 {
			t.Fatalf("%d messages sent, the fault should make it 2", n)
		}
		if n := len(r.find(audit.StepStarted)); n != 1 {
			t.Errorf("%d jobs, want 1", n)
		}
		r.stop()
		r.balanced()
	})
}
