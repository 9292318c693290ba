package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// awsScenario is one group of AWS with one scale-in hook.
func awsScenario(instances int) simulator.Scenario { return onAWS(scenario(instances, true)) }

// A notification is drained for whichever way it takes into the queue, and both of one that
// takes two are deleted. A short drain costs no heartbeat and no extension.
func TestAWSNotificationsByEachWay(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"direct", "sns", "sns_raw", "eventbridge", "both"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := awsScenario(4)
				s.ScalingGroups[0].Hooks[0].Delivery, s.ScalingGroups[0].Hooks[0].Metadata = way, `{"tier":"web"}`
				cloud := newCloud(t, s)
				r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(20*time.Second))}, verify: worker.VerifyAlways})
				cloud.scaleIn(3)
				cloud.until(2*time.Minute, "settled", cloud.settled)
				cloud.answered(messages.Continue)
				if jobs, beats := len(r.find(audit.StepStarted)), len(r.find(audit.Heartbeat)); jobs != 3 || beats != 0 {
					t.Errorf("%d jobs and %d heartbeats, want 3 and none", jobs, beats)
				}
				for _, rec := range r.find(audit.Completed) {
					if rec.Region != awsRegion || rec.Group != groupID || rec.Hook != hookID || rec.Provider != "aws" {
						t.Errorf("record %+v", rec)
					}
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// A drain far longer than its hook's timeout is prolonged by heartbeats that do not fall
// together, and one longer than the cloud ever waits is answered before it stops to.
func TestAWSLongDrain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name           string
		takes, longest time.Duration
		want           messages.Result
	}{
		{"within the bound", 45 * time.Minute, 46 * time.Minute, messages.Continue},
		{"beyond the bound", 2 * time.Hour, 50 * time.Minute, messages.Abandon},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := awsScenario(12)
				s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 30 * time.Second
				cloud := newCloud(t, s)
				r := cloud.start(settings{plans: []worker.Plan{plan(3*time.Hour, takes(c.takes))}})
				cloud.scaleIn(10)
				begin := time.Now()
				cloud.until(3*time.Hour, "settled", cloud.settled)
				if took := time.Since(begin); took > c.longest {
					t.Errorf("answered after %v, want %v at most", took, c.longest)
				}
				cloud.answered(c.want)
				seconds := map[string]int{}
				for _, rec := range r.find(audit.Heartbeat) {
					seconds[rec.Time.Truncate(time.Second).String()]++
				}
				beats := 0
				for second, n := range seconds {
					if beats += n; n > 7 {
						t.Errorf("%d of 10 actions beat in the second of %s", n, second)
					}
				}
				if beats <= 10*100*2/3 {
					t.Errorf("%d heartbeats for 10 actions, which is too few to last", beats)
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// A scale-in of 20 instances, with the worker killed half-way, loses nothing and answers
// nothing twice.
func TestAWSTakeoverHalfWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, awsScenario(21))
		plans := []worker.Plan{plan(2*time.Hour, takes(3*time.Minute))}
		limit := func(o *worker.Options) { o.MaxJobs = 5 }
		a := cloud.start(settings{name: "a", plans: plans, change: limit})
		cloud.scaleIn(20)
		cloud.until(time.Hour, "half of them are answered", func() bool { return cloud.count(simulator.ActionCompleted) >= 10 })
		a.kill()
		done := cloud.count(simulator.ActionCompleted)
		b := cloud.start(settings{name: "b", plans: plans, change: limit})
		cloud.until(time.Hour, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		st := cloud.State()
		if n := cloud.count(simulator.ActionCompleted); len(st.Actions) != 20 || n != 20 {
			t.Errorf("%d actions were completed %d times, want 20 once each", len(st.Actions), n)
		}
		if n := len(b.find(audit.StepStarted)); n != 20-done {
			t.Errorf("b ran %d jobs, want the %d that were left", n, 20-done)
		}
		b.stop()
		b.balanced()
	})
}

// One receive of a message lasts 12 hours at most. Then the drain is cut short and the message
// handed back while it is still ours, and whoever receives it begins anew.
func TestAWSReceiveLastsTwelveHours(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := awsScenario(2)
		s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 2 * time.Hour
		cloud := newCloud(t, s)
		var runs atomic.Int32
		r := cloud.start(settings{lease: 10 * time.Minute, plans: []worker.Plan{plan(30*time.Hour, worker.PlannedStep{Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
			if runs.Add(1) > 1 {
				return "", nil
			}
			return "", pauseFor(ctx, 20*time.Hour)
		})})}})
		cloud.scaleIn(1)
		begin := time.Now()
		time.Sleep(11*time.Hour + 40*time.Minute)
		cloud.until(time.Hour, "handed back", func() bool { return len(r.find(audit.Released)) == 1 })
		if after := time.Since(begin); after < 11*time.Hour+45*time.Minute || after > 12*time.Hour {
			t.Errorf("handed back after %v, want a little less than 12 h", after)
		}
		if rec := r.find(audit.Released)[0]; rec.Error != "" || !strings.Contains(rec.Reason, "no longer; the jobs begin anew") {
			t.Errorf("handed back: %+v", rec)
		}
		cloud.until(time.Minute, "begun anew", func() bool { return len(r.find(audit.StepStarted)) == 2 })
		cloud.until(time.Minute, "answered", cloud.settled)
		if n := len(r.find(audit.Lost)); n != 0 {
			t.Errorf("%d actions were lost", n)
		}
		cloud.answered(messages.Continue)
		r.stop()
		r.balanced()
	})
}

// ABANDON at one hook ends the others' waits and lets the instance go, which is noticed soon.
func TestAWSAbandonEndsTheOtherHook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := awsScenario(3)
		second := s.ScalingGroups[0].Hooks[0]
		second.ID = "ash-second"
		s.ScalingGroups[0].Hooks = append(s.ScalingGroups[0].Hooks, second)
		cloud := newCloud(t, s)
		failing := plan(time.Hour, takes(time.Minute), worker.PlannedStep{Step: stepFunc(func(context.Context, messages.Instance, int) (string, error) {
			return "", errors.New("it does not work")
		})})
		failing.Hook = hookID
		other := plan(time.Hour, takes(30*time.Minute))
		other.Hook = "ash-second"
		r := cloud.start(settings{plans: []worker.Plan{failing, other}})
		cloud.scaleIn(1)
		cloud.until(3*time.Minute, "both are over", func() bool { return cloud.settled() && len(cloud.State().Actions) == 2 })
		if done, acked := r.find(audit.Completed), r.find(audit.Acked); len(done) != 1 || done[0].Result != "ABANDON" || len(acked) != 2 {
			t.Errorf("completed %+v, acked %+v", done, acked)
		}
		r.stop()
		r.balanced()
	})
}

// The same of a launch, where the first delivery of a message is not verified: nobody has said
// then that the other hook's answer may end the wait.
func TestAWSAbandonEndsTheOtherHookOfALaunch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := awsScenario(1)
		first := &s.ScalingGroups[0].Hooks[0]
		first.Transition = "scale_out"
		second := *first
		second.ID = "ash-second"
		s.ScalingGroups[0].Hooks = append(s.ScalingGroups[0].Hooks, second)
		cloud := newCloud(t, s)
		failing := plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(context.Context, messages.Instance, int) (string, error) {
			return "", errors.New("it does not work")
		})})
		failing.Hook, failing.Transition = hookID, messages.ScaleOut
		other := plan(time.Hour, takes(30*time.Minute))
		other.Hook, other.Transition = "ash-second", messages.ScaleOut
		r := cloud.start(settings{plans: []worker.Plan{failing, other}, verify: worker.VerifyRedelivered})
		if _, err := cloud.ScaleOut(groupID, 1); err != nil {
			t.Fatal(err)
		}
		cloud.until(90*time.Second, "both are over", func() bool { return cloud.settled() && len(cloud.State().Actions) == 2 })
		r.stop()
		r.balanced()
	})
}

// What is forged, stale, not ours or a test is told apart, and touches no instance.
func TestAWSOtherMessages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := awsScenario(4)
		s.Queues[0].DlqPolicy = simulator.DlqPolicy{DeadLetterTargetQueue: aside, MaxReceiveCount: 3}
		s.Queues = append(s.Queues, simulator.QueueConfig{Name: aside})
		cloud := newCloud(t, s)
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Second))}, verify: worker.VerifyAlways, change: func(o *worker.Options) {
			o.MaxReceives, o.Quarantine = 3, worker.QuarantineDeadLetter
		}})
		serving := cloud.instancesOf(groupID)[0]
		hook := func(instance, token string) string {
			return fmt.Sprintf(`{"LifecycleHookName":%q,"LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING","AutoScalingGroupName":%q,"EC2InstanceId":%q,"LifecycleActionToken":%q}`,
				hookID, groupID, instance, token)
		}
		for _, body := range []string{
			hook(serving, "3d9c1f7e-52b8-4a06-9e41-7c0d5b2a6f18"),               // it serves
			hook("i-0aa11bb22cc33dd44", "4d9c1f7e-52b8-4a06-9e41-7c0d5b2a6f18"), // there is none
			`{"Event":"autoscaling:TEST_NOTIFICATION"}`,
			`{"Type":"SubscriptionConfirmation","TopicArn":"arn:aws:sns:eu-west-1:1:t"}`,
			`{"LifecycleActionToken":"half"}`,
			`hello`,
		} {
			if _, err := cloud.SendMessage(queueName, body); err != nil {
				t.Fatal(err)
			}
		}
		cloud.until(10*time.Minute, "all have their end", func() bool {
			return len(r.find(audit.Stale)) == 2 && len(r.find(audit.Ignored)) == 2 && len(r.find(audit.Quarantined)) == 2 && cloud.empty()
		})
		if q, ok := cloud.State().Queue(aside); !ok || q.Active != 2 {
			t.Errorf("the dead-letter queue has %+v, want what could not be decoded", q)
		}
		if n := len(r.find(audit.StepStarted)); n != 0 {
			t.Errorf("%d steps ran", n)
		}
		r.stop()
		r.balanced()
	})
}

// What is about a group of the same name in another account is left to whoever knows that one,
// where the group's own account is known, and the group's own is drained.
func TestAWSAnotherAccount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, awsScenario(3))
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Second))}, verify: worker.VerifyAlways, change: func(o *worker.Options) {
			o.Queues[0].Groups[0].Account = simulator.DefaultAWSAccountID
		}})
		body := fmt.Sprintf(`{"LifecycleHookName":%q,"LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING","AutoScalingGroupName":%q,"EC2InstanceId":"i-0aa11bb22cc33dd44",`+
			`"LifecycleActionToken":"3d9c1f7e-52b8-4a06-9e41-7c0d5b2a6f18","AccountId":"444455556666"}`, hookID, groupID)
		if _, err := cloud.SendMessage(queueName, body); err != nil {
			t.Fatal(err)
		}
		cloud.scaleIn(1)
		time.Sleep(10 * time.Minute)
		if n := len(r.find(audit.Completed)); n != 1 || len(r.find(audit.Stale)) != 0 {
			t.Errorf("%d were completed, want 1, and stale were %+v", n, r.find(audit.Stale))
		}
		if cloud.empty() {
			t.Error("the other account's message was deleted")
		}
		for _, rec := range r.find(audit.Unrouted) {
			if !strings.Contains(rec.Reason, "444455556666") {
				t.Errorf("left: %+v", rec)
			}
		}
		r.stop()
		r.balanced()
	})
}

// The listing of the instances lags behind the hooks: for a while those that leave are in
// service there, and those that are called up in the warm pool. Nothing is lost.
func TestAWSListingLags(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := awsScenario(6)
		s.Timings.Listing = 20 * time.Second
		s.ScalingGroups[0].WarmPool.Size = 2
		in := s.ScalingGroups[0].Hooks[0]
		beside := in // what another hook of the transition may end is watched
		beside.ID = "ash-beside"
		out := in
		out.ID, out.Transition = "ash-out", "scale_out"
		s.ScalingGroups[0].Hooks = append(s.ScalingGroups[0].Hooks, beside, out)
		cloud := newCloud(t, s)
		launch := plan(time.Hour, takes(time.Minute))
		launch.Transition = messages.ScaleOut
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(2*time.Minute)), launch}, verify: worker.VerifyAlways})
		cloud.scaleIn(3)
		if _, err := cloud.ScaleOut(groupID, 2); err != nil {
			t.Fatal(err)
		}
		cloud.until(10*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		if n := len(r.find(audit.Stale)); n != 0 || len(r.find(audit.Completed)) < 3*2+2 {
			t.Errorf("%d were stale, and completed %+v", n, r.find(audit.Completed))
		}
		r.stop()
		r.balanced()
	})
}

// The cloud leaves a waiting instance out of its listing for minutes: a heartbeat settles that it
// waits, and the job goes on. Once another hook's end has ended the wait, it settles that, too.
func TestAWSWatchBelievesNoEmptyListing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := awsScenario(2)
		hook := &s.ScalingGroups[0].Hooks[0]
		hook.HeartbeatTimeout = time.Hour // no heartbeat falls due by itself
		second := *hook
		second.ID, second.Queue, second.HeartbeatTimeout, second.DefaultResult = "ash-second", "", 11*time.Minute, "ABANDON"
		s.ScalingGroups[0].Hooks = append(s.ScalingGroups[0].Hooks, second)
		cloud := newCloud(t, s)
		begun := time.Now()
		cloud.front = func(w http.ResponseWriter, r *http.Request) bool {
			body, err := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			if err != nil || !bytes.Contains(body, []byte("Action=DescribeAutoScalingInstances&")) || time.Since(begun) < 20*time.Second {
				return false
			}
			w.Header().Set("Content-Type", "text/xml")
			io.WriteString(w, `<DescribeAutoScalingInstancesResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/"><DescribeAutoScalingInstancesResult><AutoScalingInstances/></DescribeAutoScalingInstancesResult>`+
				`<ResponseMetadata><RequestId>r-1</RequestId></ResponseMetadata></DescribeAutoScalingInstancesResponse>`)
			return true
		}
		drain := plan(2*time.Hour, takes(30*time.Minute))
		drain.Hook = hookID
		r := cloud.start(settings{plans: []worker.Plan{drain}})
		cloud.scaleIn(1)
		cloud.until(10*time.Second, "it is held", func() bool { return len(r.find(audit.StepStarted)) == 1 })
		time.Sleep(10 * time.Minute)
		if over := r.find(audit.Acked); len(over) != 0 {
			t.Fatalf("closed with %+v", over)
		}
		if n := len(r.find(audit.Heartbeat)); n < 8 || n > 12 {
			t.Errorf("%d heartbeats in 10 minutes, want one a minute or so", n)
		}
		cloud.until(3*time.Minute, "settled", cloud.settled)
		if acked := r.find(audit.Acked); len(acked) != 1 || !strings.Contains(acked[0].Reason, "in no group") {
			t.Errorf("closed with %+v", acked)
		}
		r.stop()
		r.balanced()
	})
}

// A hook that can't be read again, and the call for it hangs, delays no heartbeat: all of them
// fall due while it does, of waits that last no longer than half a minute.
func TestAWSHangingHookDelaysNoHeartbeat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := awsScenario(41)
		s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 30 * time.Second
		cloud := newCloud(t, s)
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(20*time.Minute))}})
		cloud.scaleIn(40)
		cloud.until(time.Minute, "all have begun", func() bool { return len(r.find(audit.StepStarted)) == 40 })
		cloud.inject(simulator.Fault{Service: "ess", Action: "DescribeLifecycleHooks", Kind: simulator.FaultHang})
		for range 900 {
			time.Sleep(time.Second)
			for _, a := range cloud.State().Actions {
				if left := time.Until(a.Deadline); left < 7*time.Second {
					t.Fatalf("%v are left of a wait", left)
				}
			}
		}
		cloud.until(30*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		r.stop()
		r.balanced()
	})
}

// While a group's hooks can't be read, for longer than what was read of them counts, its
// actions are verified and begun all the same.
func TestAWSHangingHookHoldsUpNoAction(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := awsScenario(3)
		s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 10 * time.Minute
		cloud := newCloud(t, s)
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(20*time.Minute))}, verify: worker.VerifyAlways})
		cloud.scaleIn(1)
		cloud.until(time.Minute, "the first has begun", func() bool { return len(r.find(audit.StepStarted)) == 1 })
		cloud.inject(simulator.Fault{Service: "ess", Action: "DescribeLifecycleHooks", Kind: simulator.FaultHang})
		time.Sleep(10 * time.Minute)
		cloud.scaleIn(1)
		cloud.until(2*time.Minute, "the second has begun", func() bool { return len(r.find(audit.StepStarted)) == 2 })
		cloud.until(time.Hour, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		r.stop()
		r.balanced()
	})
}

// A call that is throttled for a while delays answers and loses none.
func TestAWSThrottled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := awsScenario(31)
		s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 5 * time.Minute
		cloud := newCloud(t, s)
		cloud.inject(simulator.Fault{Service: "ess", Kind: simulator.FaultThrottle, PerSecond: 2})
		r := cloud.start(settings{plans: []worker.Plan{plan(2*time.Hour, takes(10*time.Minute))}})
		cloud.scaleIn(30)
		cloud.until(3*time.Hour, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		r.stop()
		r.balanced()
	})
}

// A refused permission is named, the worker is not ready, and nothing is deleted; it goes on
// when the permission is there.
func TestAWSDenied(t *testing.T) {
	t.Parallel()
	for action, names := range map[string]string{
		"autoscaling:CompleteLifecycleAction":        "autoscaling:CompleteLifecycleAction",
		"autoscaling:DescribeAutoScalingInstances":   "autoscaling:DescribeAutoScalingInstances",
		"autoscaling:RecordLifecycleActionHeartbeat": "autoscaling:RecordLifecycleActionHeartbeat",
		"sqs:ReceiveMessage":                         "sqs:ReceiveMessage",
	} {
		t.Run(action, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := awsScenario(3)
				s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 30 * time.Minute
				s.Policy = fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":%q,"Resource":"*"}]}`, action)
				cloud := newCloud(t, s)
				r := cloud.start(settings{plans: []worker.Plan{plan(24*time.Hour, takes(25*time.Minute))}, verify: worker.VerifyAlways})
				cloud.scaleIn(2)
				cloud.until(29*time.Minute, "not ready, naming it", func() bool {
					err := r.w.Ready()
					return err != nil && errors.Is(err, providers.ErrDenied) && strings.Contains(err.Error(), names)
				})
				if err := r.w.Healthy(); err != nil {
					t.Errorf("unhealthy, which a restart would not help: %v", err)
				}
				if n := cloud.count(simulator.MessageDeleted); n != 0 {
					t.Errorf("%d messages were deleted", n)
				}
				cloud.SetPolicy(nil)
				cloud.until(time.Hour, "settled", cloud.settled)
				cloud.until(time.Minute, "ready", func() bool { return r.w.Ready() == nil })
				cloud.ordered()
			})
		})
	}
}

// eventPlan is what is done for the events of a kind.
func eventPlan(event messages.Event, deadline time.Duration, steps ...worker.PlannedStep) worker.Plan {
	return worker.Plan{Event: event, Transition: messages.ScaleIn, Deadline: deadline, Steps: steps}
}

// tell sends an event about instances.
func (c *cloud) tell(event messages.Event, ids ...string) {
	c.t.Helper()
	if _, err := c.SendCloudEvent(simulator.CloudEvent{Event: string(event), Queue: queueName, Instances: ids}); err != nil {
		c.t.Fatal(err)
	}
}

// instancesOf are a group's, in the cloud's order.
func (c *cloud) instancesOf(group string) (ids []string) {
	for _, g := range c.State().Groups {
		for _, in := range g.Instances {
			if g.ID == group {
				ids = append(ids, in.ID)
			}
		}
	}
	return ids
}

// An event is a drain in time, with nothing to prolong and nothing to complete; a worker that
// is killed meanwhile is followed by one that begins anew.
func TestAWSEvent(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed=%v", killed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud := newCloud(t, awsScenario(3))
				var got noted[messages.Instance]
				step := worker.PlannedStep{Step: stepFunc(func(ctx context.Context, in messages.Instance, _ int) (string, error) {
					got.add(in)
					return "", pauseFor(ctx, 50*time.Second)
				})}
				plans := []worker.Plan{eventPlan(messages.RebalanceRecommendation, 10*time.Minute, step)}
				r := cloud.start(settings{name: "a", plans: plans})
				instance := cloud.instancesOf(groupID)[1]
				cloud.tell(messages.RebalanceRecommendation, instance)
				cloud.until(30*time.Second, "begun", func() bool { return len(r.find(audit.StepStarted)) == 1 })
				if killed {
					r.kill()
					r = cloud.start(settings{name: "b", plans: plans})
				}
				cloud.until(3*time.Minute, "deleted", cloud.empty)
				acked := r.find(audit.Acked)
				if len(acked) != 1 || acked[0].Reason != "1 of 1 jobs succeeded" || acked[0].InstanceEvent != messages.RebalanceRecommendation || acked[0].Group != groupID {
					t.Errorf("closed with %+v", acked)
				}
				for _, event := range []audit.Event{audit.Completed, audit.Heartbeat} {
					if n := len(r.find(event)); n != 0 {
						t.Errorf("%d records %s", n, event)
					}
				}
				for _, in := range got.all() {
					if string(in.ID) != instance || in.Action.Group != groupID || in.Action.Event != messages.RebalanceRecommendation || !in.PrivateIP.IsValid() {
						t.Errorf("a job for %+v", in)
					}
				}
				for _, call := range []string{"CompleteLifecycleAction", "RecordLifecycleActionHeartbeat"} {
					if n := cloud.State().APICalls["autoscaling."+call]; n != 0 {
						t.Errorf("%d calls of %s", n, call)
					}
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// The jobs of a spot interruption end before the instance is taken, and that is no failure of
// anything: the message is deleted.
func TestAWSEventIsBoundedByWhatIsDue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, awsScenario(3))
		r := cloud.start(settings{plans: []worker.Plan{eventPlan(messages.SpotInterruption, time.Hour, takes(30*time.Minute))}})
		cloud.tell(messages.SpotInterruption, cloud.instancesOf(groupID)[0])
		begin := time.Now()
		cloud.until(5*time.Minute, "deleted", cloud.empty)
		if took := time.Since(begin); took < 110*time.Second || took > 125*time.Second {
			t.Errorf("ended after %v, want the two minutes", took)
		}
		if acked := r.find(audit.Acked); len(acked) != 1 || !strings.Contains(acked[0].Reason, "deadline has passed") {
			t.Errorf("closed with %+v", acked)
		}
	})
}

// The same event twice is one drain; a hook's action of the instance that comes meanwhile is
// another, and answered.
func TestAWSEventTwiceAndAHook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, awsScenario(3))
		cloud.inject(simulator.Fault{Service: "mns", Action: "SendMessage", Kind: simulator.FaultDuplicate, Count: 1})
		r := cloud.start(settings{plans: []worker.Plan{
			eventPlan(messages.StateChange, 10*time.Minute, takes(time.Minute)), plan(time.Hour, takes(2*time.Minute)),
		}})
		cloud.tell(messages.StateChange, cloud.instancesOf(groupID)[0])
		cloud.until(30*time.Second, "begun", func() bool { return len(r.find(audit.StepStarted)) == 1 })
		cloud.scaleIn(1)
		cloud.until(5*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		if events, hooks := len(r.find(audit.StepStarted)), len(r.find(audit.Completed)); events != 2 || hooks != 1 {
			t.Errorf("%d steps, %d completions, want one step each for the event and the hook, and one completion", events, hooks)
		}
		if n := len(r.find(audit.Acked)); n != 2 {
			t.Errorf("%d acked, want 2", n)
		}
		r.stop()
		r.balanced()
	})
}

// A scheduled change may be about instances of several groups: each has its own group's plan.
// An event that no plan is for is deleted at once, and one about strangers after a while.
func TestAWSEventsFindTheirGroups(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := awsScenario(2)
		for _, id := range []string{"asg-other", "asg-strange"} {
			other := s.ScalingGroups[0]
			other.ID, other.Hooks = id, nil
			s.ScalingGroups = append(s.ScalingGroups, other)
		}
		cloud := newCloud(t, s)
		var did noted[string]
		does := func(name string) worker.PlannedStep {
			return worker.PlannedStep{Step: stepFunc(func(_ context.Context, in messages.Instance, _ int) (string, error) {
				did.add(fmt.Sprintf("%s %s of %s", name, in.ID, in.Action.Group))
				return "", nil
			})}
		}
		r := cloud.start(settings{groups: []string{groupID, "asg-other"}, change: func(o *worker.Options) {
			for i, name := range []string{"web", "other"} {
				o.Queues[0].Groups[i].Plans = []worker.Plan{eventPlan(messages.ScheduledChange, time.Hour, does(name))}
			}
		}})
		web, other, strange := cloud.instancesOf(groupID)[0], cloud.instancesOf("asg-other")[0], cloud.instancesOf("asg-strange")[0]
		cloud.tell(messages.ScheduledChange, web, strange, other)
		cloud.tell(messages.SpotInterruption, web)
		cloud.tell(messages.ScheduledChange, strange)
		cloud.until(5*time.Minute, "all have their end", cloud.empty)
		jobs := did.all()
		slices.Sort(jobs)
		want := []string{"other " + other + " of asg-other", "web " + web + " of asg-web"}
		if !slices.Equal(jobs, want) {
			t.Errorf("jobs %q, want %q", jobs, want)
		}
		admitted := r.find(audit.Admitted)
		if len(admitted) != 1 || len(admitted[0].Instances) != 2 || !strings.Contains(admitted[0].Reason, strange+" (asg-strange)") {
			t.Errorf("admitted %+v", admitted)
		}
		groups := map[messages.InstanceID]messages.GroupID{}
		for _, rec := range r.find(audit.StepStarted) {
			groups[rec.Instance] = rec.Group
		}
		if groups[messages.InstanceID(web)] != groupID || groups[messages.InstanceID(other)] != "asg-other" {
			t.Errorf("steps are recorded in %v", groups)
		}
		if left, ignored := len(r.find(audit.Unrouted)), r.find(audit.Ignored); left != 2 || len(ignored) != 2 {
			t.Errorf("%d times left to others, ignored %+v", left, ignored)
		}
		r.stop()
		r.balanced()
	})
}

// While the cloud does not tell where the instances are, the event is put off and asked for again.
func TestAWSEventWaitsForItsGroup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, awsScenario(3))
		cloud.inject(simulator.Fault{Service: "ess", Action: "DescribeAutoScalingInstances", Kind: simulator.FaultDenied})
		var ran atomic.Int32
		r := cloud.start(settings{plans: []worker.Plan{eventPlan(messages.RebalanceRecommendation, time.Hour, worker.PlannedStep{Step: stepFunc(
			func(context.Context, messages.Instance, int) (string, error) { ran.Add(1); return "", nil },
		)})}})
		cloud.tell(messages.RebalanceRecommendation, cloud.instancesOf(groupID)[0])
		cloud.until(30*time.Second, "not ready", func() bool { return errors.Is(r.w.Ready(), providers.ErrDenied) })
		time.Sleep(5 * time.Minute)
		if cloud.empty() || ran.Load() != 0 {
			t.Fatal("the event was not kept")
		}
		off := r.find(audit.Released)
		if len(off) < 2 || len(off) > 4 || !strings.Contains(off[0].Reason, "autoscaling:DescribeAutoScalingInstances") {
			t.Errorf("put off %d times in five minutes: %+v", len(off), off)
		}
		cloud.ClearFaults()
		cloud.until(6*time.Minute, "done", cloud.empty)
		if ran.Load() != 1 || r.w.Ready() != nil {
			t.Errorf("%d jobs, ready: %v", ran.Load(), r.w.Ready())
		}
		// One that comes while the worker stops is handed back.
		cloud.inject(simulator.Fault{Service: "ess", Action: "DescribeAutoScalingInstances", Kind: simulator.FaultDenied})
		before := cloud.count(simulator.MessageReceived)
		cloud.tell(messages.RebalanceRecommendation, cloud.instancesOf(groupID)[1])
		cloud.until(30*time.Second, "received", func() bool { return cloud.count(simulator.MessageReceived) == before+1 })
		r.stop()
		r.balanced()
		cloud.until(5*time.Second, "handed back", func() bool { q, _ := cloud.State().Queue(queueName); return q.Active == 1 })
	})
}

// pauseFor waits, or gives why it could not.
func pauseFor(ctx context.Context, d time.Duration) error {
	if !sleep(ctx, d) {
		return ctx.Err()
	}
	return nil
}
