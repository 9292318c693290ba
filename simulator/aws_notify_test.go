package simulator

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// keys lists an object's keys.
func keys(o map[string]any) string { return strings.Join(slices.Sorted(maps.Keys(o)), " ") }

const (
	hookKeys  = "AccountId AutoScalingGroupName Destination EC2InstanceId LifecycleActionToken LifecycleHookName LifecycleTransition NotificationMetadata Origin RequestId Service Time"
	hookInner = "AutoScalingGroupName Destination EC2InstanceId LifecycleActionToken LifecycleHookName LifecycleTransition NotificationMetadata Origin"
	busKeys   = "account detail detail-type id region resources source time version"
	snsKeys   = "Message MessageId Signature SignatureVersion SigningCertURL Subject Timestamp TopicArn Type UnsubscribeURL"
)

// checkHookMessage checks what tells of a lifecycle action, without what differs by the way.
func checkHookMessage(t *testing.T, o map[string]any, id, token string) {
	t.Helper()
	want := map[string]any{
		"Origin": "AutoScalingGroup", "Destination": "EC2", "LifecycleHookName": "usher-drain", "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
		"AutoScalingGroupName": "web-asg", "EC2InstanceId": id, "NotificationMetadata": `{"tier":"web"}`, "LifecycleActionToken": token,
	}
	for key, v := range want {
		if o[key] != v {
			t.Errorf("%s is %v, want %v", key, o[key], v)
		}
	}
}

func TestAWSHookDeliveries(t *testing.T) {
	t.Parallel()
	direct := func(t *testing.T, body, id, token string) {
		o := decode(t, body)
		checkHookMessage(t, o, id, token)
		if keys(o) != hookKeys || o["AccountId"] != "111122223333" || o["Service"] != "AWS Auto Scaling" || o["RequestId"] == token {
			t.Errorf("message %v", o)
		}
		if at, err := time.Parse("2006-01-02T15:04:05.000Z", o["Time"].(string)); err != nil || !at.Equal(time.Now()) {
			t.Errorf("time %v", o["Time"])
		}
	}
	enveloped := func(t *testing.T, body, id, token string) {
		o := decode(t, body)
		if keys(o) != snsKeys || o["Type"] != "Notification" || o["TopicArn"] != "arn:aws:sns:eu-west-1:111122223333:q-topic" ||
			o["Subject"] != "Auto Scaling:  Lifecycle action 'TERMINATING' for instance "+id+" in progress." {
			t.Errorf("envelope %v", o)
		}
		direct(t, o["Message"].(string), id, token)
	}
	bus := func(t *testing.T, body, id, token string) {
		o := decode(t, body)
		if keys(o) != busKeys || o["version"] != "0" || o["detail-type"] != "EC2 Instance-terminate Lifecycle Action" || o["source"] != "aws.autoscaling" ||
			o["account"] != "111122223333" || o["region"] != "eu-west-1" || o["time"] != time.Now().UTC().Format(time.RFC3339) {
			t.Errorf("event %v", o)
		}
		arn := o["resources"].([]any)[0].(string)
		if !strings.HasPrefix(arn, "arn:aws:autoscaling:eu-west-1:111122223333:autoScalingGroup:") || !strings.HasSuffix(arn, ":autoScalingGroupName/web-asg") {
			t.Errorf("resource %s", arn)
		}
		detail := o["detail"].(map[string]any)
		if keys(detail) != hookInner {
			t.Errorf("detail %v", detail)
		}
		checkHookMessage(t, detail, id, token)
	}
	for delivery, want := range map[string][]func(t *testing.T, body, id, token string){
		"": {direct}, "direct": {direct}, "sns": {enveloped}, "sns_raw": {direct}, "eventbridge": {bus}, "both": {direct, bus},
	} {
		t.Run(delivery, func(t *testing.T) {
			t.Parallel()
			h := draining(time.Minute)
			h.Metadata, h.Delivery = `{"tier":"web"}`, delivery
			bubbleAWS(t, Options{Scenario: asg(1, h)}, func(w awsWorld) {
				id, tokens := w.leave()
				got := w.bodies("q")
				if len(got) != len(want) {
					t.Fatalf("messages %q", got)
				}
				for i, check := range want {
					check(t, got[i], id, tokens[0])
				}
				for _, e := range w.Events() {
					if e.Type == MessageSent && (e.Token != tokens[0] || e.Hook != "usher-drain" || e.Group != "web-asg") {
						t.Errorf("event %+v", e)
					}
				}
			})
		})
	}
}

// A hook without metadata sends none, and a launching one tells where the instance comes from.
func TestAWSLaunchMessage(t *testing.T) {
	t.Parallel()
	h := warming(time.Minute)
	h.Delivery = "both"
	bubbleAWS(t, Options{Scenario: asg(0, h)}, func(w awsWorld) {
		act, err := w.ScaleOut("web-asg", 1)
		if err != nil {
			t.Fatal(err)
		}
		got := w.bodies("q")
		for i, o := range []map[string]any{decode(t, got[0]), decode(t, got[1])["detail"].(map[string]any)} {
			_, has := o["NotificationMetadata"]
			if has || o["Origin"] != "EC2" || o["Destination"] != "AutoScalingGroup" || o["LifecycleTransition"] != "autoscaling:EC2_INSTANCE_LAUNCHING" || o["LifecycleActionToken"] != act.Tokens[0] {
				t.Errorf("message %d: %v", i, o)
			}
		}
		if o := decode(t, got[1]); o["detail-type"] != "EC2 Instance-launch Lifecycle Action" {
			t.Errorf("event %v", o)
		}
	})
}

// What the cloud sends itself is doubled and comes late as faults and scenario say.
func TestAWSDuplicateAndLateMessages(t *testing.T) {
	t.Parallel()
	h := draining(time.Hour)
	h.Delivery = "both"
	sc := asg(3, h)
	sc.EventBridge.Delay = time.Minute
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		if _, err := w.InjectFault(Fault{Service: "sqs", Action: "SendMessage", Kind: FaultDuplicate, Count: 1}); err != nil {
			t.Fatal(err)
		}
		_, first := w.leave()
		time.Sleep(30 * time.Second)
		_, second := w.leave()
		time.Sleep(61 * time.Second)
		var got []string
		for _, body := range w.bodies("q") {
			o := decode(t, body)
			if detail, isEvent := o["detail"].(map[string]any); isEvent {
				o = detail
			}
			got = append(got, o["LifecycleActionToken"].(string))
		}
		// The direct message twice, the second action's, then the events of both.
		if want := []string{first[0], first[0], second[0], first[0], second[0]}; !slices.Equal(got, want) {
			t.Errorf("tokens %v, want %v", got, want)
		}
	})
}

func TestAWSGroupNotifications(t *testing.T) {
	t.Parallel()
	t.Run("topic", func(t *testing.T) {
		t.Parallel()
		sc := asg(1)
		sc.ScalingGroups[0].Events = "queue/q"
		bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
			id, _ := w.leave()
			got := w.bodies("q")
			if len(got) != 1 {
				t.Fatalf("messages %q", got)
			}
			o := decode(t, got[0])
			inner := decode(t, o["Message"].(string))
			if _, token := inner["LifecycleActionToken"]; token || o["Subject"] != `Auto Scaling: termination for group "web-asg"` || inner["Event"] != "autoscaling:EC2_INSTANCE_TERMINATE" || inner["EC2InstanceId"] != id || inner["StatusCode"] != "Successful" {
				t.Errorf("message %v in %v", inner, o)
			}
		})
	})
	t.Run("bus", func(t *testing.T) {
		t.Parallel()
		sc := asg(0, warming(time.Minute))
		sc.Queues = append(sc.Queues, QueueConfig{Name: "events"})
		sc.EventBridge.Queue, sc.ScalingGroups[0].Events = "events", targetEventBus
		bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
			act, err := w.ScaleOut("web-asg", 2)
			if err != nil {
				t.Fatal(err)
			}
			w.mustComplete("usher-warm", act.Tokens[0], "CONTINUE")
			w.mustComplete("usher-warm", act.Tokens[1], "ABANDON")
			var types []string
			for _, body := range w.bodies("events") {
				o := decode(t, body)
				types = append(types, fmt.Sprint(o["detail-type"], " ", o["detail"].(map[string]any)["StatusCode"]))
			}
			if want := []string{"EC2 Instance Launch Successful Successful", "EC2 Instance Launch Unsuccessful Cancelled"}; !slices.Equal(types, want) {
				t.Errorf("events %q, want %q", types, want)
			}
		})
	})
}

func TestAWSCloudEvents(t *testing.T) {
	t.Parallel()
	sc := asg(3, draining(time.Hour))
	sc.Queues = append(sc.Queues, QueueConfig{Name: "events"})
	sc.EventBridge.Queue = "events"
	sc.ScalingGroups[0].Tags = map[string]string{"app": "web"}
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		g, _ := w.State().Group("web-asg")
		a, b := g.Instances[0].ID, g.Instances[1].ID
		start := time.Now().Add(72 * time.Hour).UTC()
		date := start.Format(http.TimeFormat)
		zone, plain := `["arn:aws:ec2:eu-west-1a:instance/`+a+`"]`, `["arn:aws:ec2:eu-west-1:111122223333:instance/`+a+`"]`
		for _, c := range []struct {
			event                                  CloudEvent
			messages                               int
			detailType, source, resources, details string // details that must be there, as JSON
		}{
			{CloudEvent{Event: "rebalance_recommendation", Instances: []string{a, b}}, 2, "EC2 Instance Rebalance Recommendation", "aws.ec2", plain, `{"instance-id":"` + a + `"}`},
			{CloudEvent{Event: "state_change", Instances: []string{a}}, 1, "EC2 Instance State-change Notification", "aws.ec2", plain, `{"instance-id":"` + a + `","state":"shutting-down"}`},
			{CloudEvent{Event: "state_change", State: "stopping", Instances: []string{a}}, 1, "EC2 Instance State-change Notification", "aws.ec2", plain, `{"instance-id":"` + a + `","state":"stopping"}`},
			{CloudEvent{Event: "capacity_reservation_interruption", Instances: []string{a}}, 1, "EC2 Capacity Reservation Instance Interruption Warning", "aws.ec2", zone, `{"instance-action":"terminate","instance-id":"` + a + `"}`},
			{CloudEvent{Event: "scheduled_change", Start: start, Instances: []string{a, b}}, 1, "AWS Health Event", "aws.health", `["` + a + `","` + b + `"]`,
				`{"service":"EC2","eventTypeCategory":"scheduledChange","eventTypeCode":"AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED","eventScopeCode":"ACCOUNT_SPECIFIC","statusCode":"upcoming","eventRegion":"eu-west-1","page":"1","totalPages":"1","affectedAccount":"111122223333","startTime":"` + date + `","endTime":"` + date + `","affectedEntities":[{"entityValue":"` + a + `","tags":{"app":"web"}},{"entityValue":"` + b + `","tags":{"app":"web"}}]}`},
			{CloudEvent{Event: "launch_successful", Instances: []string{a}}, 1, "EC2 Instance Launch Successful", "aws.autoscaling", "", `{"AutoScalingGroupName":"web-asg","EC2InstanceId":"` + a + `"}`},
			{CloudEvent{Event: "instance_refresh", Instances: []string{a}, Queue: "q"}, 1, "EC2 Auto Scaling Instance Refresh Started", "aws.autoscaling", "", `{}`},
			{CloudEvent{Event: "spot_interruption", Action: "stop", Instances: []string{a}}, 1, "EC2 Spot Instance Interruption Warning", "aws.ec2", zone, `{"instance-action":"stop","instance-id":"` + a + `"}`},
			{CloudEvent{Event: "spot_interruption", Instances: []string{a}}, 1, "EC2 Spot Instance Interruption Warning", "aws.ec2", zone, `{"instance-action":"terminate","instance-id":"` + a + `"}`},
		} {
			ids, err := w.SendCloudEvent(c.event)
			if err != nil || len(ids) != c.messages {
				t.Fatalf("%+v: %v, %v", c.event, ids, err)
			}
			queue := "events"
			if c.event.Queue != "" {
				queue = c.event.Queue
			}
			got := w.bodies(queue)
			if len(got) != c.messages {
				t.Fatalf("%s: %q", c.event.Event, got)
			}
			o := decode(t, got[0])
			if keys(o) != busKeys || o["id"] != ids[0] || o["detail-type"] != c.detailType || o["source"] != c.source {
				t.Errorf("event %v", o)
			}
			if res, _ := json.Marshal(o["resources"]); c.resources != "" && string(res) != c.resources {
				t.Errorf("%s: resources %s, want %s", c.event.Event, res, c.resources)
			}
			detail := o["detail"].(map[string]any)
			for key, want := range decode(t, c.details) {
				if fmt.Sprint(detail[key]) != fmt.Sprint(want) {
					t.Errorf("%s: %s is %v, want %v", c.event.Event, key, detail[key], want)
				}
			}
		}

		// The interrupted instance is taken after two minutes, whatever waits for it.
		out, _ := w.leave()
		if out != a {
			t.Fatalf("%s leaves, not %s", out, a)
		}
		time.Sleep(2*time.Minute - time.Millisecond)
		w.wantStates("Terminating:Wait InService InService")
		time.Sleep(2 * time.Millisecond)
		w.wantStates("InService InService")
		w.over(w.tryBeat("usher-drain", "", a))
		if at := len(w.types(ActionCancelled)); at != 1 {
			t.Errorf("%d actions were cancelled", at)
		}
	})
}

func TestAWSCloudEventRefused(t *testing.T) {
	t.Parallel()
	sc := asg(1)
	sc.EventBridge.Queue = "q"
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		g, _ := w.State().Group("web-asg")
		id := g.Instances[0].ID
		for body, want := range map[string]int{
			`{"event": "spot_interruption", "instances": ["` + id + `"]}`:                                  201,
			`{"event": "scheduled_change", "start": "2026-10-05T15:10:09Z", "instances": ["` + id + `"]}`:  201,
			`{"event": "thunder", "instances": ["` + id + `"]}`:                                            400,
			`{"event": "spot_interruption"}`:                                                               400,
			`{"event": "spot_interruption", "action": "reboot", "instances": ["` + id + `"]}`:              400,
			`{"event": "rebalance_recommendation", "action": "stop", "instances": ["` + id + `"]}`:         400,
			`{"event": "state_change", "state": "asleep", "instances": ["` + id + `"]}`:                    400,
			`{"event": "spot_interruption", "state": "running", "instances": ["` + id + `"]}`:              400,
			`{"event": "spot_interruption", "start": "2026-10-05T15:10:09Z", "instances": ["` + id + `"]}`: 400,
			`{"event": "spot_interruption", "instances": ["i-0aa11bb22cc33dd44"]}`:                         404,
			`{"event": "spot_interruption", "queue": "nowhere", "instances": ["` + id + `"]}`:              404,
			`{"event": "spot_interruption", "instances": ["` + id + `"], "colour": "red"}`:                 400,
		} {
			req, err := http.NewRequest("POST", w.base+"/simulator/cloud-events", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r := w.sent(req)
			if r.status != want || (want == 201) != strings.Contains(r.body, `"ids":["`) {
				t.Errorf("%s: %d %s, want %d", body, r.status, r.body, want)
			}
		}
	})
	bubble(t, Options{Scenario: oneGroup(1)}, func(w *world) {
		g, _ := w.State().Group("asg-1")
		if _, err := w.SendCloudEvent(CloudEvent{Event: "spot_interruption", Queue: "q", Instances: []string{g.Instances[0].ID}}); err == nil || !strings.Contains(err.Error(), "alibaba") {
			t.Errorf("on the other cloud: %v", err)
		}
	})
}

// The scenario's own events come in their time, and the state changes of all instances if so told.
func TestAWSScenarioEvents(t *testing.T) {
	t.Parallel()
	sc := asg(2)
	sc.EventBridge.Queue, sc.EventBridge.StateChanges = "q", true
	sc.CloudEvents = []CloudEventConfig{{After: time.Minute, Event: "spot_interruption", Group: "web-asg", Count: 1}}
	sc.Timings.Boot = 10 * time.Second
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		g, _ := w.State().Group("web-asg")
		time.Sleep(30 * time.Second)
		act, err := w.ScaleOut("web-asg", 1)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Minute)
		old, fresh := g.Instances[0].ID, act.Instances[0]
		var got []string
		for _, body := range w.bodies("q") {
			o := decode(t, body)
			detail := o["detail"].(map[string]any)
			what := detail["state"]
			if what == nil {
				what = o["detail-type"]
			}
			got = append(got, fmt.Sprint(map[any]string{old: "old", fresh: "new"}[detail["instance-id"]], " ", what))
		}
		want := []string{"new pending", "new running", "old EC2 Spot Instance Interruption Warning", "old shutting-down", "old terminated"}
		if !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
	})
}

func TestAWSWarmPool(t *testing.T) {
	t.Parallel()
	sc := asg(1, draining(time.Minute), warming(time.Minute))
	sc.ScalingGroups[0].WarmPool = WarmPoolConfig{Size: 1, Reuse: true}
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		// told gives what a message says of the way, by instance.
		told := func() map[string]string {
			out := map[string]string{}
			for _, body := range w.bodies("q") {
				o := decode(t, body)
				out[o["EC2InstanceId"].(string)] = fmt.Sprint(o["LifecycleTransition"], " ", o["Origin"], ">", o["Destination"])
			}
			return out
		}
		w.wantStates("InService Warmed:Stopped")
		g, _ := w.State().Group("web-asg")
		first, warm := g.Instances[0].ID, g.Instances[1].ID

		// Out of the pool into service; the pool is filled again.
		act, err := w.ScaleOut("web-asg", 1)
		if err != nil || act.Instances[0] != warm {
			t.Fatalf("%+v, %v", act, err)
		}
		w.wantStates("InService Pending:Wait Warmed:Pending:Wait")
		g, _ = w.State().Group("web-asg")
		filler := g.Instances[2].ID
		want := map[string]string{
			warm: "autoscaling:EC2_INSTANCE_LAUNCHING WarmPool>AutoScalingGroup", filler: "autoscaling:EC2_INSTANCE_LAUNCHING EC2>WarmPool",
		}
		if got := told(); !maps.Equal(got, want) {
			t.Errorf("told %v, want %v", got, want)
		}
		for _, id := range []string{warm, filler} {
			if err := w.tryComplete("usher-warm", "", id, "CONTINUE"); err != nil {
				t.Fatal(err)
			}
		}
		w.wantStates("InService InService Warmed:Stopped")
		if got, want := w.trail(filler), "Pending Warmed:Pending Warmed:Pending:Wait Warmed:Pending:Proceed Warmed:Stopped"; got != want {
			t.Errorf("went %s, want %s", got, want)
		}

		// Out of service back into the pool.
		id, tokens := w.leave()
		if id != first {
			t.Fatalf("%s leaves", id)
		}
		if got := told()[id]; got != "autoscaling:EC2_INSTANCE_TERMINATING AutoScalingGroup>WarmPool" {
			t.Errorf("told %s", got)
		}
		w.wantStates("Warmed:Pending:Wait InService Warmed:Stopped")
		w.mustComplete("usher-drain", tokens[0], "CONTINUE")
		w.wantStates("Warmed:Stopped InService Warmed:Stopped")

		// Out of the pool for good.
		r := w.query("autoscaling", "TerminateInstanceInAutoScalingGroup", "InstanceId", filler, "ShouldDecrementDesiredCapacity", "true")
		if r.status != 200 || told()[filler] != "autoscaling:EC2_INSTANCE_TERMINATING WarmPool>EC2" {
			t.Errorf("%d %s", r.status, r.body)
		}
		w.wantStates("Warmed:Stopped InService Warmed:Terminating:Wait")
		if err := w.tryComplete("usher-drain", "", filler, "CONTINUE"); err != nil {
			t.Fatal(err)
		}
		w.wantStates("Warmed:Stopped InService")

		// The group does not list them, but the call for single instances does.
		if r := w.query("autoscaling", "DescribeAutoScalingGroups"); strings.Contains(r.body, first) || !strings.Contains(r.body, "<WarmPoolSize>1</WarmPoolSize>") || !strings.Contains(r.body, "<DesiredCapacity>1</DesiredCapacity>") {
			t.Errorf("groups %s", r.body)
		}
		if r := w.query("autoscaling", "DescribeAutoScalingInstances", "InstanceIds.member.1", first); !strings.Contains(r.body, "<LifecycleState>Warmed:Stopped</LifecycleState>") {
			t.Errorf("instance %s", r.body)
		}
		if r := w.query("ec2", "DescribeInstances", "InstanceId.1", first); !strings.Contains(r.body, "<code>80</code><name>stopped</name>") {
			t.Errorf("instance %s", r.body)
		}
		// One of which nothing came in the end.
		id, tokens = w.leave()
		w.mustComplete("usher-drain", tokens[0], "ABANDON")
		w.wantStates("Warmed:Stopped")
		if got := w.trail(id); !strings.HasSuffix(got, "Warmed:Pending:Wait Warmed:Terminating:Proceed Released") {
			t.Errorf("went %s", got)
		}
	})
}

// Hooks of attached balancers' instances fire when their draining is over; those of others at once.
func TestAWSDrainingComesBeforeTheHooks(t *testing.T) {
	t.Parallel()
	for _, unattached := range []bool{false, true} {
		t.Run(fmt.Sprint(unattached), func(t *testing.T) {
			t.Parallel()
			sc := asg(2, draining(time.Hour), warming(time.Hour))
			sc.Balancers = []BalancerConfig{{ID: "alb", Type: typeApplication, ServerGroups: []ServerGroupConfig{{ID: "tg", ConnectionDrainTimeout: 5 * time.Minute}}}}
			sc.ScalingGroups[0].Balancers = nil
			sc.ScalingGroups[0].ServerGroups = []MembershipConfig{{ID: "tg", Unattached: unattached}}
			bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
				act, err := w.ScaleIn("web-asg", 1)
				if err != nil {
					t.Fatal(err)
				}
				if unattached {
					w.wantStates("Terminating:Wait InService")
					if m := w.State().Members(act.Instances[0]); len(m) != 1 || !m[0].InService {
						t.Errorf("members %+v", m)
					}
					return
				}
				time.Sleep(5*time.Minute - time.Millisecond)
				w.wantStates("Terminating InService")
				if got := w.bodies("q"); len(got) != 0 {
					t.Errorf("messages %q", got)
				}
				time.Sleep(2 * time.Millisecond)
				w.wantStates("Terminating:Wait InService")
				if got := w.bodies("q"); len(got) != 1 {
					t.Errorf("messages %q", got)
				}
				out, err := w.ScaleOut("web-asg", 1)
				if err != nil {
					t.Fatal(err)
				}
				if m := w.State().Members(out.Instances[0]); len(m) != 0 {
					t.Errorf("it has joined before its hook's end: %+v", m)
				}
				w.mustComplete("usher-warm", out.Tokens[0], "CONTINUE")
				if m := w.State().Members(out.Instances[0]); len(m) != 1 {
					t.Errorf("members %+v", m)
				}
				r := w.query("autoscaling", "DescribeAutoScalingGroups")
				if !strings.Contains(r.body, "<TargetGroupARNs><member>arn:aws:elasticloadbalancing:eu-west-1:111122223333:targetgroup/tg/") || !strings.Contains(r.body, "<Type>elbv2</Type>") {
					t.Errorf("group %s", r.body)
				}
			})
		})
	}
}

func TestAWSScenarioProblems(t *testing.T) {
	t.Parallel()
	const head = "queues: [{name: q}]\n"
	for text, want := range map[string]string{
		"provider: azure\n" + head: "provider: must be one of alibaba, aws",
		"provider: aws\n" + head + "scaling_groups: [{id: g, hooks: [{id: h, transition: scale_in, heartbeat_timeout: 3h}]}]":         "heartbeat_timeout: must be 30s to 2h0m0s",
		"provider: aws\n" + head + "scaling_groups: [{id: g, hooks: [{id: h, transition: scale_in, default_result: ROLLBACK}]}]":      "default_result: must be one of CONTINUE, ABANDON",
		"provider: aws\n" + head + "scaling_groups: [{id: g, hooks: [{id: h, transition: scale_in, encoding: base64}]}]":              "encoding: must be one of plain",
		"provider: aws\n" + head + "scaling_groups: [{id: g, hooks: [{id: h, transition: scale_in, delivery: post}]}]":                "delivery: must be one of direct, sns, sns_raw, eventbridge, both",
		"provider: aws\n" + head + "scaling_groups: [{id: g, hooks: [{id: h, transition: scale_in, delivery: sns}]}]":                 "delivery: sns needs a queue",
		"provider: aws\n" + head + "scaling_groups: [{id: g, hooks: [{id: h, transition: scale_in, target: eventbus/default}]}]":      "eventbridge needs a queue",
		"provider: aws\n" + head + "scaling_groups: [{id: g, hooks: [{id: h, transition: scale_in, metadata: größe}]}]":               "printable characters",
		"provider: aws\n" + head + "scaling_groups: [{id: g, hooks: [{id: h, transition: scale_in}, {id: h, transition: scale_in}]}]": "there twice",
		"provider: aws\n" + head + "scaling_groups: [{id: g, instances: 2, max_size: 1}]":                                             "max_size: must be instances, which is 2",
		"provider: aws\n" + head + "scaling_groups: [{id: g, min_size: 1}]":                                                           "min_size: must be 0 to instances",
		"provider: aws\n" + head + "scaling_groups: [{id: g, warm_pool: {size: 1, state: hot}}]":                                      "warm_pool.state: must be one of stopped, running",
		"provider: aws\n" + head + "scaling_groups: [{id: g, warm_pool: {depth: 1}}]":                                                 "allowed are size, state, reuse",
		"provider: aws\n" + head + "scaling_groups: [{id: g, events: topic/t}]\ntopics: [{name: t}]":                                  "events: on AWS it is queue/{name}",
		"provider: aws\n" + head + "scaling_groups: [{id: g}]\ncloud_events: [{event: thunder, group: g, count: 1}]":                  "event must be one of spot_interruption",
		"provider: aws\n" + head + "eventbridge: {queue: q}\ncloud_events: [{event: spot_interruption, group: x, count: 1}]":          "no scaling group",
		"provider: aws\n" + head + "scaling_groups: [{id: g}]\ncloud_events: [{event: spot_interruption, group: g, count: 1}]":        "needs eventbridge.queue",
		head + "scaling_groups: [{id: g, retain: true}]":                                                                              "retain: is for provider aws",
		head + "scaling_groups: [{id: g, hooks: [{id: h, transition: scale_in, delivery: sns, queue: q}]}]":                           "delivery: is for provider aws",
		head + "scaling_groups: [{id: g, warm_pool: {size: 1}}]":                                                                      "warm_pool: is for provider aws",
	} {
		path := filepath.Join(t.TempDir(), "scenario.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadScenario(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// The names of hooks are a group's own, and the two ways to write a hook's name are one.
func TestAWSHookNames(t *testing.T) {
	t.Parallel()
	sc := asg(1, HookConfig{Name: "drain/web", Transition: scaleIn})
	sc.ScalingGroups = append(sc.ScalingGroups, GroupConfig{ID: "other-asg", Instances: 1, Hooks: []HookConfig{{ID: "drain/web", Transition: scaleIn, Target: "queue/q"}}})
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		for _, group := range []string{"web-asg", "other-asg"} {
			act, err := w.ScaleIn(group, 1)
			if err != nil {
				t.Fatal(err)
			}
			if a := w.action(act.Tokens[0]); a.Hook != "drain/web" || a.HookName != "drain/web" || a.Group != group {
				t.Errorf("action %+v", a)
			}
			if o := decode(t, w.bodies("q")[0]); o["LifecycleHookName"] != "drain/web" || o["AutoScalingGroupName"] != group {
				t.Errorf("message %v", o)
			}
		}
	})
}

func TestEC2DescribeInstances(t *testing.T) {
	t.Parallel()
	sc := asg(7, draining(time.Minute))
	sc.ScalingGroups[0].Tags, sc.ScalingGroups[0].Zones = map[string]string{"app": "web", "path": "a/b[1]"}, []string{"eu-west-1a", "eu-west-1b"}
	sc.ScalingGroups = append(sc.ScalingGroups, GroupConfig{ID: "other-asg", Instances: 5})
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		type answer struct {
			Reservations []struct {
				Owner     string        `xml:"ownerId"`
				Instances []ec2Instance `xml:"instancesSet>item"`
			} `xml:"reservationSet>item"`
			Next    string `xml:"nextToken"`
			Request string `xml:"requestId"`
		}
		ask := func(pairs ...string) (ids []string, a answer) {
			t.Helper()
			w.into(w.query("ec2", "DescribeInstances", pairs...), &a)
			for _, r := range a.Reservations {
				for _, in := range r.Instances {
					ids = append(ids, in.ID)
				}
			}
			return ids, a
		}
		g, _ := w.State().Group("web-asg")
		one := g.Instances[1]
		_, a := ask("InstanceId.1", one.ID)
		in := a.Reservations[0].Instances[0]
		if in.ID != one.ID || in.PrivateIP != one.Address || in.State != (ec2State{16, "running"}) || in.Placement.Zone != "eu-west-1b" || a.Reservations[0].Owner != "111122223333" || a.Request == "" ||
			in.PrivateDNSName != "ip-"+strings.ReplaceAll(one.Address, ".", "-")+".eu-west-1.compute.internal" || in.SubnetID == "" || in.VPCID == "" {
			t.Errorf("instance %+v", a)
		}
		if tags := in.Tags.Items; len(tags) != 3 || tags[0] != (ec2Tag{"app", "web"}) || tags[1] != (ec2Tag{"aws:autoscaling:groupName", "web-asg"}) {
			t.Errorf("tags %v", tags)
		}
		for _, c := range []struct {
			filters string // name=value,value of each
			want    int
		}{
			{"instance-state-name=running", 12},
			{"instance-state-code=16", 12},
			{"tag:app=web", 7},
			{"tag:app=w?b", 7},
			{"tag:app=W*", 0},
			{"tag:path=a/*", 7},
			{"tag:path=*[1]", 7},
			{"tag:path=*1", 0},
			{"tag-key=app", 7},
			{"tag:aws:autoscaling:groupName=other-asg", 5},
			{"tag:aws:autoscaling:groupName=other-asg,web-asg", 12},
			{"availability-zone=eu-west-1b&tag:app=web", 3},
			{"private-ip-address=" + one.Address, 1},
			{"instance-id=" + one.ID + "&instance-state-name=stopped", 0},
			{"tag:app=w\\*", 0},
		} {
			var pairs []string
			for i, f := range strings.Split(c.filters, "&") {
				name, values, _ := strings.Cut(f, "=")
				pairs = append(pairs, fmt.Sprintf("Filter.%d.Name", i+1), name)
				for j, v := range strings.Split(values, ",") {
					pairs = append(pairs, fmt.Sprintf("Filter.%d.Value.%d", i+1, j+1), v)
				}
			}
			if ids, _ := ask(pairs...); len(ids) != c.want {
				t.Errorf("%s: %d instances, want %d", c.filters, len(ids), c.want)
			}
		}

		var all []string
		for token, page := "", 0; ; page++ {
			pairs := []string{"MaxResults", "5"}
			if token != "" {
				pairs = append(pairs, "NextToken", token)
			}
			ids, a := ask(pairs...)
			all = append(all, ids...)
			if token = a.Next; token == "" {
				if page != 2 {
					t.Errorf("page %d was the last", page)
				}
				break
			}
		}
		if slices.Sort(all); len(slices.Compact(all)) != 12 {
			t.Errorf("pages held %v", all)
		}

		// One that is gone is told of for an hour, without an address.
		id, tokens := w.leave()
		if _, a := ask("InstanceId.1", id); a.Reservations[0].Instances[0].State.Name != "running" {
			t.Errorf("while it drains: %+v", a)
		}
		w.mustComplete("usher-drain", tokens[0], "CONTINUE")
		if _, a := ask("InstanceId.1", id, "InstanceId.2", id); len(a.Reservations) != 1 || a.Reservations[0].Instances[0].State != (ec2State{48, "terminated"}) || a.Reservations[0].Instances[0].PrivateIP != "" {
			t.Errorf("gone: %+v", a)
		}
		if ids, _ := ask(); len(ids) != 12 {
			t.Errorf("%d instances in all", len(ids))
		}
		time.Sleep(time.Hour + time.Second)
		w.refusedWith(w.query("ec2", "DescribeInstances", "InstanceId.1", id), 400, "<Code>InvalidInstanceID.NotFound</Code><Message>The instance ID &#39;"+id+"&#39; does not exist")

		for _, c := range []struct{ code, form string }{
			{"InvalidInstanceID.Malformed", "InstanceId.1=web-1"},
			{"InvalidInstanceID.Malformed", "InstanceId.1=i-0AA11bb22cc33dd44"},
			{"InvalidInstanceID.NotFound", "InstanceId.1=i-0aa11bb22cc33dd44&InstanceId.2=i-0aa11bb22cc33dd45"},
			{"InvalidInstanceID.NotFound", "InstanceId.1=" + one.ID + "&InstanceId.2=i-0aa11bb22cc33dd45"},
			{"InvalidParameterCombination", "InstanceId.1=" + one.ID + "&MaxResults=5"},
			{"InvalidParameterValue", "MaxResults=4"},
			{"InvalidParameterValue", "MaxResults=1001"},
			{"InvalidParameterValue", "MaxResults=x"},
			{"InvalidNextToken", "NextToken=x"},
			{"InvalidParameterValue", "Filter.1.Name=colour&Filter.1.Value.1=red"},
			{"InvalidParameterValue", "Filter.1.Name=instance-id"},
			{"MissingParameter", "Filter.1.Value.1=red"},
		} {
			values, err := url.ParseQuery(c.form)
			if err != nil {
				t.Fatal(err)
			}
			var pairs []string
			for name := range values {
				pairs = append(pairs, name, values.Get(name))
			}
			r := w.query("ec2", "DescribeInstances", pairs...)
			if r.status != 400 || !strings.Contains(r.body, "<Response><Errors><Error><Code>"+c.code+"</Code><Message>") || !strings.Contains(r.body, "</Error></Errors><RequestID>") {
				t.Errorf("%s: %d %s, want %s", c.form, r.status, r.body, c.code)
			}
		}
	})
}

// A new machine's address is known to EC2 only after a time.
func TestEC2LearnsOfANewInstance(t *testing.T) {
	t.Parallel()
	sc := asg(0, warming(time.Minute))
	sc.Timings.Address = 10 * time.Second
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		act, err := w.ScaleOut("web-asg", 1)
		if err != nil {
			t.Fatal(err)
		}
		w.refusedWith(w.query("ec2", "DescribeInstances", "InstanceId.1", act.Instances[0]), 400, "InvalidInstanceID.NotFound")
		time.Sleep(10 * time.Second)
		if r := w.query("ec2", "DescribeInstances", "InstanceId.1", act.Instances[0]); r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
}
