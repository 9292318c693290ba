package worker_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// What random schedules have found, each as a schedule of its own: a seed means another
// one whenever the generator changes.

// The queue hides messages for longer than the worker's lease, the worker cuts that
// short, and the answer is lost: by the old lease the message is its own, and by the
// queue somebody else's already. Neither a step nor the answer may come of it.
func TestShortenedLeaseWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(2, false)
		s.Queues[0].VisibilityTimeout = time.Minute
		cloud := newCloud(t, s)
		steps := slices.Repeat([]worker.PlannedStep{takes(6 * time.Second)}, 4)
		short := func(o *worker.Options) { o.VisibilityTimeout, o.MaxActions = 10*time.Second, 1 } // so that a does not receive it again
		a := cloud.start(settings{name: "a", plans: []worker.Plan{plan(time.Hour, steps...)}, change: short})
		cloud.scaleIn(1)
		cloud.inject(simulator.Fault{Service: "mns", Action: "ChangeMessageVisibility", Kind: simulator.FaultDropAfterEffect})
		b := cloud.start(settings{name: "b", plans: []worker.Plan{plan(time.Hour, steps...)}})
		cloud.until(20*time.Second, "b has it", func() bool { return len(b.find(audit.Admitted)) == 1 })
		since := b.find(audit.Admitted)[0].Time
		cloud.until(3*time.Minute, "answered", cloud.over)
		for _, rec := range a.records() {
			if rec.Time.After(since) && (rec.Event == audit.StepStarted || rec.Event == audit.Completed) {
				t.Errorf("a has a record %s at %s, b has had the message since %s", rec.Event, rec.Time.Format(time.TimeOnly), since.Format(time.TimeOnly))
			}
		}
		cloud.ClearFaults()
		cloud.until(10*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
	})
}

// The message comes in the middle of a long poll: the worker can't tell then how long it
// is hidden. Killed soon after, it must not let others wait for the queue's own time.
func TestTakeoverOfWhatJustCame(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		s := scenario(2, false)
		s.Queues[0].VisibilityTimeout = 30 * time.Second
		cloud := newCloud(t, on(s))
		short := func(o *worker.Options) { o.VisibilityTimeout = 10 * time.Second }
		a := cloud.start(settings{name: "a", plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}, change: short})
		time.Sleep(20 * time.Second)
		cloud.scaleIn(1)
		time.Sleep(4 * time.Second)
		a.kill()
		b := cloud.start(settings{name: "b", plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}, change: short})
		cloud.until(11*time.Second, "b takes over", func() bool { return len(b.find(audit.Admitted)) == 1 })
		cloud.until(10*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
	})
}

// A heartbeat meets its own answer: the cloud has taken it, the worker does not know yet,
// and is told that the action is over. By its own answer: the audit log must say so.
func TestHeartbeatMeetsTheAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(2, false)
		s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 30 * time.Second
		cloud := newCloud(t, s)
		cloud.front = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("Action") != "CompleteLifecycleAction" {
				return false
			}
			answer := httptest.NewRecorder()
			cloud.Simulator.ServeHTTP(answer, r)
			select {
			case <-time.After(4 * time.Second):
			case <-r.Context().Done():
			}
			w.Header().Set("Content-Type", answer.Header().Get("Content-Type"))
			w.WriteHeader(answer.Code)
			w.Write(answer.Body.Bytes())
			return true
		}
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(18*time.Second))}})
		cloud.scaleIn(1)
		cloud.until(time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		if beats := r.find(audit.Heartbeat); len(beats) != 1 || beats[0].Error == "" {
			t.Errorf("heartbeats %+v, want one that is refused", beats)
		}
		if n := len(r.find(audit.Completed)); n != 1 {
			t.Errorf("%d records of completing it, want 1", n)
		}
		r.stop()
		r.balanced()
	})
}

// An instance is let go again so soon that EC2 does not list it yet. That is no sign that it is
// gone: it serves, and is drained before the answer.
func TestScaleInOfWhatWasJustLaunched(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := awsScenario(0)
		s.Timings.Address = 25 * time.Second
		cloud := newCloud(t, s)
		var jobs noted[messages.Instance]
		r := cloud.start(settings{verify: worker.VerifyAlways, plans: []worker.Plan{plan(time.Hour, worker.PlannedStep{
			Step: stepFunc(func(_ context.Context, in messages.Instance, _ int) (string, error) { jobs.add(in); return "", nil }),
		})}})
		if _, err := cloud.ScaleOut(groupID, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		cloud.scaleIn(1)
		cloud.until(time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		if all := jobs.all(); len(all) != 1 || all[0].Gone || !all[0].PrivateIP.IsValid() {
			t.Errorf("jobs for %+v, want one that knows the address", all)
		}
		r.stop()
		r.balanced()
	})
}

// A message that could not be deleted when its action was answered comes back while another
// hook still holds the instance. The worker knows its own answer: it begins with nothing again.
func TestOwnAnswerIsRemembered(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		s := scenario(2, true)
		second := s.ScalingGroups[0].Hooks[0]
		second.ID = "ash-second"
		s.ScalingGroups[0].Hooks = append(s.ScalingGroups[0].Hooks, second)
		cloud := newCloud(t, on(s))
		quick, slow := plan(time.Hour, takes(10*time.Second)), plan(time.Hour, takes(20*time.Minute))
		quick.Hook, slow.Hook = hookID, "ash-second"
		cloud.inject(simulator.Fault{Service: "mns", Action: "DeleteMessage", Kind: simulator.FaultDenied})
		r := cloud.start(settings{plans: []worker.Plan{quick, slow}, verify: worker.VerifyAlways, lease: 30 * time.Second})
		cloud.scaleIn(1)
		cloud.until(time.Minute, "the first is answered", func() bool { return len(r.find(audit.Completed)) == 1 })
		time.Sleep(5 * time.Minute)
		if n := len(r.find(audit.StepStarted)); n != 2 {
			t.Errorf("%d steps have begun, want one of each hook", n)
		}
		if n := len(r.find(audit.Stale)); n == 0 {
			t.Error("the message has not come back")
		}
		cloud.ClearFaults()
		cloud.until(time.Hour, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		r.stop()
		r.balanced()
	})
}

// A cloud lists an action half as late as its wait may be short. The worker asks again so soon
// that no wait lapses meanwhile, whatever its pauses come to: of sixty groups, each by itself.
func TestShortestWaitThatIsListedLate(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		s := scenario(2, true)
		s.Timings.Listing = 15 * time.Second
		s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 30 * time.Second
		first, groups := s.ScalingGroups[0], []string{groupID}
		for i := range 59 {
			g := first
			g.ID, g.Hooks = fmt.Sprintf("asg-%d", i), slices.Clone(first.Hooks)
			g.Hooks[0].ID = fmt.Sprintf("ash-%d", i)
			s.ScalingGroups, groups = append(s.ScalingGroups, g), append(groups, g.ID)
		}
		cloud := newCloud(t, on(s))
		r := cloud.start(settings{groups: groups, plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}, verify: worker.VerifyAlways})
		for _, g := range groups {
			if _, err := cloud.ScaleIn(g, 1); err != nil {
				t.Fatal(err)
			}
		}
		cloud.until(10*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		r.stop()
		r.balanced()
	})
}

// Two messages about one action reach two workers, a known gap: both drain it and share
// its heartbeats. All the same it is answered once, both are done with it, and no wait lapses.
func TestCopiesWithTwoWorkers(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		s := scenario(2, false)
		cloud := newCloud(t, on(s))
		one := func(o *worker.Options) { o.MaxActions = 1 } // so that each takes one of the two
		var workers []*running
		for _, name := range []string{"a", "b"} {
			workers = append(workers, cloud.start(settings{name: name, plans: []worker.Plan{plan(time.Hour, worker.PlannedStep{
				Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
					select {
					case <-time.After(20 * time.Minute):
					case <-ctx.Done():
					}
					return "", ctx.Err()
				}),
			})}, change: one}))
		}
		cloud.inject(simulator.Fault{Service: "mns", Action: "SendMessage", Kind: simulator.FaultDuplicate, Count: 1})
		cloud.scaleIn(1)
		cloud.until(time.Minute, "both hold it", func() bool {
			return len(workers[0].find(audit.Admitted)) == 1 && len(workers[1].find(audit.Admitted)) == 1
		})
		cloud.until(time.Hour, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		if n := cloud.count(simulator.ActionCompleted); n != 1 {
			t.Errorf("%d completions, want 1", n)
		}
		for _, r := range workers {
			r.stop()
			r.balanced()
		}
	})
}
