package worker_test

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// twoHooks is one group with two hooks of a transition, and a plan for each.
func twoHooks(transition messages.Transition, instances int, split bool, a, b worker.PlannedStep) (simulator.Scenario, []worker.Plan) {
	s := scenario(instances, split)
	s.ScalingGroups[0].Hooks = nil
	var plans []worker.Plan
	for i, step := range []worker.PlannedStep{a, b} {
		id := []string{"ash-a", "ash-b"}[i]
		s.ScalingGroups[0].Hooks = append(s.ScalingGroups[0].Hooks, simulator.HookConfig{
			ID: id, Transition: string(transition), Queue: queueName, HeartbeatTimeout: 10 * time.Minute, DefaultResult: "CONTINUE",
		})
		p := plan(3*time.Hour, step)
		p.Transition, p.Hook, p.OnFailure, p.HeartbeatFloor = transition, id, messages.Rollback, time.Hour
		plans = append(plans, p)
	}
	return s, plans
}

// Watching costs what it must, and only where another hook's answer can end an action.
func TestWatchCosts(t *testing.T) {
	t.Parallel()
	const lasts = 30 * time.Minute
	looks := int(lasts/(27*time.Second)) + 1
	for name, tt := range map[string]struct {
		transition messages.Transition
		hooks      int
		split      bool
		most       int // calls of DescribeLifecycleActions besides those that verify
	}{
		"one hook":         {messages.ScaleIn, 1, false, 0},
		"a launch":         {messages.ScaleOut, 2, false, 0},
		"two hooks":        {messages.ScaleIn, 2, false, looks},
		"three activities": {messages.ScaleIn, 2, true, 3 * looks},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, plans := twoHooks(tt.transition, 3, tt.split, takes(lasts), takes(lasts))
				s.ScalingGroups[0].Hooks = s.ScalingGroups[0].Hooks[:tt.hooks]
				cloud := newCloud(t, s)
				cloud.start(settings{plans: plans})
				scale, activities := cloud.ScaleIn, 1
				if tt.transition == messages.ScaleOut {
					scale = cloud.ScaleOut
				}
				if tt.split {
					activities = 3
				}
				if _, err := scale(groupID, 3); err != nil {
					t.Fatal(err)
				}
				cloud.until(lasts+10*time.Minute, "settled", cloud.settled)
				cloud.answered(messages.Continue)
				// The two messages of an activity may be verified by two calls.
				n := cloud.State().APICalls["ess.DescribeLifecycleActions"] - activities
				if n > tt.most+activities || tt.most > 0 && n < tt.most/2 {
					t.Errorf("%d calls, want %d at most", n, tt.most)
				}
			})
		})
	}
}

// More activities than one look asks about: all have their turn.
func TestWatchOfManyActivities(t *testing.T) {
	hours(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 120
		s, plans := twoHooks(messages.ScaleIn, n, true, takes(2*time.Hour), takes(2*time.Hour))
		// Somebody else answers that one.
		s.ScalingGroups[0].Hooks[1].Queue, s.ScalingGroups[0].Hooks[1].HeartbeatTimeout = "", time.Hour
		cloud := newCloud(t, s)
		r := cloud.start(settings{plans: plans, change: func(o *worker.Options) { o.MaxJobs = 5 }})
		if _, err := cloud.ScaleIn(groupID, n); err != nil {
			t.Fatal(err)
		}
		cloud.until(5*time.Minute, "all are held", func() bool { return len(r.find(audit.Admitted)) == n })
		time.Sleep(2 * time.Minute)
		before := cloud.State().APICalls["ess.DescribeLifecycleActions"]
		time.Sleep(10 * time.Minute)
		if calls := cloud.State().APICalls["ess.DescribeLifecycleActions"] - before; calls > 23*50 || calls < 19*50 {
			t.Errorf("%d calls in ten minutes, want 50 for each of some twenty looks", calls)
		}
		for _, a := range cloud.State().Actions {
			if a.Hook == "ash-b" {
				cloud.complete(a, "ROLLBACK")
			}
		}
		cloud.until(2*time.Minute, "settled", cloud.settled)
		for _, a := range cloud.State().Actions {
			if a.Hook == "ash-a" && a.EndedBy != "other_hook" {
				t.Errorf("action %+v", a)
			}
		}
		if steps := len(r.find(audit.StepStarted)); steps > 5+n {
			t.Errorf("%d steps were begun", steps)
		}
		r.stop()
		r.balanced()
	})
}

// complete answers an action as somebody else would.
func (c *cloud) complete(a simulator.ActionState, result string) {
	c.t.Helper()
	l := c.scaling()
	if _, err := l.Complete(c.t.Context(), messages.Action{Region: "cn-shenzhen", Hook: messages.HookID(a.Hook), Token: messages.Token(a.Token)}, messages.Result(result)); err != nil {
		c.t.Error(err)
	}
}

// The cloud answers no look, then with nothing, then truly: only the last ends anything.
func TestWatchBelievesNoEmptyListing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var ended noted[time.Time]
		s, plans := twoHooks(messages.ScaleIn, 2, false, worker.PlannedStep{Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
			defer func() { ended.add(time.Now()) }()
			sleep(ctx, 2*time.Hour)
			return "", ctx.Err()
		})}, takes(time.Second))
		s.ScalingGroups[0].Hooks[1].Queue = ""
		cloud := newCloud(t, s)
		begun := time.Now()
		cloud.front = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("Action") != "DescribeLifecycleActions" {
				return false
			}
			switch since := time.Since(begun); {
			case since < 20*time.Second || since > 10*time.Minute:
				return false
			case since < 3*time.Minute:
				w.WriteHeader(http.StatusServiceUnavailable)
			case since < 6*time.Minute:
				io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
				panic(http.ErrAbortHandler)
			default:
				w.Header().Set("Content-Type", "application/json")
				io.WriteString(w, `{"TotalCount":0,"MaxResults":50,"NextToken":"","LifecycleActions":{"LifecycleAction":[]},"RequestId":"R"}`)
			}
			return true
		}
		r := cloud.start(settings{plans: plans})
		if _, err := cloud.ScaleIn(groupID, 1); err != nil {
			t.Fatal(err)
		}
		cloud.until(10*time.Second, "it is held", func() bool { return len(r.find(audit.StepStarted)) == 1 })
		time.Sleep(9*time.Minute + 40*time.Second)
		synctest.Wait()
		if all := ended.all(); len(all) > 0 {
			t.Fatalf("the job ended after %v", all[0].Sub(begun))
		}
		for _, a := range cloud.State().Actions {
			if a.Hook == "ash-b" {
				cloud.complete(a, "ABANDON")
			}
		}
		cloud.until(time.Minute, "settled", cloud.settled)
		if acked := r.find(audit.Acked); len(acked) != 1 || !strings.Contains(acked[0].Reason, "another hook's answer") {
			t.Errorf("closed with %+v", acked)
		}
		r.stop()
		r.balanced()
	})
}

// An action that waits for a slot when another hook's answer ends it is closed without a step.
func TestOtherHookEndsAWaitingAction(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, plans := twoHooks(messages.ScaleIn, 3, true, takes(5*time.Minute), takes(time.Second))
		s.ScalingGroups[0].Hooks[1].Queue = "" // somebody else answers that one
		cloud := newCloud(t, s)
		r := cloud.start(settings{plans: plans, change: func(o *worker.Options) { o.MaxJobs = 1 }})
		if _, err := cloud.ScaleIn(groupID, 2); err != nil {
			t.Fatal(err)
		}
		cloud.until(time.Minute, "one works and one waits", func() bool { return len(r.find(audit.Admitted)) == 2 && len(r.find(audit.StepStarted)) == 1 })
		working := string(r.find(audit.StepStarted)[0].Activity)
		for _, a := range cloud.State().Actions {
			if a.Hook == "ash-b" && a.Activity != working {
				cloud.complete(a, "ROLLBACK")
			}
		}
		cloud.until(35*time.Second, "the waiting one is closed", func() bool { return len(r.find(audit.Acked)) == 1 })
		if acked := r.find(audit.Acked)[0]; string(acked.Activity) == working || !strings.Contains(acked.Reason, "another hook's answer") {
			t.Errorf("closed %+v", acked)
		}
		cloud.until(15*time.Minute, "settled", cloud.settled)
		if n := len(r.find(audit.StepStarted)); n != 1 {
			t.Errorf("%d steps, want 1", n)
		}
		r.stop()
		r.balanced()
	})
}

// Each hook's action is worked on by the plan that names its id, or its name, or none;
// one that no plan is for is left alone: its message is neither deleted nor received
// again and again.
func TestEachHookHasItsPlan(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(2, false)
		s.ScalingGroups[0].Hooks = []simulator.HookConfig{
			{ID: "ash-by-id", Name: "one", Transition: "scale_in", Queue: queueName},
			{ID: "ash-2", Name: "by-name", Transition: "scale_in", Queue: queueName},
			{ID: "ash-3", Name: "other", Transition: "scale_in", Queue: queueName},
			{ID: "ash-4", Name: "by-name-out", Transition: "scale_out", Queue: queueName},
			{ID: "ash-5", Name: "nobodys", Transition: "scale_out", Queue: queueName, HeartbeatTimeout: time.Hour, DefaultResult: "CONTINUE"},
		}
		var ran noted[string]
		named := func(transition messages.Transition, hook string) worker.Plan {
			p := plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(_ context.Context, in messages.Instance, _ int) (string, error) {
				ran.add(string(in.Action.Hook) + " by " + hook)
				return "", nil
			})})
			p.Transition, p.Hook = transition, hook
			return p
		}
		cloud := newCloud(t, s)
		r := cloud.start(settings{plans: []worker.Plan{
			named(messages.ScaleIn, ""), named(messages.ScaleIn, "by-name"), named(messages.ScaleIn, "ash-by-id"), named(messages.ScaleOut, "by-name-out"),
		}})
		for _, scale := range []func(string, int) (simulator.Activity, error){cloud.ScaleIn, cloud.ScaleOut} {
			if _, err := scale(groupID, 1); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(59 * time.Minute)
		if got, want := slices.Sorted(slices.Values(ran.all())), []string{"ash-2 by by-name", "ash-3 by ", "ash-4 by by-name-out", "ash-by-id by ash-by-id"}; !slices.Equal(got, want) {
			t.Errorf("ran %q, want %q", got, want)
		}
		unrouted := r.find(audit.Unrouted)
		if n := len(unrouted); n < 3 || n > 15 {
			t.Errorf("%d times received what no plan is for, want it rarer and rarer", n)
		}
		for _, rec := range unrouted {
			if rec.Hook != "ash-5" {
				t.Errorf("left to others: %+v", rec)
			}
		}
		cloud.until(2*time.Minute, "all have ended", cloud.over)
		for _, a := range cloud.State().Actions {
			if (a.EndedBy == "timeout") != (a.Hook == "ash-5") {
				t.Errorf("action %+v", a)
			}
		}
		if cloud.empty() {
			t.Error("the message that no plan is for was deleted")
		}
		r.stop()
		r.balanced()
	})
}
