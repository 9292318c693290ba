package worker_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

func (c *cloud) send(body string) {
	c.t.Helper()
	if _, err := c.SendMessage(queueName, body); err != nil {
		c.t.Fatal(err)
	}
}

// notification makes a message as ESS sends it, with changed fields.
func notification(change map[string]any) string {
	content := map[string]any{
		"defaultResult": "CONTINUE", "instanceIds": []string{"i-none"}, "lifecycleActionToken": "C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99",
		"lifecycleHookId": hookID, "lifecycleHookName": "h", "lifecycleTransition": "SCALE_IN", "scalingActivityId": "asa-none",
		"scalingGroupId": groupID, "scalingGroupName": "web", "requestId": "R",
	}
	for k, v := range change {
		content[k] = v
	}
	body, err := json.Marshal(map[string]any{"product": "ESS", "regionId": "cn-shenzhen", "content": content, "userId": "1"})
	if err != nil {
		panic(err)
	}
	return string(body)
}

// hookMessage makes a message as Auto Scaling of AWS sends it, with changed fields.
func hookMessage(change map[string]any) string {
	content := map[string]any{
		"Origin": "AutoScalingGroup", "Destination": "EC2", "Service": "AWS Auto Scaling", "RequestId": "R", "AccountId": simulator.DefaultAWSAccountID,
		"LifecycleHookName": hookID, "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING", "AutoScalingGroupName": groupID,
		"EC2InstanceId": "i-0aa11bb22cc33dd44", "LifecycleActionToken": "3d9c1f7e-52b8-4a06-9e41-7c0d5b2a6f18",
	}
	maps.Copy(content, change)
	body, err := json.Marshal(content)
	if err != nil {
		panic(err)
	}
	return string(body)
}

// Garbage is left in the queue until the last delivery it is allowed, then quarantined
// with its body; nothing else suffers from it.
func TestGarbageIsQuarantined(t *testing.T) {
	t.Parallel()
	bodies := map[messages.Cloud]map[string]string{
		messages.Alibaba: {
			"truncated":  notification(nil)[:100],
			"wrong type": notification(map[string]any{"instanceIds": 7}),
			"bad id":     notification(map[string]any{"instanceIds": []string{"i-$(reboot)"}}),
		},
		messages.AWS: {
			"truncated":  hookMessage(nil)[:100],
			"wrong type": hookMessage(map[string]any{"EC2InstanceId": 7}),
			"bad id":     hookMessage(map[string]any{"EC2InstanceId": "i-$(reboot)"}),
		},
	}
	for _, of := range bodies {
		of["text"], of["64 KB"] = "hello", strings.Repeat("z", 65000)
		of["Base64 of garbage, no UTF-8 inside"] = base64.StdEncoding.EncodeToString([]byte{0xff, 0xfe, 0x00})
	}
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(scenario(3, true)))
		bodies := bodies[cloud.name]
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(20*time.Minute))}, change: func(o *worker.Options) { o.MaxReceives = 3 }})
		for _, b := range bodies {
			cloud.send(b)
		}
		cloud.scaleIn(2)
		cloud.until(10*time.Second, "the actions behind the garbage are admitted", func() bool { return len(r.find(audit.Admitted)) == 2 })
		cloud.until(5*time.Minute, "all garbage is quarantined", func() bool { return len(r.find(audit.Quarantined)) == len(bodies) })
		kept := map[string]bool{}
		for _, rec := range r.find(audit.Quarantined) {
			kept[rec.Body+string(rec.BodyBase64)] = true
			if rec.ReceiveCount != 3 || rec.Error == "" {
				t.Errorf("quarantined at delivery %d with error %q, want 3 and a reason", rec.ReceiveCount, rec.Error)
			}
		}
		for name, b := range bodies {
			if !kept[b] {
				t.Errorf("the body of %q is not in the audit log", name)
			}
		}
		if n := len(r.find(audit.Rejected)); n != 2*len(bodies) {
			t.Errorf("%d rejections, want 2 for each of %d", n, len(bodies))
		}
		cloud.until(time.Hour, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		r.stop()
		r.balanced()
	})
}

// A body that arrives garbled is not what the queue holds: however often that happens,
// the message stays, and its action is answered once it arrives whole.
func TestGarbledOnTheWayIsNotQuarantined(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		s := scenario(3, false)
		s.Queues[0].VisibilityTimeout = 5 * time.Second
		cloud := newCloud(t, on(s))
		cloud.inject(simulator.Fault{Service: "mns", Action: "ReceiveMessage", Kind: simulator.FaultCorrupt})
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}, change: func(o *worker.Options) { o.MaxReceives = 3 }})
		cloud.scaleIn(1)
		// On SQS a minute apart: there each receive says itself for how long it hides.
		cloud.until(15*time.Minute, "rejected more often than allowed", func() bool { return len(r.find(audit.Rejected)) > 6 })
		cloud.ClearFaults()
		cloud.until(5*time.Minute, "answered", cloud.settled)
		cloud.answered(messages.Continue)
		if n := len(r.find(audit.Quarantined)); n != 0 {
			t.Errorf("%d quarantined", n)
		}
		r.stop()
		r.balanced()
	})
}

// Poison alone in an idle queue does not stop the worker, and is gone in the end.
func TestPoisonAlone(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(scenario(2, false)))
		var logs bytes.Buffer
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour)}, logs: &logs})
		cloud.send("poison")
		cloud.until(10*time.Minute, "quarantined and deleted", func() bool { return len(r.find(audit.Quarantined)) == 1 && cloud.empty() })
		if err := r.w.Healthy(); err != nil {
			t.Errorf("unhealthy: %v", err)
		}
		r.stop()
		r.balanced()
		if !strings.Contains(logs.String(), "quarantined") {
			t.Errorf("the log does not say so:\n%s", logs.String())
		}
	})
}

// Well-formed messages that announce no action are deleted at once, with their kind on record.
func TestOtherEventsAreIgnored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(2, false))
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour)}})
		cloud.send(`{"product":"ESS","event":"AUTOSCALING:SCALE_IN_SUCCESS","content":{"scalingGroupId":"asg-web"}}`)
		cloud.send(`{"product":"ECS","name":"Instance:StateChange","content":{}}`)
		cloud.until(10*time.Second, "both are deleted", cloud.empty)
		kinds := ""
		for _, rec := range r.find(audit.Ignored) {
			kinds += rec.Reason + ";"
		}
		if !strings.Contains(kinds, "ESS AUTOSCALING:SCALE_IN_SUCCESS;") || !strings.Contains(kinds, "ECS Instance:StateChange;") {
			t.Errorf("ignored kinds: %s", kinds)
		}
		r.stop()
		r.balanced()
	})
}

// What no config names is left to other workers, and comes back later each time; so is
// a hook that the group's config has no plan for.
func TestUnroutedIsLeftToOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(2, false))
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour)}})
		cloud.send(notification(map[string]any{"scalingGroupId": "asg-unknown"}))
		cloud.send(notification(map[string]any{"lifecycleTransition": "SCALE_OUT"}))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		records := r.find(audit.Unrouted)
		if len(records) < 12 || len(records) > 18 {
			t.Errorf("%d deliveries of two messages in 10 minutes, want them to come ever later", len(records))
		}
		reasons := fmt.Sprint(records)
		if !strings.Contains(reasons, "no config names the group asg-unknown") || !strings.Contains(reasons, "no plan for its hook ash-in (scale_out)") {
			t.Errorf("reasons: %s", reasons)
		}
		if cloud.empty() {
			t.Error("the messages were deleted")
		}
		// A worker that knows the group has it when its time is up.
		b := cloud.start(settings{name: "b", plans: []worker.Plan{plan(time.Hour)}, groups: []string{"asg-unknown"}})
		r.stop()
		cloud.until(20*time.Minute, "the other worker has it", func() bool { return len(b.find(audit.Stale)) == 1 })
		r.balanced()
	})
}

// While a new group's config is rolled out, some workers do not know it yet. Its actions
// find those that do long before the hook's own timeout.
func TestUnroutedFindsItsWorkerInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sc := scenario(40, true)
		sc.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 20 * time.Minute
		cloud := newCloud(t, sc)
		var fleet []*running
		for i := range 4 {
			groups := []string{"asg-old"}
			if i < 2 {
				groups = append(groups, groupID)
			}
			fleet = append(fleet, cloud.start(settings{name: fmt.Sprintf("w%d", i), plans: []worker.Plan{plan(30*time.Minute, takes(time.Minute))}, groups: groups, change: func(o *worker.Options) {
				o.ReconcileEvery = 3 * time.Minute
			}}))
		}
		cloud.scaleIn(30)
		cloud.until(19*time.Minute, "all answered", cloud.over)
		cloud.until(2*time.Hour, "their messages are found, too", cloud.empty)
		cloud.answered(messages.Continue)
		for _, r := range fleet {
			r.stop()
			r.balanced()
		}
	})
}

// Messages that lie about what is pending touch nothing and are deleted, with the
// reason on record.
func TestForgedAndStaleMessages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(6, false)
		other := s.ScalingGroups[0]
		other.ID = "asg-other"
		other.Hooks = []simulator.HookConfig{{ID: "ash-other", Transition: "scale_in", Queue: queueName, HeartbeatTimeout: time.Hour, DefaultResult: "ROLLBACK"}}
		s.ScalingGroups = append(s.ScalingGroups, other)
		cloud := newCloud(t, s)
		// A pending action of another group, which the worker has no config for.
		if _, err := cloud.ScaleIn("asg-other", 1); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		foreign := cloud.State().Actions[0]
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}})
		token := cloud.scaleIn(1)[0]
		own, _ := cloud.State().Action(token)
		victim := cloud.State().Groups[0].Instances[5].ID
		forgeries := map[string]map[string]any{
			"another group's action under our group's name": {
				"lifecycleActionToken": foreign.Token, "lifecycleHookId": foreign.Hook, "scalingActivityId": foreign.Activity, "instanceIds": foreign.Instances},
			"our instance under another group's token": {
				"lifecycleActionToken": foreign.Token, "lifecycleHookId": foreign.Hook, "scalingActivityId": foreign.Activity, "instanceIds": []string{victim}},
			"a token of another hook":    {"lifecycleActionToken": own.Token, "lifecycleHookId": "ash-wrong", "scalingActivityId": own.Activity, "instanceIds": own.Instances},
			"a token that never was":     {"instanceIds": []string{victim}, "scalingActivityId": own.Activity},
			"an activity that never was": {"instanceIds": []string{victim}},
		}
		for _, f := range forgeries {
			cloud.send(notification(f))
		}
		cloud.until(3*time.Minute, "all are closed as stale", func() bool { return len(r.find(audit.Stale)) == len(forgeries) })
		cloud.until(3*time.Minute, "our own action is answered", func() bool { a, _ := cloud.State().Action(token); return a.Status == "Completed" })
		if a, _ := cloud.State().Action(foreign.Token); a.Status != "Pending" || a.HeartbeatsUsed != 0 {
			t.Errorf("the foreign action was touched: %+v", a)
		}
		if in, ok := cloud.State().Instance(victim); !ok || in.State != "InService" {
			t.Errorf("the victim was touched: %+v", in)
		}
		if n := len(r.find(audit.StepStarted)); n != 1 {
			t.Errorf("%d steps ran, want only our own action's", n)
		}
		for _, rec := range r.find(audit.Stale) {
			if rec.Reason == "" {
				t.Error("a stale record has no reason")
			}
		}
		cloud.until(time.Minute, "our own action is closed", func() bool { return len(r.find(audit.Acked)) == 1 })
		// A replay of the action that is over now.
		cloud.send(notification(map[string]any{"lifecycleActionToken": own.Token, "lifecycleHookId": own.Hook, "scalingActivityId": own.Activity, "instanceIds": own.Instances}))
		cloud.until(time.Minute, "the replay is stale too", func() bool { return len(r.find(audit.Stale)) == len(forgeries)+1 })
		r.stop()
		r.balanced()
	})
}

// A real token with one more instance than the cloud lists is a lie. Nothing is touched
// for it, and the true message does not share its end, whichever comes first.
func TestInstanceAddedToRealAction(t *testing.T) {
	t.Parallel()
	for _, forgedFirst := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			cloud := newCloud(t, scenario(6, false))
			token := cloud.scaleIn(1)[0]
			own, _ := cloud.State().Action(token)
			victim := cloud.State().Groups[0].Instances[5].ID
			forgery := notification(map[string]any{"lifecycleActionToken": own.Token, "lifecycleHookId": own.Hook, "scalingActivityId": own.Activity, "instanceIds": append(own.Instances, victim)})
			if !forgedFirst {
				cloud.send(forgery)
			}
			r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}})
			if forgedFirst {
				cloud.send(forgery)
			}
			cloud.until(5*time.Minute, "settled", cloud.settled)
			for _, rec := range r.find(audit.StepStarted) {
				if string(rec.Instance) == victim {
					t.Error("a step ran for an instance that the action does not have")
				}
			}
			cloud.answered(messages.Continue)
			if n := len(r.find(audit.Stale)); n != 1 {
				t.Errorf("%d stale records, want the forgery's", n)
			}
			r.stop()
			r.balanced()
		})
	}
}

// A message that names only some of an action's instances: the cloud's list counts, and
// the action is worked on once.
func TestInstancesLeftOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(6, false))
		token := cloud.scaleIn(3)[0]
		own, _ := cloud.State().Action(token)
		cloud.send(notification(map[string]any{"lifecycleActionToken": own.Token, "lifecycleHookId": own.Hook, "scalingActivityId": own.Activity, "instanceIds": own.Instances[:1]}))
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}})
		cloud.until(10*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		if n := len(r.find(audit.StepStarted)); n != 3 {
			t.Errorf("%d jobs, want one for each of the 3 instances", n)
		}
		if n := len(r.find(audit.Completed)); n != 1 {
			t.Errorf("%d completions", n)
		}
		r.stop()
		r.balanced()
	})
}

// credulous is a cloud that confirms every action, as one would whose instances are in
// no group's listing.
type credulous struct{ providers.Lifecycle }

func (c credulous) Verify(_ context.Context, actions []messages.Action) []providers.Verification {
	out := make([]providers.Verification, len(actions))
	for i, a := range actions {
		out[i] = providers.Verification{State: providers.Pending, Instances: []messages.Instance{{ID: a.Instances[0], State: "Running"}}}
	}
	return out
}

// A pending action whose hook the group does not have is another group's: nothing is touched.
func TestHookOfAnotherGroup(t *testing.T) {
	hours(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(3, false)
		other := s.ScalingGroups[0]
		other.ID, other.Hooks = "asg-other", []simulator.HookConfig{{ID: "ash-other", Transition: "scale_in", HeartbeatTimeout: time.Hour}}
		s.ScalingGroups = append(s.ScalingGroups, other)
		cloud := newCloud(t, s)
		if _, err := cloud.ScaleIn("asg-other", 1); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		foreign := cloud.State().Actions[0]
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}, change: func(o *worker.Options) {
			g := &o.Queues[0].Groups[0]
			g.Lifecycle = credulous{g.Lifecycle}
		}})
		for range 3 {
			cloud.send(notification(map[string]any{"lifecycleActionToken": foreign.Token, "lifecycleHookId": foreign.Hook, "scalingActivityId": foreign.Activity, "instanceIds": foreign.Instances}))
		}
		// The cloud's word on the action stands against its word on the hook: it is asked again.
		cloud.until(2*time.Minute, "put off", func() bool { return len(r.find(audit.Released)) >= 1 })
		if records := r.find(audit.Released); !strings.Contains(records[0].Reason, "the group has no hook ash-other") {
			t.Errorf("reason %q", records[0].Reason)
		}
		if a, _ := cloud.State().Action(foreign.Token); a.Status != "Pending" || a.HeartbeatsUsed != 0 || len(r.find(audit.StepStarted)) != 0 {
			t.Errorf("the foreign action was touched: %+v", a)
		}
		if n := cloud.State().APICalls["ess.DescribeLifecycleHooks"]; n > 2 {
			t.Errorf("the hook was asked for %d times", n)
		}
		// An action can't wait for longer than that, whatever is said of it.
		time.Sleep(6 * time.Hour)
		cloud.until(10*time.Minute, "closed", func() bool { return len(r.find(audit.Stale)) >= 1 && cloud.empty() })
		r.stop()
		r.balanced()
	})
}

// A message that gives a real action another hook's name, or the other transition, does
// not choose what is done with it, and does not take the true message with it.
func TestForgedWordsOfAHook(t *testing.T) {
	t.Parallel()
	for _, change := range []map[string]any{
		{"lifecycleHookName": "quick"}, {"lifecycleHookName": ""}, {"lifecycleTransition": "SCALE_OUT"},
	} {
		for _, forgedFirst := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				s := scenario(3, false)
				s.ScalingGroups[0].Hooks[0].Name, s.ScalingGroups[0].Hooks[0].Queue = "careful", "" // the test tells
				cloud := newCloud(t, s)
				cloud.scaleIn(1)
				own := cloud.State().Actions[0]
				truth := map[string]any{
					"lifecycleActionToken": own.Token, "lifecycleHookId": own.Hook, "lifecycleHookName": "careful",
					"scalingActivityId": own.Activity, "instanceIds": own.Instances,
				}
				forgery := maps.Clone(truth)
				maps.Copy(forgery, change)
				both := []string{notification(truth), notification(forgery)}
				if forgedFirst {
					slices.Reverse(both)
				}
				for _, body := range both {
					cloud.send(body)
				}
				named := func(name string, transition messages.Transition) worker.Plan {
					p := plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(context.Context, messages.Instance, int) (string, error) { return name, nil })})
					p.Hook, p.Transition = name, transition
					return p
				}
				careful, quick, other, out := named("careful", messages.ScaleIn), named("quick", messages.ScaleIn), named("", messages.ScaleIn), named("", messages.ScaleOut)
				careful.Steps = append(careful.Steps, takes(20*time.Second))
				r := cloud.start(settings{plans: []worker.Plan{careful, quick, other, out}, change: func(o *worker.Options) {
					// A cloud that does not list the instances in any group: their states say nothing.
					g := &o.Queues[0].Groups[0]
					g.Lifecycle = credulous{g.Lifecycle}
				}})
				cloud.until(10*time.Minute, "settled", cloud.settled)
				for _, rec := range r.find(audit.StepFinished) {
					if rec.Reason != "" && rec.Reason != "careful" {
						t.Errorf("%v: the steps of %q ran", change, rec.Reason)
					}
				}
				cloud.answered(messages.Continue)
				r.stop()
				r.balanced()
			})
		}
	}
}

// A message that says that its hook fired long ago does not make the deadline pass.
func TestOldTimeInAMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(3, false)
		s.ScalingGroups[0].Hooks[0].Queue = "" // the test tells
		cloud := newCloud(t, s)
		cloud.scaleIn(1)
		own := cloud.State().Actions[0]
		body := notification(map[string]any{
			"lifecycleActionToken": own.Token, "lifecycleHookId": own.Hook, "scalingActivityId": own.Activity, "instanceIds": own.Instances, "lifecycleHookName": "",
		})
		cloud.send(`{"time":"` + time.Now().Add(-10*time.Hour).UTC().Format(time.RFC3339) + `",` + body[1:])
		r := cloud.start(settings{plans: []worker.Plan{plan(20*time.Minute, takes(5*time.Minute))}})
		cloud.until(time.Hour, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		r.stop()
		r.balanced()
	})
}

// The listing may lag behind the notification: the action is asked for again, not dropped.
func TestListingLagsBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(2, false)
		s.Timings.Listing = 15 * time.Second
		cloud := newCloud(t, s)
		cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}})
		cloud.scaleIn(1)
		cloud.until(5*time.Minute, "answered", cloud.settled)
		cloud.answered(messages.Continue)
	})
}

// Without verification the worker looks the address up itself, and a redelivery is
// verified where the policy says so. What lasts is looked at once, half a minute later,
// since nobody has told whether another hook's answer could end it; never means never.
func TestVerifyPolicies(t *testing.T) {
	t.Parallel()
	for policy, questions := range map[worker.Verify]int{worker.VerifyAlways: 1, worker.VerifyRedelivered: 1, worker.VerifyNever: 0} {
		t.Run(string(policy), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud := newCloud(t, scenario(2, false))
				r := cloud.start(settings{verify: policy, plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}})
				cloud.scaleIn(1)
				cloud.until(5*time.Minute, "answered", cloud.settled)
				cloud.answered(messages.Continue)
				if n := cloud.State().APICalls["ess.DescribeLifecycleActions"]; n != questions {
					t.Errorf("the cloud was asked %d times, want %d", n, questions)
				}
				if policy == worker.VerifyAlways {
					return
				}
				own := cloud.State().Actions[0]
				replay := notification(map[string]any{"lifecycleActionToken": own.Token, "scalingActivityId": own.Activity, "instanceIds": own.Instances})
				cloud.send(replay)
				cloud.until(5*time.Minute, "the replay is closed", cloud.settled)
				if n := cloud.count(simulator.ActionCompleted); n != 1 {
					t.Errorf("%d completions", n)
				}
				r.stop()
				r.balanced()
			})
		})
	}
}
