package simulator

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/smithy-go"
)

// scaling is the vendor's own client, which tries each call once.
func (w awsWorld) scaling() *autoscaling.Client {
	return autoscaling.New(autoscaling.Options{
		Region: "eu-west-1", BaseEndpoint: aws.String(w.base), HTTPClient: w.http, Retryer: aws.NopRetryer{},
		Credentials: credentials.NewStaticCredentialsProvider(w.id, w.secret, w.token),
	})
}

// asg is a group of n instances with hooks that notify queue q.
func asg(n int, hooks ...HookConfig) Scenario {
	sc := Scenario{Provider: providerAWS, Queues: []QueueConfig{{Name: "q"}}, Balancers: []BalancerConfig{{ID: "lb"}}}
	for i := range hooks {
		hooks[i].Queue = "q"
	}
	sc.ScalingGroups = []GroupConfig{{ID: "web-asg", Instances: n, Balancers: []string{"lb"}, Hooks: hooks}}
	return sc
}

func draining(timeout time.Duration) HookConfig {
	return HookConfig{ID: "usher-drain", Transition: scaleIn, HeartbeatTimeout: timeout}
}

func warming(timeout time.Duration) HookConfig {
	return HookConfig{ID: "usher-warm", Transition: scaleOut, HeartbeatTimeout: timeout}
}

// refusal is what an error's API code and message are.
func refusal(err error) (string, string) {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode(), e.ErrorMessage()
	}
	return fmt.Sprint(err), ""
}

func (w awsWorld) mustComplete(hook, token string, result string) {
	w.t.Helper()
	if err := w.tryComplete(hook, token, "", result); err != nil {
		w.t.Fatalf("complete %s with %s: %v", token, result, err)
	}
}

func (w awsWorld) tryComplete(hook, token, instance, result string) error {
	in := &autoscaling.CompleteLifecycleActionInput{
		AutoScalingGroupName: aws.String("web-asg"), LifecycleHookName: &hook, LifecycleActionResult: &result,
	}
	if token != "" {
		in.LifecycleActionToken = &token
	}
	if instance != "" {
		in.InstanceId = &instance
	}
	_, err := w.scaling().CompleteLifecycleAction(w.t.Context(), in)
	return err
}

func (w awsWorld) tryBeat(hook, token, instance string) error {
	in := &autoscaling.RecordLifecycleActionHeartbeatInput{AutoScalingGroupName: aws.String("web-asg"), LifecycleHookName: &hook}
	if token != "" {
		in.LifecycleActionToken = &token
	}
	if instance != "" {
		in.InstanceId = &instance
	}
	_, err := w.scaling().RecordLifecycleActionHeartbeat(w.t.Context(), in)
	return err
}

// over checks that an error says that no action waits any more.
func (w awsWorld) over(err error) {
	w.t.Helper()
	if c, m := refusal(err); c != "ValidationError" || !strings.HasPrefix(m, "No active Lifecycle Action found") {
		w.t.Errorf("got %s %q, want that no action is active", c, m)
	}
}

// leave scales in by one and gives the instance and its tokens.
func (w awsWorld) leave() (string, []string) {
	w.t.Helper()
	act, err := w.ScaleIn("web-asg", 1)
	if err != nil {
		w.t.Fatal(err)
	}
	return act.Instances[0], act.Tokens
}

func (w awsWorld) wantStates(want string) {
	w.t.Helper()
	if got := w.states("web-asg"); got != want {
		w.t.Errorf("states are %q, want %q", got, want)
	}
}

// trail lists the states that an instance went through.
func (w awsWorld) trail(id string) string {
	var out []string
	for _, e := range w.Events() {
		if e.Type == InstanceChanged && e.Instance == id {
			out = append(out, e.State)
		}
	}
	return strings.Join(out, " ")
}

func TestAWSScaleInToTheEnd(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: asg(3, draining(300*time.Second))}, func(w awsWorld) {
		act, err := w.ScaleIn("web-asg", 2)
		if err != nil {
			t.Fatal(err)
		}
		if len(act.Activities) != 2 || len(act.Tokens) != 2 || len(act.Instances) != 2 || act.Tokens[0] == act.Tokens[1] {
			t.Fatalf("each instance has an activity and a token of its own: %+v", act)
		}
		w.wantStates("Terminating:Wait Terminating:Wait InService")
		id, token := act.Instances[0], act.Tokens[0]
		a := w.action(token)
		if len(token) != 36 || token != strings.ToLower(token) || !slices.Equal(a.Instances, []string{id}) || a.Hook != "usher-drain" || a.Result != "ABANDON" {
			t.Errorf("action %+v with token %s", a, token)
		}
		if !ec2IDPattern.MatchString(id) || len(id) != 19 {
			t.Errorf("instance id %s", id)
		}
		w.mustComplete("usher-drain", token, "CONTINUE")
		if got, want := w.trail(id), "Pending InService Terminating Terminating:Wait Terminating:Proceed Released"; got != want {
			t.Errorf("went %s, want %s", got, want)
		}
		w.wantStates("Terminating:Wait InService")
		w.over(w.tryComplete("usher-drain", token, "", "CONTINUE"))
		w.over(w.tryBeat("usher-drain", token, ""))
		w.over(w.tryBeat("usher-drain", "", id))
		if a := w.action(token); a.Status != "Completed" || a.Result != "CONTINUE" || a.EndedBy != "call" {
			t.Errorf("action %+v", a)
		}

		// By the instance alone, and by both.
		id = act.Instances[1]
		w.over(w.tryComplete("usher-drain", act.Tokens[1], "i-0123456789abcdef0", "CONTINUE"))
		if err := w.tryBeat("usher-drain", "", id); err != nil {
			t.Errorf("heartbeat by instance: %v", err)
		}
		if err := w.tryBeat("usher-drain", act.Tokens[1], id); err != nil {
			t.Errorf("heartbeat by both: %v", err)
		}
		if err := w.tryComplete("usher-drain", "", id, "ABANDON"); err != nil {
			t.Errorf("complete by instance: %v", err)
		}
		w.wantStates("InService")
	})
}

func TestAWSHeartbeatStartsTheTimeoutAnew(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: asg(1, draining(time.Hour))}, func(w awsWorld) {
		_, tokens := w.leave()
		began := time.Now()
		time.Sleep(30 * time.Minute)
		if err := w.tryBeat("usher-drain", tokens[0], ""); err != nil {
			t.Fatal(err)
		}
		if a := w.action(tokens[0]); !a.Deadline.Equal(began.Add(90*time.Minute)) || a.HeartbeatsUsed != 1 {
			t.Errorf("deadline %v after the start, want minute 90: %+v", a.Deadline.Sub(began), a)
		}
		time.Sleep(time.Hour - time.Nanosecond)
		w.wantStates("Terminating:Wait")
		time.Sleep(time.Millisecond)
		w.wantStates("")
		if a := w.action(tokens[0]); a.Status != "Timeout" || a.Result != "ABANDON" || a.EndedBy != "timeout" || !a.Completed.Equal(began.Add(90*time.Minute)) {
			t.Errorf("action %+v", a)
		}
		w.over(w.tryBeat("usher-drain", tokens[0], ""))
	})
}

// A wait lasts for the smaller of 48 hours and a hundred timeouts, however often it is prolonged.
func TestAWSGlobalTimeout(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ timeout, most time.Duration }{
		{30 * time.Second, 3000 * time.Second},
		{300 * time.Second, 30000 * time.Second},
		{1728 * time.Second, 48 * time.Hour},
		{time.Hour, 48 * time.Hour},
		{2 * time.Hour, 48 * time.Hour},
	} {
		t.Run(c.timeout.String(), func(t *testing.T) {
			t.Parallel()
			bubbleAWS(t, Options{Scenario: asg(1, draining(c.timeout))}, func(w awsWorld) {
				_, tokens := w.leave()
				began := time.Now()
				beats := 0
				for w.action(tokens[0]).Status == "Pending" {
					time.Sleep(c.timeout * 3 / 4)
					if err := w.tryBeat("usher-drain", tokens[0], ""); err != nil {
						w.over(err)
						break
					}
					beats++
				}
				a := w.action(tokens[0])
				if a.Completed == nil || a.Completed.Sub(began) != c.most || a.EndedBy != "timeout" || a.HeartbeatsUsed != beats {
					t.Errorf("after %d heartbeats: %+v began at %v, want an end after %v", beats, a, began, c.most)
				}
				if want := int(c.most / (c.timeout * 3 / 4)); beats < want-1 || beats > want+1 {
					t.Errorf("%d heartbeats were granted, want about %d", beats, want)
				}
				hooks, err := w.scaling().DescribeLifecycleHooks(w.t.Context(), &autoscaling.DescribeLifecycleHooksInput{AutoScalingGroupName: aws.String("web-asg")})
				if err != nil || len(hooks.LifecycleHooks) != 1 {
					t.Fatalf("%v, %v", hooks, err)
				}
				if h := hooks.LifecycleHooks[0]; time.Duration(*h.GlobalTimeout)*time.Second != c.most || time.Duration(*h.HeartbeatTimeout)*time.Second != c.timeout {
					t.Errorf("hook tells of %d and %d", *h.HeartbeatTimeout, *h.GlobalTimeout)
				}
			})
		})
	}
}

func TestAWSDefaultResult(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ transition, result, states string }{
		{scaleIn, "CONTINUE", "InService"},
		{scaleIn, "ABANDON", "InService"},
		{scaleOut, "CONTINUE", "InService InService InService"},
		{scaleOut, "ABANDON", "InService InService"},
	} {
		t.Run(c.transition+c.result, func(t *testing.T) {
			t.Parallel()
			h := HookConfig{ID: "h", Transition: c.transition, HeartbeatTimeout: time.Minute, DefaultResult: c.result}
			bubbleAWS(t, Options{Scenario: asg(2, h)}, func(w awsWorld) {
				scale := map[string]func(string, int) (Activity, error){scaleIn: w.ScaleIn, scaleOut: w.ScaleOut}[c.transition]
				act, err := scale("web-asg", 1)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute + time.Millisecond)
				w.wantStates(c.states)
				if a := w.action(act.Tokens[0]); a.Status != "Timeout" || a.Result != c.result {
					t.Errorf("action %+v", a)
				}
			})
		})
	}
}

func TestAWSTwoHooks(t *testing.T) {
	t.Parallel()
	two := func(transition string) Scenario {
		return asg(2, HookConfig{ID: "a", Transition: transition, HeartbeatTimeout: time.Minute}, HookConfig{ID: "b", Transition: transition, HeartbeatTimeout: time.Minute})
	}
	t.Run("continue waits for the other", func(t *testing.T) {
		t.Parallel()
		bubbleAWS(t, Options{Scenario: two(scaleIn)}, func(w awsWorld) {
			id, tokens := w.leave()
			if len(tokens) != 2 || tokens[0] == tokens[1] {
				t.Fatalf("tokens %v", tokens)
			}
			w.mustComplete("a", tokens[0], "CONTINUE")
			w.wantStates("Terminating:Wait InService")
			w.over(w.tryComplete("b", tokens[0], "", "CONTINUE")) // the token of the other hook
			if err := w.tryComplete("b", "", id, "CONTINUE"); err != nil {
				t.Error(err)
			}
			w.wantStates("InService")
		})
	})
	t.Run("abandon stops the other", func(t *testing.T) {
		t.Parallel()
		bubbleAWS(t, Options{Scenario: two(scaleIn)}, func(w awsWorld) {
			_, tokens := w.leave()
			w.mustComplete("b", tokens[1], "ABANDON")
			w.wantStates("InService")
			if a := w.action(tokens[0]); a.EndedBy != "other_hook" {
				t.Errorf("the other action: %+v", a)
			}
			w.over(w.tryBeat("a", tokens[0], ""))
		})
	})
	t.Run("launching", func(t *testing.T) {
		t.Parallel()
		bubbleAWS(t, Options{Scenario: two(scaleOut)}, func(w awsWorld) {
			act, err := w.ScaleOut("web-asg", 2)
			if err != nil {
				t.Fatal(err)
			}
			first, second := act.Instances[0], act.Instances[1]
			w.mustComplete("a", act.Tokens[0], "CONTINUE")
			w.wantStates("InService InService Pending:Wait Pending:Wait")
			w.mustComplete("b", act.Tokens[1], "CONTINUE")
			w.mustComplete("b", act.Tokens[3], "ABANDON")
			w.wantStates("InService InService InService")
			if got, want := w.trail(first), "Pending Pending:Wait Pending:Proceed InService"; got != want {
				t.Errorf("went %s, want %s", got, want)
			}
			if got, want := w.trail(second), "Pending Pending:Wait Terminating:Proceed Released"; got != want {
				t.Errorf("went %s, want %s", got, want)
			}
			if a := w.action(act.Tokens[2]); a.EndedBy != "other_hook" {
				t.Errorf("the other action: %+v", a)
			}
			for _, st := range w.State().Members(first) {
				if !st.InService {
					t.Errorf("member %+v", st)
				}
			}
			if len(w.State().Members(first)) != 1 {
				t.Error("it has not joined the balancer")
			}
		})
	})
}

func TestAWSRetain(t *testing.T) {
	t.Parallel()
	sc := asg(2, draining(time.Minute))
	sc.ScalingGroups[0].Retain = true
	for name, end := range map[string]func(awsWorld, string){
		"by call":    func(w awsWorld, token string) { w.mustComplete("usher-drain", token, "ABANDON") },
		"by timeout": func(awsWorld, string) { time.Sleep(time.Minute + time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
				id, tokens := w.leave()
				end(w, tokens[0])
				w.wantStates("Terminating:Retained InService")
				time.Sleep(72 * time.Hour)
				w.wantStates("Terminating:Retained InService")
				w.over(w.tryBeat("usher-drain", "", id))
				if _, err := w.scaling().TerminateInstanceInAutoScalingGroup(w.t.Context(), &autoscaling.TerminateInstanceInAutoScalingGroupInput{
					InstanceId: &id, ShouldDecrementDesiredCapacity: aws.Bool(false),
				}); err != nil {
					t.Fatal(err)
				}
				w.wantStates("InService")
			})
		})
	}
	t.Run("continue never retains", func(t *testing.T) {
		t.Parallel()
		bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
			_, tokens := w.leave()
			w.mustComplete("usher-drain", tokens[0], "CONTINUE")
			w.wantStates("InService")
		})
	})
}

func TestAWSReplacement(t *testing.T) {
	t.Parallel()
	sc := asg(1, warming(time.Minute))
	sc.ScalingGroups[0].Replace = true
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		if _, err := w.ScaleOut("web-asg", 1); err != nil {
			t.Fatal(err)
		}
		// Each launch is abandoned after a minute; the pause before the next one doubles.
		var starts []time.Duration
		began := time.Now()
		time.Sleep(20 * time.Minute)
		for _, e := range w.Events() {
			if e.Type == ActionStarted {
				starts = append(starts, e.Time.Sub(began))
			}
		}
		want := []time.Duration{0, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 19 * time.Minute}
		if !slices.Equal(starts, want) {
			t.Errorf("launches at %v, want %v", starts, want)
		}
	})
}

func TestAWSTerminateInstance(t *testing.T) {
	t.Parallel()
	sc := asg(3, draining(time.Minute), warming(time.Minute))
	sc.ScalingGroups[0].MinSize = 2
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		g, _ := w.State().Group("web-asg")
		end := func(id string, decrement bool) (*autoscaling.TerminateInstanceInAutoScalingGroupOutput, error) {
			return w.scaling().TerminateInstanceInAutoScalingGroup(w.t.Context(), &autoscaling.TerminateInstanceInAutoScalingGroupInput{
				InstanceId: &id, ShouldDecrementDesiredCapacity: &decrement,
			})
		}
		out, err := end(g.Instances[1].ID, true)
		if err != nil {
			t.Fatal(err)
		}
		if a := out.Activity; *a.Description != "Terminating EC2 instance: "+g.Instances[1].ID || a.StatusCode != "InProgress" || *a.AutoScalingGroupName != "web-asg" || !a.StartTime.Equal(time.Now()) || *a.ActivityId == "" || *a.Cause == "" {
			t.Errorf("activity %+v", a)
		}
		w.wantStates("InService Terminating:Wait InService")
		again, err := end(g.Instances[1].ID, true)
		if err != nil || *again.Activity.ActivityId != *out.Activity.ActivityId {
			t.Errorf("a second call: %+v, %v", again, err)
		}

		_, err = end(g.Instances[0].ID, true)
		if c, m := refusal(err); c != "ValidationError" || !strings.Contains(m, "min size") {
			t.Errorf("below the minimum: %s %s", c, m)
		}
		if _, err = end(g.Instances[0].ID, false); err != nil {
			t.Fatal(err)
		}
		w.wantStates("Terminating:Wait Terminating:Wait InService Pending:Wait")

		// One that is coming is terminated too; its hook waits no more.
		after, _ := w.State().Group("web-asg")
		if _, err = end(after.Instances[3].ID, false); err != nil {
			t.Fatal(err)
		}
		w.wantStates("Terminating:Wait Terminating:Wait InService Terminating:Wait Pending:Wait")
		w.over(w.tryBeat("usher-warm", "", after.Instances[3].ID))

		_, err = end("i-0aa11bb22cc33dd44", true)
		if c, m := refusal(err); c != "ValidationError" || m != "Instance Id not found - No managed instance found for instance ID: i-0aa11bb22cc33dd44" {
			t.Errorf("unknown: %s %s", c, m)
		}
		_, err = w.scaling().TerminateInstanceInAutoScalingGroup(w.t.Context(), &autoscaling.TerminateInstanceInAutoScalingGroupInput{
			AutoScalingGroupName: aws.String("web-asg"), InstanceIds: []string{g.Instances[2].ID}, ShouldDecrementDesiredCapacity: aws.Bool(false),
		})
		if err != nil {
			t.Fatal(err)
		}
		w.wantStates("Terminating:Wait Terminating:Wait Terminating:Wait Terminating:Wait Pending:Wait Pending:Wait")
	})
}

func TestAWSSetDesiredCapacity(t *testing.T) {
	t.Parallel()
	sc := asg(3, draining(time.Minute), warming(time.Minute))
	sc.ScalingGroups[0].MinSize, sc.ScalingGroups[0].MaxSize = 1, 5
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		want := func(n int32, honor bool) error {
			_, err := w.scaling().SetDesiredCapacity(w.t.Context(), &autoscaling.SetDesiredCapacityInput{
				AutoScalingGroupName: aws.String("web-asg"), DesiredCapacity: &n, HonorCooldown: &honor,
			})
			return err
		}
		for n, text := range map[int32]string{
			9: "New SetDesiredCapacity value 9 is above max value 5 for the AutoScalingGroup.",
			0: "New SetDesiredCapacity value 0 is below min value 1 for the AutoScalingGroup.",
		} {
			if c, m := refusal(want(n, false)); c != "ValidationError" || m != text {
				t.Errorf("%d: %s %q", n, c, m)
			}
		}
		if err := want(3, true); err != nil {
			t.Error(err)
		}
		w.wantStates("InService InService InService")
		if err := want(1, true); err != nil {
			t.Error(err)
		}
		w.wantStates("Terminating:Wait Terminating:Wait InService")
		if c, _ := refusal(want(2, true)); c != "ScalingActivityInProgress" {
			t.Errorf("while it is busy: %s", c)
		}
		if err := want(2, false); err != nil {
			t.Error(err)
		}
		w.wantStates("Terminating:Wait Terminating:Wait InService Pending:Wait")
		if _, err := w.ScaleOut("web-asg", 4); err == nil || !strings.Contains(err.Error(), "1 to 5") {
			t.Errorf("the control call beyond the maximum: %v", err)
		}
	})
}

func TestAWSDescribeInstancesOfGroups(t *testing.T) {
	t.Parallel()
	sc := asg(60, draining(time.Minute))
	sc.ScalingGroups = append(sc.ScalingGroups, GroupConfig{ID: "other-asg", Instances: 51, Tags: map[string]string{"app": "db"}})
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		id, _ := w.leave()
		out, err := w.scaling().DescribeAutoScalingInstances(w.t.Context(), &autoscaling.DescribeAutoScalingInstancesInput{
			InstanceIds: []string{id, "i-0aa11bb22cc33dd44", "no-instance"},
		})
		if err != nil || len(out.AutoScalingInstances) != 1 || out.NextToken != nil {
			t.Fatalf("%+v, %v", out, err)
		}
		if in := out.AutoScalingInstances[0]; *in.InstanceId != id || *in.LifecycleState != "Terminating:Wait" || *in.AutoScalingGroupName != "web-asg" || *in.HealthStatus != "HEALTHY" || *in.AvailabilityZone != "eu-west-1a" || *in.ProtectedFromScaleIn || *in.LaunchTemplate.LaunchTemplateName != "web-asg" {
			t.Errorf("instance %+v", in)
		}

		seen := map[string]int{}
		pages := autoscaling.NewDescribeAutoScalingInstancesPaginator(w.scaling(), &autoscaling.DescribeAutoScalingInstancesInput{MaxRecords: aws.Int32(25)})
		n := 0
		for ; pages.HasMorePages(); n++ {
			page, err := pages.NextPage(w.t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, in := range page.AutoScalingInstances {
				seen[*in.InstanceId]++
			}
		}
		if n != 5 || len(seen) != 111 {
			t.Errorf("%d pages with %d instances", n, len(seen))
		}

		groups, err := w.scaling().DescribeAutoScalingGroups(w.t.Context(), &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{"other-asg", "nobody"}})
		if err != nil || len(groups.AutoScalingGroups) != 1 {
			t.Fatalf("%+v, %v", groups, err)
		}
		if g := groups.AutoScalingGroups[0]; *g.DesiredCapacity != 51 || *g.MaxSize != maxInstances || len(g.Instances) != 51 || *g.Instances[0].HealthStatus != "Healthy" || !strings.HasSuffix(*g.AutoScalingGroupARN, ":autoScalingGroupName/other-asg") || *g.Tags[0].Key != "app" {
			t.Errorf("group %+v", g)
		}
		page, err := w.scaling().DescribeAutoScalingGroups(w.t.Context(), &autoscaling.DescribeAutoScalingGroupsInput{MaxRecords: aws.Int32(1)})
		if err != nil || len(page.AutoScalingGroups) != 1 || page.NextToken == nil {
			t.Fatalf("%+v, %v", page, err)
		}
		page, err = w.scaling().DescribeAutoScalingGroups(w.t.Context(), &autoscaling.DescribeAutoScalingGroupsInput{MaxRecords: aws.Int32(1), NextToken: page.NextToken})
		if err != nil || len(page.AutoScalingGroups) != 1 || page.NextToken != nil || *page.AutoScalingGroups[0].AutoScalingGroupName != "other-asg" {
			t.Fatalf("%+v, %v", page, err)
		}
	})
}

func TestAWSLifecycleHooks(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: asg(2, draining(300*time.Second))}, func(w awsWorld) {
		put := func(in *autoscaling.PutLifecycleHookInput) error {
			in.AutoScalingGroupName = aws.String("web-asg")
			_, err := w.scaling().PutLifecycleHook(w.t.Context(), in)
			return err
		}
		list := func(names ...string) []types.LifecycleHook {
			out, err := w.scaling().DescribeLifecycleHooks(w.t.Context(), &autoscaling.DescribeLifecycleHooksInput{AutoScalingGroupName: aws.String("web-asg"), LifecycleHookNames: names})
			if err != nil {
				t.Fatal(err)
			}
			return out.LifecycleHooks
		}
		if h := list()[0]; *h.NotificationTargetARN != "arn:aws:sqs:eu-west-1:111122223333:q" || *h.LifecycleTransition != "autoscaling:EC2_INSTANCE_TERMINATING" || *h.DefaultResult != "ABANDON" || h.NotificationMetadata != nil || *h.GlobalTimeout != 30000 {
			t.Errorf("hook %+v", h)
		}

		// A new one needs a transition; its target gets the test message.
		if c, _ := refusal(put(&autoscaling.PutLifecycleHookInput{LifecycleHookName: aws.String("two")})); c != "ValidationError" {
			t.Errorf("without a transition: %s", c)
		}
		target := &autoscaling.PutLifecycleHookInput{
			LifecycleHookName: aws.String("two"), LifecycleTransition: aws.String("autoscaling:EC2_INSTANCE_TERMINATING"),
			NotificationTargetARN: aws.String("arn:aws:sqs:eu-west-1:111122223333:q"), NotificationMetadata: aws.String("tier=web"),
		}
		if c, m := refusal(put(target)); c != "ValidationError" || !strings.Contains(m, "RoleARN") {
			t.Errorf("without a role: %s %s", c, m)
		}
		target.RoleARN = aws.String("arn:aws:iam::111122223333:role/asg-notify")
		if err := put(target); err != nil {
			t.Fatal(err)
		}
		var test map[string]string
		if bodies := w.bodies("q"); len(bodies) != 1 || json.Unmarshal([]byte(bodies[0]), &test) != nil {
			t.Fatalf("messages %q", bodies)
		}
		if test["Event"] != "autoscaling:TEST_NOTIFICATION" || test["AutoScalingGroupName"] != "web-asg" || test["AccountId"] != "111122223333" || test["Service"] != "AWS Auto Scaling" || test["Time"] == "" || test["RequestId"] == "" || test["LifecycleTransition"] != "" || len(test) != 7 {
			t.Errorf("test message %v", test)
		}
		if h := list("two", "three"); len(h) != 1 || *h[0].HeartbeatTimeout != 3600 || *h[0].GlobalTimeout != 172800 || *h[0].RoleARN == "" || *h[0].NotificationMetadata != "tier=web" {
			t.Errorf("hook %+v", h)
		}
		gone := &autoscaling.PutLifecycleHookInput{LifecycleHookName: aws.String("two"), NotificationTargetARN: aws.String("arn:aws:sqs:eu-west-1:111122223333:nowhere")}
		if c, m := refusal(put(gone)); c != "ValidationError" || !strings.HasPrefix(m, "Unable to publish test message") {
			t.Errorf("no such queue: %s %s", c, m)
		}

		// Changing a hook leaves out what the call does not say.
		_, tokens := w.leave()
		if err := put(&autoscaling.PutLifecycleHookInput{LifecycleHookName: aws.String("two"), HeartbeatTimeout: aws.Int32(30), DefaultResult: aws.String("CONTINUE")}); err != nil {
			t.Fatal(err)
		}
		if h := list("two")[0]; *h.HeartbeatTimeout != 30 || *h.DefaultResult != "CONTINUE" || *h.NotificationMetadata != "tier=web" || h.NotificationTargetARN == nil {
			t.Errorf("hook %+v", h)
		}
		if a := w.action(tokens[1]); a.Deadline.Sub(a.Started) != time.Hour {
			t.Errorf("the action that waits already: %+v", a)
		}
		if err := put(&autoscaling.PutLifecycleHookInput{LifecycleHookName: aws.String("two"), NotificationTargetARN: aws.String("")}); err != nil {
			t.Fatal(err)
		}
		if h := list("two")[0]; h.NotificationTargetARN != nil {
			t.Errorf("hook %+v", h)
		}

		// Deleting one completes what waits for it.
		remove := func(name string) error {
			_, err := w.scaling().DeleteLifecycleHook(w.t.Context(), &autoscaling.DeleteLifecycleHookInput{AutoScalingGroupName: aws.String("web-asg"), LifecycleHookName: &name})
			return err
		}
		if err := remove("two"); err != nil {
			t.Fatal(err)
		}
		if a := w.action(tokens[1]); a.Status != "Completed" || a.Result != "CONTINUE" {
			t.Errorf("its action: %+v", a)
		}
		w.wantStates("Terminating:Wait InService")
		if err := remove("usher-drain"); err != nil {
			t.Fatal(err)
		}
		w.wantStates("InService")
		if c, _ := refusal(remove("usher-drain")); c != "ValidationError" || len(list()) != 0 {
			t.Errorf("twice: %s", c)
		}
		for i := range maxAWSHooks {
			if err := put(&autoscaling.PutLifecycleHookInput{LifecycleHookName: aws.String(fmt.Sprintf("h-%d", i)), LifecycleTransition: aws.String("autoscaling:EC2_INSTANCE_LAUNCHING")}); err != nil {
				t.Fatal(err)
			}
		}
		if c, _ := refusal(put(&autoscaling.PutLifecycleHookInput{LifecycleHookName: aws.String("more"), LifecycleTransition: aws.String("autoscaling:EC2_INSTANCE_LAUNCHING")})); c != "LimitExceeded" {
			t.Errorf("the 51st: %s", c)
		}
	})
}

// Bad input, as no client of the vendor's would send it.
func TestAWSScalingBadInput(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: asg(1, draining(time.Minute))}, func(w awsWorld) {
		const token = "3d9c1f7e-52b8-4a06-9e41-7c0d5b2a6f18"
		action := func(pairs ...string) []string {
			return append([]string{"AutoScalingGroupName", "web-asg", "LifecycleHookName", "usher-drain"}, pairs...)
		}
		for _, c := range []struct {
			status        int
			code, text    string
			call          string
			parameters    []string
			isNotAnAction bool
		}{
			{status: 400, code: "ValidationError", text: "No active Lifecycle Action found with token " + token, call: "CompleteLifecycleAction", parameters: action("LifecycleActionToken", token, "LifecycleActionResult", "CONTINUE")},
			{status: 400, code: "ValidationError", text: "No active Lifecycle Action found with instance ID i-0aa11bb22cc33dd44", call: "RecordLifecycleActionHeartbeat", parameters: action("InstanceId", "i-0aa11bb22cc33dd44")},
			{status: 400, code: "ValidationError", text: "at &#39;lifecycleActionResult&#39;", call: "CompleteLifecycleAction", parameters: action("LifecycleActionToken", token)},
			{status: 400, code: "ValidationError", text: "ROLLBACK", call: "CompleteLifecycleAction", parameters: action("LifecycleActionToken", token, "LifecycleActionResult", "ROLLBACK")},
			{status: 400, code: "ValidationError", text: "greater than or equal to 36", call: "RecordLifecycleActionHeartbeat", parameters: action("LifecycleActionToken", token[:35])},
			{status: 400, code: "ValidationError", text: "less than or equal to 36", call: "RecordLifecycleActionHeartbeat", parameters: action("LifecycleActionToken", token+"0")},
			{status: 400, code: "ValidationError", text: "less than or equal to 19", call: "RecordLifecycleActionHeartbeat", parameters: action("InstanceId", "i-0aa11bb22cc33dd440")},
			{status: 400, code: "ValidationError", text: "either LifecycleActionToken or InstanceId", call: "RecordLifecycleActionHeartbeat", parameters: action()},
			{status: 400, code: "ValidationError", text: "Value null at &#39;lifecycleHookName&#39;", call: "RecordLifecycleActionHeartbeat", parameters: []string{"AutoScalingGroupName", "web-asg", "LifecycleActionToken", token}},
			{status: 400, code: "ValidationError", text: "Value null at &#39;autoScalingGroupName&#39;", call: "DescribeLifecycleHooks"},
			{status: 400, code: "ValidationError", text: "&#39;nobody&#39; not found", call: "DescribeLifecycleHooks", parameters: []string{"AutoScalingGroupName", "nobody"}},
			{status: 400, code: "ValidationError", text: "&#39;nohook&#39; not found", call: "RecordLifecycleActionHeartbeat", parameters: []string{"AutoScalingGroupName", "web-asg", "LifecycleHookName", "nohook", "LifecycleActionToken", token}},
			{status: 400, code: "ValidationError", text: "greater than or equal to 30", call: "PutLifecycleHook", parameters: action("HeartbeatTimeout", "29")},
			{status: 400, code: "ValidationError", text: "less than or equal to 7200", call: "PutLifecycleHook", parameters: action("HeartbeatTimeout", "7201")},
			{status: 400, code: "MalformedInput", text: "HeartbeatTimeout", call: "PutLifecycleHook", parameters: action("HeartbeatTimeout", "x")},
			{status: 400, code: "ValidationError", text: "Default Result", call: "PutLifecycleHook", parameters: action("DefaultResult", "ROLLBACK")},
			{status: 400, code: "ValidationError", text: "Lifecycle Transition", call: "PutLifecycleHook", parameters: action("LifecycleTransition", "x")},
			{status: 400, code: "ValidationError", text: "notificationMetadata", call: "PutLifecycleHook", parameters: action("NotificationMetadata", "größe")},
			{status: 400, code: "ValidationError", text: "lifecycleHookName", call: "PutLifecycleHook", parameters: []string{"AutoScalingGroupName", "web-asg", "LifecycleHookName", "a.b"}},
			{status: 400, code: "ValidationError", text: "less than or equal to 50", call: "DescribeAutoScalingInstances", parameters: []string{"MaxRecords", "51"}},
			{status: 400, code: "MalformedInput", text: "MaxRecords", call: "DescribeAutoScalingInstances", parameters: []string{"MaxRecords", "-"}},
			{status: 400, code: "InvalidNextToken", text: "x", call: "DescribeAutoScalingInstances", parameters: []string{"NextToken", "x"}},
			{status: 400, code: "InvalidNextToken", text: "MTAw", call: "DescribeAutoScalingGroups", parameters: []string{"NextToken", "MTAw"}},
			{status: 400, code: "ValidationError", text: "desiredCapacity", call: "SetDesiredCapacity", parameters: []string{"AutoScalingGroupName", "web-asg"}},
			{status: 400, code: "ValidationError", text: "shouldDecrementDesiredCapacity", call: "TerminateInstanceInAutoScalingGroup", parameters: []string{"InstanceId", "i-0aa11bb22cc33dd44"}},
			{status: 400, code: "MalformedInput", text: "ShouldDecrementDesiredCapacity", call: "TerminateInstanceInAutoScalingGroup", parameters: []string{"InstanceId", "i-0aa11bb22cc33dd44", "ShouldDecrementDesiredCapacity", "perhaps"}},
			{status: 400, code: "ValidationError", text: "instanceId", call: "TerminateInstanceInAutoScalingGroup", parameters: []string{"ShouldDecrementDesiredCapacity", "true"}},
			{status: 400, code: "InvalidAction", text: "DetachInstances", call: "DetachInstances"},
		} {
			r := w.query("autoscaling", c.call, c.parameters...)
			if r.status != c.status || !strings.Contains(r.body, "<Code>"+c.code+"</Code>") || !strings.Contains(r.body, c.text) || !strings.Contains(r.body, "<Type>Sender</Type>") {
				t.Errorf("%s %v: status %d %s\nwant %d %s %q", c.call, c.parameters, r.status, r.body, c.status, c.code, c.text)
			}
		}
		ids := []string{}
		for i := range 51 {
			ids = append(ids, fmt.Sprintf("InstanceIds.member.%d", i+1), fmt.Sprintf("i-0aa11bb22cc33dd%02d", i))
		}
		w.refusedWith(w.query("autoscaling", "DescribeAutoScalingInstances", ids...), 400, "ValidationError")
		if r := w.query("autoscaling", "DescribeAutoScalingInstances", ids[:100]...); r.status != 200 || !strings.Contains(r.body, "<AutoScalingInstances></AutoScalingInstances>") {
			t.Errorf("fifty: %d %s", r.status, r.body)
		}
		if r := w.query("autoscaling", "SetDesiredCapacity", "AutoScalingGroupName", "web-asg", "DesiredCapacity", "1"); r.status != 200 || strings.Contains(r.body, "Result") {
			t.Errorf("it has no result: %d %s", r.status, r.body)
		}
	})
}

// A policy may name the groups whose actions may be completed.
func TestAWSScalingPolicy(t *testing.T) {
	t.Parallel()
	sc := asg(1, draining(time.Minute))
	sc.ScalingGroups = append(sc.ScalingGroups, GroupConfig{ID: "other-asg", Instances: 1, Hooks: []HookConfig{{ID: "usher-drain", Transition: scaleIn}}})
	sc.Policy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["autoscaling:CompleteLifecycleAction","autoscaling:RecordLifecycleActionHeartbeat"],
		"Resource":"arn:aws:autoscaling:eu-west-1:111122223333:autoScalingGroup:*:autoScalingGroupName/web-*"},
		{"Effect":"Allow","Action":"autoscaling:DescribeAutoScalingInstances","Resource":"*"}]}`
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		_, tokens := w.leave()
		w.mustComplete("usher-drain", tokens[0], "CONTINUE")
		other, err := w.ScaleIn("other-asg", 1)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.scaling().CompleteLifecycleAction(w.t.Context(), &autoscaling.CompleteLifecycleActionInput{
			AutoScalingGroupName: aws.String("other-asg"), LifecycleHookName: aws.String("usher-drain"), LifecycleActionToken: &other.Tokens[0], LifecycleActionResult: aws.String("CONTINUE"),
		})
		if c, m := refusal(err); c != "AccessDenied" || !strings.Contains(m, "autoscaling:CompleteLifecycleAction") || !strings.Contains(m, "autoScalingGroupName/other-asg") {
			t.Errorf("the other group: %s %s", c, m)
		}
		if w.action(other.Tokens[0]).Status != "Pending" {
			t.Error("the refused call had an effect")
		}
		if _, err := w.scaling().DescribeAutoScalingInstances(w.t.Context(), &autoscaling.DescribeAutoScalingInstancesInput{}); err != nil {
			t.Error(err)
		}
		_, err = w.scaling().DescribeLifecycleHooks(w.t.Context(), &autoscaling.DescribeLifecycleHooksInput{AutoScalingGroupName: aws.String("web-asg")})
		if c, _ := refusal(err); c != "AccessDenied" {
			t.Errorf("not allowed: %s", c)
		}
	})
}

// An instance that is taken from outside ends what waits for it.
func TestAWSInstanceLost(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: asg(3, draining(time.Minute), warming(time.Minute))}, func(w awsWorld) {
		id, tokens := w.leave()
		if err := w.Terminate(id); err != nil {
			t.Fatal(err)
		}
		w.over(w.tryComplete("usher-drain", tokens[0], "", "CONTINUE"))
		if a := w.action(tokens[0]); a.EndedBy != "instance" || a.Completed == nil {
			t.Errorf("action %+v", a)
		}
		act, err := w.ScaleOut("web-asg", 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Terminate(act.Instances[0]); err != nil {
			t.Fatal(err)
		}
		w.over(w.tryBeat("usher-warm", act.Tokens[0], ""))
		time.Sleep(time.Hour)
		w.wantStates("InService InService")
		groups, err := w.scaling().DescribeAutoScalingGroups(w.t.Context(), &autoscaling.DescribeAutoScalingGroupsInput{})
		if err != nil || *groups.AutoScalingGroups[0].DesiredCapacity != 2 {
			t.Errorf("%+v, %v", groups, err)
		}
	})
}

// bodies receives all messages of a queue and deletes them, in the order in which they come.
func (w awsWorld) bodies(name string) []string {
	w.t.Helper()
	var out []string
	q := w.queue(name)
	for {
		got := q.receive(0, 60)
		if len(got) == 0 {
			return out
		}
		for _, m := range got {
			out = append(out, *m.Body)
			if _, err := q.DeleteMessage(w.t.Context(), &sqs.DeleteMessageInput{QueueUrl: q.url, ReceiptHandle: m.ReceiptHandle}); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// FuzzAWSScaling calls the operations with any form: what they answer is well-formed, and a
// refusal blames the sender in words.
func FuzzAWSScaling(f *testing.F) {
	for name := range autoscalingOperations {
		f.Add(name, "AutoScalingGroupName=web-asg&LifecycleHookName=usher-drain&LifecycleActionResult=CONTINUE&InstanceIds.member.1=i-1&MaxRecords=2&NextToken=MQ%3D%3D")
		f.Add(name, "AutoScalingGroupName=web-asg&DesiredCapacity=1&HonorCooldown=true&HeartbeatTimeout=30&DefaultResult=ABANDON&ShouldDecrementDesiredCapacity=false")
	}
	f.Add("DescribeInstances", "Filter.1.Name=tag:x&Filter.1.Value.1=%5B&MaxResults=5&NextToken=MA==")
	f.Fuzz(func(t *testing.T, action, form string) {
		values, err := url.ParseQuery(form)
		if err != nil {
			return
		}
		s, err := New(Options{AccessKeyID: testKey, AccessKeySecret: testSecret, Scenario: asg(2, draining(time.Minute)), NoServers: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		act, err := s.ScaleIn("web-asg", 1)
		if err != nil {
			t.Fatal(err)
		}
		values.Set("LifecycleActionToken", act.Tokens[0])
		c := &awsCall{ctx: t.Context(), action: action, form: values, requestID: "r-1"}
		c.name, c.service = "autoscaling", awsServices["autoscaling"]
		op := autoscalingOperations[action]
		if action == "DescribeInstances" {
			c.name, c.service, c.protocol = "ec2", awsServices["ec2"], awsEC2
			op = ec2Operations[action]
		}
		if op == nil {
			return
		}
		answer, bad := op(s, c)
		res := c.success(answer)
		if bad != nil {
			if bad.status != 400 || bad.code == "" || bad.message == "" {
				t.Errorf("refused with %+v", bad)
			}
			res = c.failure(bad)
		}
		var doc struct{ XMLName xml.Name }
		if err := xml.Unmarshal(res.body, &doc); err != nil {
			t.Errorf("%v: %q", err, res.body)
		}
	})
}
