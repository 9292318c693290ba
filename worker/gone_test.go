package worker_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// emptyListings lets both services list no instance, count times each; 0: until ClearFaults.
func (c *cloud) emptyListings(count int) {
	c.inject(simulator.Fault{Service: "ess", Action: "DescribeScalingInstances", Kind: simulator.FaultEmpty, Count: count})
	c.inject(simulator.Fault{Service: "ecs", Action: "DescribeInstances", Kind: simulator.FaultEmpty, Count: count})
}

// A step that failed is a failure, also where the instance is missing from one answer of
// each service just then; it is none if the instance is gone.
func TestAFailedStepIsNotGoneByOneAnswer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		lose   func(*testing.T, *cloud, messages.InstanceID)
		want   messages.Result
		reason string
	}{
		{"listed", func(*testing.T, *cloud, messages.InstanceID) {}, messages.Rollback, "requests are still open"},
		{"not listed once", func(_ *testing.T, c *cloud, _ messages.InstanceID) { c.emptyListings(1) }, messages.Rollback, "requests are still open"},
		{"gone", func(t *testing.T, c *cloud, id messages.InstanceID) {
			if err := c.Terminate(string(id)); err != nil {
				t.Error(err)
			}
		}, messages.Continue, "1 of them because the instance was gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud := newCloud(t, scenario(3, false))
				p := plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(_ context.Context, in messages.Instance, _ int) (string, error) {
					time.Sleep(time.Minute)
					c.lose(t, cloud, in.ID)
					return "", errors.New("requests are still open")
				})})
				p.OnFailure = messages.Rollback
				r := cloud.start(settings{plans: []worker.Plan{p}})
				cloud.scaleIn(1)
				cloud.until(30*time.Minute, "answered", cloud.settled)
				cloud.answered(c.want)
				if done := r.find(audit.Completed); len(done) != 1 || !strings.Contains(done[0].Reason, c.reason) {
					t.Errorf("completed %+v, want one because of %q", done, c.reason)
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// A step has failed, the instance is missing, and the deadline ends the second look: it is
// not believed to be gone.
func TestTheDeadlineEndsTheSecondLook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(3, false))
		p := plan(2*time.Minute, worker.PlannedStep{Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
			end, _ := ctx.Deadline()
			time.Sleep(time.Until(end) - time.Second)
			cloud.emptyListings(0)
			return "", errors.New("requests are still open")
		}), Timeout: 115 * time.Second})
		p.OnFailure = messages.Rollback
		r := cloud.start(settings{plans: []worker.Plan{p}})
		cloud.scaleIn(1)
		cloud.until(30*time.Minute, "answered", cloud.over)
		cloud.answered(messages.Rollback)
		r.stop()
	})
}

// Where verification asks for nothing, the look before the steps believes no single answer
// either.
func TestTheLookBeforeTheStepsLooksAgain(t *testing.T) {
	t.Parallel()
	for _, verify := range []worker.Verify{worker.VerifyRedelivered, worker.VerifyNever} {
		for name, c := range map[string]struct {
			empty     time.Duration // how long no service lists anything
			terminate bool          // one of the two
			steps     int
			latest    time.Duration // when the steps begin
		}{
			"listed":           {0, false, 2, time.Second},
			"not listed":       {8 * time.Second, false, 2, 20 * time.Second},
			"one is gone":      {0, true, 1, 25 * time.Second},
			"never any listed": {time.Hour, false, 0, 0},
		} {
			t.Run(string(verify)+", "+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					cloud := newCloud(t, scenario(4, false))
					var began noted[messages.Instance]
					begun := time.Now()
					p := plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(_ context.Context, in messages.Instance, _ int) (string, error) {
						if began.add(in); time.Since(begun) > c.latest || !in.PrivateIP.IsValid() || in.Gone || in.Action.Token == "" {
							t.Errorf("after %v the step began with %+v", time.Since(begun), in)
						}
						return "", nil
					})})
					if c.empty > 0 {
						cloud.emptyListings(0)
						time.AfterFunc(c.empty, cloud.ClearFaults)
					}
					cloud.scaleIn(2)
					if c.terminate {
						if err := cloud.Terminate(cloud.State().Actions[0].Instances[0]); err != nil {
							t.Fatal(err)
						}
					}
					r := cloud.start(settings{plans: []worker.Plan{p}, verify: verify})
					cloud.until(30*time.Minute, "answered", cloud.settled)
					cloud.answered(messages.Continue)
					if n := len(began.all()); n != c.steps {
						t.Errorf("%d steps, want %d", n, c.steps)
					}
					if took := time.Since(begun); c.steps < 2 && took < 10*time.Second {
						t.Errorf("an instance was believed to be gone after %v", took)
					}
					r.stop()
					r.balanced()
				})
			})
		}
	}
}

// What verification has confirmed is not looked up again before the steps, although the
// first of the instances is gone: a service in trouble would make the others gone, too.
func TestNoSecondLookAfterVerification(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(5, false))
		var began noted[messages.Instance]
		p := plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(_ context.Context, in messages.Instance, _ int) (string, error) {
			began.add(in)
			time.Sleep(2 * time.Minute) // the first action has the only slot for so long
			return "", nil
		})})
		r := cloud.start(settings{plans: []worker.Plan{p}, change: func(o *worker.Options) { o.Queues[0].Groups[0].MaxConcurrent = 1 }})
		cloud.scaleIn(1)
		cloud.until(time.Minute, "the first has begun", func() bool { return len(r.find(audit.StepStarted)) == 1 })
		cloud.inject(simulator.Fault{Service: "ess", Action: "DescribeLifecycleActions", Kind: simulator.Fault5xx})
		cloud.scaleIn(2)
		ids := cloud.State().Actions[1].Instances
		if err := cloud.Terminate(ids[0]); err != nil {
			t.Fatal(err)
		}
		cloud.ClearFaults()
		cloud.until(time.Minute, "the second is admitted", func() bool { return len(r.find(audit.Admitted)) == 2 })
		cloud.emptyListings(0)
		cloud.until(30*time.Minute, "answered", cloud.settled)
		cloud.answered(messages.Continue)
		if all := began.all(); len(all) != 2 || string(all[1].ID) != ids[1] || all[1].State == "" {
			t.Errorf("steps of %+v, want one of %s", all, ids[1])
		}
		r.stop()
		r.balanced()
	})
}
