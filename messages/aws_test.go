package messages

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func readAWS(t testing.TB, name string) []byte {
	t.Helper()
	return read(t, filepath.Join("aws", name))
}

// wantAWS is the notification of testdata/aws/hook.json.
func wantAWS() Notification {
	return Notification{
		Action: Action{
			Group: "web-asg", Hook: "usher-drain", HookName: "usher-drain", Transition: ScaleIn,
			Token: "3d9c1f7e-52b8-4a06-9e41-7c0d5b2a6f18", Instances: []InstanceID{"i-0aa11bb22cc33dd44"},
		},
		AccountID: "111122223333", RequestID: "8c1d63ab-0f52-4e77-a1c9-6b0e94d2f385", Metadata: `{"tier":"web"}`,
		Origin: "AutoScalingGroup", Destination: "EC2", Time: time.Date(2026, 9, 21, 10, 15, 4, 512e6, time.UTC),
	}
}

// inSNS puts a message into SNS's envelope.
func inSNS(t testing.TB, message string) string {
	t.Helper()
	return marshal(t, map[string]string{"Type": "Notification", "MessageId": "m-1", "TopicArn": "arn:aws:sns:eu-west-1:1:t", "Message": message, "Timestamp": "2026-09-21T10:15:04.601Z"})
}

// The same notification, whichever way it came.
func TestDecodeAWSEnvelopes(t *testing.T) {
	t.Parallel()
	const groupARN = "arn:aws:autoscaling:eu-west-1:111122223333:autoScalingGroup:6e2b0d1c-7f34-4a58-b9c1-2d3e4f5a6b7c:autoScalingGroupName/web-asg"
	bridged := wantAWS()
	bridged.Region, bridged.RequestID, bridged.ResourceARN = "eu-west-1", "4b7e1a90-2c5d-4f83-b6a7-8e9d0c1f2a3b", groupARN
	bridged.Time = time.Date(2026, 9, 21, 10, 15, 5, 0, time.UTC)
	minimal := Notification{Action: wantAWS().Action}
	launch := wantAWS()
	launch.Transition, launch.Token, launch.Origin, launch.Destination = ScaleOut, "9a2e4c60-1b7d-4853-af96-0d1c2b3a4e5f", "EC2", "AutoScalingGroup"
	sns := Layer{
		Form: SNS, Topic: "arn:aws:sns:eu-west-1:111122223333:asg-events", ID: "b1f7c2d0-5a3e-5c68-9f04-91c2d3e4f5a6",
		Published: time.Date(2026, 9, 21, 10, 15, 4, 601e6, time.UTC),
	}
	inner := sns
	inner.ID = "c2f7c2d0-5a3e-5c68-9f04-91c2d3e4f5a6"
	event := Layer{Form: EventBridge, Type: "EC2 Instance-terminate Lifecycle Action", ID: bridged.RequestID, Published: bridged.Time}
	for _, c := range []struct {
		name   string
		want   Notification
		layers []Layer
	}{
		{"hook.json", wantAWS(), nil},
		{"hook-minimal.json", minimal, nil},
		{"hook-launch.json", launch, nil},
		{"sns.json", wantAWS(), []Layer{sns}},
		{"sns-twice.json", wantAWS(), []Layer{sns, inner}},
		{"sns-lines.json", wantAWS(), []Layer{sns, {Form: KeyValue}}},
		{"eventbridge.json", bridged, []Layer{event}},
		{"sns-eventbridge.json", bridged, []Layer{sns, event}},
	} {
		text := string(readAWS(t, c.name))
		for coats, body := range []string{text, b64(text), b64(b64(text)), "\n " + text} {
			if got, err := Decode([]byte(body), AWS); err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%s: got %+v, %v\nwant %+v", c.name, got, err, c.want)
			}
			want := slices.Concat(slices.Repeat([]Layer{{Form: Base64}}, coats%3), c.layers)
			if got := Layers([]byte(body), AWS); !slices.Equal(got, want) {
				t.Errorf("%s: layers %+v\nwant %+v", c.name, got, want)
			}
			if got := GuessCloud([]byte(body)); got != AWS {
				t.Errorf("%s: taken for a message of %s", c.name, got)
			}
		}
	}
}

func TestDecodeAWSEvents(t *testing.T) {
	t.Parallel()
	at := func(clock string) time.Time {
		when, err := time.Parse(time.RFC3339, clock)
		if err != nil {
			t.Fatal(err)
		}
		return when.UTC()
	}
	const first = InstanceID("i-0aa11bb22cc33dd44")
	for name, want := range map[string]Notification{
		"spot.json": {
			Action: Action{Event: SpotInterruption, Token: "0d1e2f30-4152-4637-8495-a6b7c8d9eaf0", Instances: []InstanceID{first}},
			Time:   at("2026-09-21T11:00:00Z"), Due: at("2026-09-21T11:02:00Z"),
		},
		"rebalance.json": {
			Action: Action{Event: RebalanceRecommendation, Token: "1e2f3041-5263-4748-95a6-b7c8d9eafb01", Instances: []InstanceID{first}},
			Time:   at("2026-09-21T10:50:00Z"),
		},
		"state.json": {
			Action: Action{Event: StateChange, Token: "2f304152-6374-4859-a6b7-c8d9eafb0c12", Instances: []InstanceID{first}},
			Time:   at("2026-09-21T11:02:03Z"),
		},
		"health.json": {
			Action: Action{Event: ScheduledChange, Token: "30415263-7485-496a-b7c8-d9eafb0c1d23", Instances: []InstanceID{first, "i-0bb22cc33dd44ee55"}},
			Time:   at("2026-09-21T06:27:57Z"), Due: at("2026-10-05T15:10:09Z"),
		},
	} {
		want.Region, want.Transition, want.AccountID, want.RequestID = "eu-west-1", ScaleIn, "111122223333", string(want.Token)
		text := string(readAWS(t, name))
		for _, body := range []string{text, b64(text), inSNS(t, text)} {
			got, err := Decode([]byte(body), AWS)
			got.ResourceARN = "" // its style varies
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s: got %+v, %v\nwant %+v", name, got, err, want)
			}
		}
	}
	// One that hibernates does so at once: there is no time that it could be said to have.
	hibernates := strings.Replace(string(readAWS(t, "spot.json")), `"terminate"`, `"hibernate"`, 1)
	if n, err := Decode([]byte(hibernates), AWS); err != nil || n.Event != SpotInterruption || !n.Due.IsZero() {
		t.Errorf("hibernation: %+v, %v", n, err)
	}
}

func TestDecodeAWSOthers(t *testing.T) {
	t.Parallel()
	health := string(readAWS(t, "health.json"))
	for body, kind := range map[string]string{
		string(readAWS(t, "test.json")):                 "Auto Scaling autoscaling:TEST_NOTIFICATION",
		string(readAWS(t, "sns-test.json")):             "Auto Scaling autoscaling:TEST_NOTIFICATION",
		string(readAWS(t, "group.json")):                "Auto Scaling autoscaling:EC2_INSTANCE_TERMINATE",
		string(readAWS(t, "sns-confirm.json")):          "SNS SubscriptionConfirmation arn:aws:sns:eu-west-1:111122223333:asg-events",
		string(readAWS(t, "eventbridge-activity.json")): "EventBridge aws.autoscaling EC2 Instance Terminate Successful",
		string(readAWS(t, "state-running.json")):        "EventBridge aws.ec2 EC2 Instance State-change Notification running",
		string(readAWS(t, "health-rds.json")):           "EventBridge aws.health RDS scheduledChange AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED upcoming",
		`{"Type":"UnsubscribeConfirmation"}`:            "SNS UnsubscribeConfirmation",
		// A test of the hook itself, as an older account may write it.
		`{"LifecycleTransition":"autoscaling:TEST_NOTIFICATION","LifecycleHookName":"usher-drain"}`: "Auto Scaling autoscaling:TEST_NOTIFICATION",
		`{"detail-type":"S3 Object Created","source":"aws.s3","detail":"text"}`:                     "EventBridge aws.s3 S3 Object Created",
		`{"detail-type":"EC2 Spot Instance Interruption Warning","source":"my.own","detail":{}}`:    "EventBridge my.own EC2 Spot Instance Interruption Warning",
		`{"detail-type":7,"source":[],"detail":{}}`:                                                 "EventBridge",
		strings.Replace(health, "scheduledChange", "issue", 1):                                      "EventBridge aws.health EC2 issue AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED upcoming",
		strings.Replace(health, "upcoming", "closed", 1):                                            "EventBridge aws.health EC2 scheduledChange AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED closed",
		strings.ReplaceAll(health, `"entityValue": "i-`, `"entityValue": "h-`):                      "EventBridge aws.health EC2 scheduledChange AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED upcoming",
	} {
		for _, b := range []string{body, b64(body)} {
			_, err := Decode([]byte(b), AWS)
			if other, ok := errors.AsType[*OtherError](err); !ok || other.Kind != kind || errors.Is(err, ErrMalformed) {
				t.Errorf("%.80s: got %v, want kind %q", body, err, kind)
			}
		}
	}
}

func TestDecodeAWSMalformed(t *testing.T) {
	t.Parallel()
	hook, event, spot, health := string(readAWS(t, "hook.json")), string(readAWS(t, "eventbridge.json")), string(readAWS(t, "spot.json")), string(readAWS(t, "health.json"))
	with := func(text, old, new string) string {
		t.Helper()
		if !strings.Contains(text, old) {
			t.Fatalf("no %s in %s", old, text)
		}
		return strings.Replace(text, old, new, 1)
	}
	long := strings.Repeat("x", 256)
	for _, c := range []struct{ name, body, where, reason string }{
		{"empty", " ", "body", "empty"},
		{"text", "hello: there", "body", "neither a JSON object"},
		{"another object", `{"hello":"there"}`, "body", "neither of Auto Scaling"},
		{"a message of ESS", string(read(t, "hook.json")), "body", "neither of Auto Scaling"},
		{"no UTF-8", "{\"a\":\"\xff\"}", "body", "no UTF-8"},
		{"more text behind", hook + "x", "body", "more text"},
		{"cut", hook[:100], "body", "cut short"},
		{"Base64 three times", b64(b64(b64(hook))), "base64", "more than twice"},
		{"Base64 cut", b64(hook)[:101], "base64", "cut short"},
		{"too long", strings.Repeat("x", MaxBody+1), "body", "longer"},

		{"instance that is a command", with(hook, "i-0aa11bb22cc33dd44", "i-$(reboot)"), "EC2InstanceId", "must match"},
		{"instance of another cloud", with(hook, "i-0aa11bb22cc33dd44", "i-bp1aaaaaaaaaaaaaaaa1"), "EC2InstanceId", "must match"},
		{"no instance", with(hook, "EC2InstanceId", "x"), "EC2InstanceId", "must match"},
		{"group that is a path", with(hook, "web-asg", "../web"), "AutoScalingGroupName", "must match"},
		{"group that climbs", with(hook, "web-asg", "web/../x"), "AutoScalingGroupName", "must match"},
		{"group with an empty part", with(hook, "web-asg", "web//x"), "AutoScalingGroupName", "must match"},
		{"group that is an option", with(hook, "web-asg", "-rf"), "AutoScalingGroupName", "must match"},
		{"group with a blank", with(hook, "web-asg", "web asg"), "AutoScalingGroupName", "must match"},
		{"group with a line", with(hook, "web-asg", `web\nasg`), "AutoScalingGroupName", "must match"},
		{"group that goes on", with(hook, "web-asg", `web\n`), "AutoScalingGroupName", "must match"},
		{"group that is a variable", with(hook, "web-asg", "$HOME"), "AutoScalingGroupName", "must match"},
		{"group that is too long", with(hook, "web-asg", long), "AutoScalingGroupName", "255 bytes"},
		{"group that is an object", with(hook, `"web-asg"`, "{}"), "AutoScalingGroupName", "must match"},
		{"hook with a dot", with(hook, "usher-drain", "usher.drain"), "LifecycleHookName", "must match"},
		{"hook that is a query", with(hook, "usher-drain", "x?a=b"), "LifecycleHookName", "must match"},
		{"hook that is too long", with(hook, "usher-drain", long), "LifecycleHookName", "255 bytes"},
		{"token", with(hook, "3d9c1f7e-52b8", "{{.Secret}}"), "LifecycleActionToken", "must match"},
		{"short token", with(hook, "3d9c1f7e-52b8", "3d9c1f7e"), "LifecycleActionToken", "must match"},
		{"transition", with(hook, "TERMINATING", "SIDEWAYS"), "LifecycleTransition", "SIDEWAYS"},
		{"origin", with(hook, `"AutoScalingGroup"`, `"a b"`), "Origin", "must match"},
		{"destination", with(hook, `"EC2"`, `"`+long+`"`), "Destination", "40 bytes"},
		{"time", with(hook, "2026-09-21T10:15:04.512Z", "soon"), "time", "soon"},
		{"keys in small letters", `{"lifecycleactiontoken":"x"}`, "LifecycleTransition", `got ""`},

		// Half a notification must not pass for anything else.
		{"token alone", `{"LifecycleActionToken":"3d9c1f7e-52b8-4a06-9e41-7c0d5b2a6f18"}`, "LifecycleTransition", "got"},
		{"token is null", `{"LifecycleActionToken":null}`, "LifecycleTransition", "got"},
		{"hook alone", `{"LifecycleHookName":"x"}`, "LifecycleTransition", "got"},
		{"no token", with(hook, "LifecycleActionToken", "x"), "LifecycleActionToken", "must match"},
		{"a test with a token", with(string(readAWS(t, "test.json")), `"Event"`, `"LifecycleActionToken":"x","Event"`), "LifecycleTransition", "got"},
		{"a test with an instance", `{"EC2InstanceId":"i-0aa11bb22cc33dd44","LifecycleHookName":"x","LifecycleTransition":"autoscaling:TEST_NOTIFICATION"}`, "LifecycleTransition", "TEST_NOTIFICATION"},
		{"a group's notification with a hook", with(string(readAWS(t, "group.json")), `"Event"`, `"LifecycleHookName":"x","Event"`), "LifecycleTransition", "got"},
		{"a confirmation with a token", `{"Type":"SubscriptionConfirmation","LifecycleActionToken":"x"}`, "LifecycleTransition", "got"},
		{"an envelope with a token", with(inSNS(t, string(readAWS(t, "test.json"))), "{", `{"LifecycleActionToken":"x",`), "Type", "must not be there"},
		{"another source", with(event, "aws.autoscaling", "my.own"), "source", "my.own"},
		{"another source of marks", `{"detail-type":"x","source":"aws.ec2","detail":{"LifecycleHookName":null}}`, "source", "aws.ec2"},
		{"marks around an event", with(event, `"detail": {`, `"LifecycleActionToken": "x", "detail": 7, "was": {`), "detail", "must not be"},
		{"lifecycle event of another kind", with(event, "Instance-terminate Lifecycle", "Instance-hibernate Lifecycle"), "detail-type", "hibernate"},
		{"another type with marks", with(event, "EC2 Instance-terminate Lifecycle Action", "EC2 Instance Terminate Successful"), "detail-type", "Successful"},
		{"a type in small letters", with(event, "Lifecycle Action", "lifecycle action"), "detail-type", "lifecycle action"},
		{"type and transition", with(event, "TERMINATING", "LAUNCHING"), "detail.LifecycleTransition", "contradicts"},
		{"no token in an event", with(event, "LifecycleActionToken", "x"), "detail.LifecycleActionToken", "must match"},
		{"bad id in an event", with(event, `"i-0aa11bb22cc33dd44"`, `"i-0aa11bb22cc33dd44;"`), "detail.EC2InstanceId", "must match"},
		{"no region in an event", with(event, `"region"`, `"x"`), "region", "must match"},
		{"region in an event", with(event, `"eu-west-1"`, `"eu west"`), "region", "must match"},
		{"time of an event", with(event, "2026-09-21T10:15:05Z", "soon"), "time", "soon"},

		{"no message", `{"Type":"Notification"}`, "Message", "missing"},
		{"message is null", `{"Type":"Notification","Message":null}`, "Message", "missing"},
		{"message is an object", `{"Type":"Notification","Message":{}}`, "Message", "must be text"},
		{"blank message", `{"Type":"Notification","Message":" "}`, "Message", "missing"},
		{"text in an envelope", inSNS(t, "hello"), "Message > body", "neither"},
		{"lines of nothing", inSNS(t, "hello: there"), "Message > body", "neither of Auto Scaling"},
		{"lines that are none", inSNS(t, "Time: now\nhello\n"), "Message > body", "lines of Key: value"},
		{"a key twice", inSNS(t, "Service: x\nService: y\n"), "Message > Service", "twice"},
		{"half a notification in lines", inSNS(t, "Service: AWS Auto Scaling\nLifecycleHookName: usher-drain\n"), "Message > LifecycleTransition", "got"},
		{"three envelopes", inSNS(t, inSNS(t, inSNS(t, hook))), "Message > Message > body", "more of them than two"},
		{"bad id in two envelopes", inSNS(t, inSNS(t, with(hook, "i-0aa", "i-$"))), "Message > Message > EC2InstanceId", "must match"},
		{"three times Base64 in all", b64(inSNS(t, b64(b64(hook)))), "Message > base64", "more than twice"},

		{"spot without an instance", with(spot, "instance-id", "x"), "detail.instance-id", "must match"},
		{"spot of a command", with(spot, `"i-0aa11bb22cc33dd44"`, `"i-$(reboot)"`), "detail.instance-id", "must match"},
		{"spot without an id", with(spot, `"id"`, `"x"`), "id", "must match"},
		{"spot with an id that is a path", with(spot, "0d1e2f30-", "../"), "id", "must match"},
		{"spot without a region", with(spot, `"region"`, `"x"`), "region", "must match"},
		{"spot with a text", with(spot, `"detail": {`, `"detail": "x", "was": {`), "detail", "must not be"},
		{"spot with a time of no form", with(spot, "2026-09-21T11:00:00Z", "soon"), "time", "soon"},
		{"change of a command", with(health, `"i-0bb22cc33dd44ee55"`, `"i-;reboot"`), "detail.affectedEntities[1].entityValue", "must match"},
		{"change of a list", with(health, `"affectedEntities": [`, `"affectedEntities": {}, "was": [`), "detail.affectedEntities", "must not be"},
		{"change at no time", with(health, "Mon, 05 Oct 2026 15:10:09 GMT", "soon"), "detail.startTime", "soon"},
		{"change of too many", marshal(t, tooMany(t, health)), "detail.affectedEntities", "more than"},
	} {
		_, err := Decode([]byte(c.body), AWS)
		m, ok := errors.AsType[*MalformedError](err)
		if !ok || !errors.Is(err, ErrMalformed) || errors.Is(err, ErrNotLifecycle) {
			t.Errorf("%s: got %v, want a *MalformedError", c.name, err)
			continue
		}
		if m.Where != c.where || !strings.Contains(m.Reason, c.reason) {
			t.Errorf("%s: got %v, want %s: ...%s...", c.name, err, c.where, c.reason)
		}
		if len(m.Reason) > 400 {
			t.Errorf("%s: a reason of %d bytes", c.name, len(m.Reason))
		}
	}
}

// tooMany gives a change of more instances than one event may name.
func tooMany(t testing.TB, health string) map[string]any {
	t.Helper()
	var e map[string]any
	if err := json.Unmarshal([]byte(health), &e); err != nil {
		t.Fatal(err)
	}
	e["detail"].(map[string]any)["affectedEntities"] = slices.Repeat([]any{map[string]string{"entityValue": "i-0aa11bb22cc33dd44"}}, maxAffected+1)
	return e
}

// What is not there, is of another kind or is new decides nothing.
func TestDecodeAWSVariants(t *testing.T) {
	t.Parallel()
	var m map[string]any
	if err := json.Unmarshal(readAWS(t, "hook.json"), &m); err != nil {
		t.Fatal(err)
	}
	want := wantAWS()
	for _, c := range []struct {
		name   string
		change func()
	}{
		{"unknown fields", func() { m["Action"], m["New"] = "ReplaceRootVolume", []int{1} }},
		{"whole seconds", func() { m["Time"] = "2026-09-21T10:15:04Z"; want.Time = want.Time.Truncate(time.Second) }},
		{"an account in digits", func() { m["AccountId"] = json.RawMessage("111122223333") }},
		{"no metadata", func() { delete(m, "NotificationMetadata"); want.Metadata = "" }},
		{"metadata that is none", func() { m["NotificationMetadata"] = map[string]any{} }},
		{"before 2021", func() { delete(m, "Origin"); delete(m, "Destination"); want.Origin, want.Destination = "", "" }},
		{"from the warm pool", func() {
			m["Origin"], m["Destination"] = "WarmPool", "EC2"
			want.Origin, want.Destination = "WarmPool", "EC2"
		}},
		{"no time", func() { delete(m, "Time"); want.Time = time.Time{} }},
		{"a name with a slash", func() {
			m["AutoScalingGroupName"], m["LifecycleHookName"] = "team/web_1.a", "team/usher"
			want.Group, want.Hook, want.HookName = "team/web_1.a", "team/usher", "team/usher"
		}},
		{"an old instance", func() { m["EC2InstanceId"] = "i-0aa11bb2"; want.Instances = []InstanceID{"i-0aa11bb2"} }},
	} {
		c.change()
		if got, err := Decode([]byte(marshal(t, m)), AWS); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v\nwant %+v", c.name, got, err, want)
		}
	}
}

func TestGuessCloud(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]Cloud{
		string(read(t, "hook.json")):       Alibaba,
		string(read(t, "topic.xml")):       Alibaba,
		string(read(t, "event-spot.json")): Alibaba,
		"":                                 Alibaba,
		"hello":                            Alibaba,
		`{"product":"ESS","content":{"lifecycleHookId":"ash-1"}}`: Alibaba,
		string(readAWS(t, "sns-confirm.json")):                    AWS,
		string(readAWS(t, "spot.json")):                           AWS,
		`{"LifecycleHookName":"half"}`:                            AWS,
		b64(`{"EC2InstanceId":"i-$(x)"}`):                         AWS,
		inSNS(t, "hello"):                                         AWS,
	} {
		if got := GuessCloud([]byte(body)); got != want {
			t.Errorf("%.60s: taken for %s, want %s", body, got, want)
		}
	}
}

func TestValidNames(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		group GroupID
		hook  HookID
		of    Cloud
		want  bool
	}{
		{"web-asg", "usher-drain", AWS, true},
		{"asg-bp1", "ash-bp1", Alibaba, true},
		{"web-asg", "usher-drain", Alibaba, false},
		{"a b", "a.b", AWS, false},
		{"", "", AWS, false},
		{"a/", "a/", AWS, false},
	} {
		if c.group.Valid(c.of) != c.want || c.hook.Valid(c.of) != c.want {
			t.Errorf("%q, %q of %s: want %v", c.group, c.hook, c.of, c.want)
		}
	}
}
