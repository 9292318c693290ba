package simulator

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// items digs a wrapped list of the 2014 form out of an answer.
func items(t testing.TB, o map[string]any, plural, singular string) []any {
	t.Helper()
	wrapped, ok := o[plural].(map[string]any)
	if !ok {
		t.Fatalf("no object %s in %v", plural, o)
	}
	list, ok := wrapped[singular].([]any)
	if !ok {
		t.Fatalf("no list %s in %v", singular, wrapped)
	}
	return list
}

func hookIn(id, result string) HookConfig {
	return HookConfig{ID: id, Transition: scaleIn, DefaultResult: result}
}

func TestScaleInToTheEnd(t *testing.T) {
	t.Parallel()
	sc := oneGroup(4, HookConfig{ID: "ash-1", Name: "drain", Transition: scaleIn, Metadata: "größe"})
	bubble(t, Options{Scenario: sc, AccountID: "42"}, func(w *world) {
		before, _ := w.State().Group("asg-1")
		act, err := w.ScaleIn("asg-1", 2)
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{before.Instances[0].ID, before.Instances[1].ID}; !slices.Equal(act.Instances, want) {
			t.Errorf("chose %v, want the oldest %v", act.Instances, want)
		}
		if got, want := w.states("asg-1"), "Removing:Wait Removing:Wait InService InService"; got != want {
			t.Errorf("states %s, want %s", got, want)
		}
		lb, _ := w.State().Balancer("lb")
		for _, m := range lb.Members {
			if gone := slices.Contains(act.Instances, m.Instance); gone == m.InService {
				t.Errorf("member %+v while %v are being removed", m, act.Instances)
			}
		}

		m := w.receiveOne("q", "0")
		n := w.wire(m.MessageBody)
		want := notification{
			Content: notificationContent{
				DefaultResult: "CONTINUE", InstanceIDs: act.Instances, Token: act.Tokens[0], HookID: "ash-1", HookName: "drain",
				Transition: "SCALE_IN", Metadata: "größe", RequestID: n.Content.RequestID, ActivityID: act.ID, GroupID: "asg-1", GroupName: "web",
			},
			Product: "ESS", RegionID: "cn-shenzhen", ResourceARN: "acs:ess:cn-shenzhen:42:scalingGroup/asg-1",
			Time: act.Started.UTC().Format("2006-01-02T15:04:05.000Z"), UserID: "42",
		}
		if fmt.Sprint(n) != fmt.Sprint(want) || n.Content.RequestID == "" {
			t.Errorf("notification\n%+v, want\n%+v", n, want)
		}

		listed := items(t, w.call(essOld, "DescribeLifecycleActions", "ScalingActivityId", act.ID), "LifecycleActions", "LifecycleAction")
		if got := listed[0].(map[string]any); got["LifecycleActionStatus"] != "Pending" || got["LifecycleActionResult"] != "CONTINUE" || got["LifecycleActionToken"] != act.Tokens[0] || len(items(t, got, "InstanceIds", "InstanceId")) != 2 {
			t.Errorf("listed %v", got)
		}
		w.complete("ash-1", act.Tokens[0], "CONTINUE")
		if got, want := w.states("asg-1"), "InService InService"; got != want {
			t.Errorf("states %s, want %s", got, want)
		}
		w.fails(400, "LifecycleHookIdAndLifecycleActionToken.Invalid", essOld, "CompleteLifecycleAction", "LifecycleHookId", "ash-1", "LifecycleActionToken", act.Tokens[0], "LifecycleActionResult", "CONTINUE")
		w.fails(400, "LifecycleHookIdAndLifecycleActionToken.Invalid", essOld, "RecordLifecycleActionHeartbeat", "lifecycleHookId", "ash-1", "lifecycleActionToken", act.Tokens[0])
		a := w.action(act.Tokens[0])
		if a.Status != "Completed" || a.Result != "CONTINUE" || a.EndedBy != "call" || a.Completed == nil {
			t.Errorf("action %+v", a)
		}
		if o := w.call(essOld, "DescribeScalingInstances", "InstanceId.1", act.Instances[0], "InstanceId.2", before.Instances[2].ID); o["TotalCount"] != 1.0 {
			t.Errorf("a released instance is listed: %v", o)
		}
		w.must(204, "DELETE", "/queues/q/messages?"+handleQuery(m.ReceiptHandle), "")
		wantEvents := []EventType{ActionStarted, MessageSent, MessageReceived, ActionCompleted, ActivityEnded, MessageDeleted}
		if got := w.types(wantEvents...); !slices.Equal(got, wantEvents) {
			t.Errorf("events %v, want %v", got, wantEvents)
		}
		if e := w.Events()[len(w.Events())-1]; e.Token != act.Tokens[0] || e.Type != MessageDeleted {
			t.Errorf("the last event %+v does not name the action of the message", e)
		}
	})
}

// TestResults goes through what ends the waits of two hooks and what becomes of the instance.
func TestResults(t *testing.T) {
	t.Parallel()
	const released, kept = "", "InService"
	for _, c := range []struct {
		transition    string
		first, second string // "": not answered, times out with the default
		def           string
		want          string
		secondEndedBy string
	}{
		{scaleIn, "CONTINUE", "CONTINUE", "CONTINUE", released, "call"},
		{scaleIn, "ABANDON", "-", "CONTINUE", released, "other_hook"},
		{scaleIn, "ROLLBACK", "-", "CONTINUE", kept, "other_hook"},
		{scaleIn, "CONTINUE", "ROLLBACK", "CONTINUE", kept, "call"},
		{scaleIn, "CONTINUE", "", "CONTINUE", released, "timeout"},
		{scaleIn, "CONTINUE", "", "ROLLBACK", kept, "timeout"},
		{scaleOut, "CONTINUE", "CONTINUE", "CONTINUE", kept, "call"},
		{scaleOut, "ABANDON", "CONTINUE", "CONTINUE", kept, "call"}, // the last one decides
		{scaleOut, "CONTINUE", "ABANDON", "CONTINUE", released, "call"},
		{scaleOut, "CONTINUE", "ROLLBACK", "CONTINUE", released, "call"},
		{scaleOut, "CONTINUE", "", "ABANDON", released, "timeout"},
		{scaleOut, "CONTINUE", "", "CONTINUE", kept, "timeout"},
	} {
		t.Run(fmt.Sprintf("%s %s then %s default %s", c.transition, c.first, c.second, c.def), func(t *testing.T) {
			t.Parallel()
			instances := 1
			if c.transition == scaleOut {
				instances = 0
			}
			sc := oneGroup(instances, HookConfig{ID: "ash-1", Transition: c.transition, DefaultResult: c.def}, HookConfig{ID: "ash-2", Transition: c.transition, DefaultResult: c.def})
			bubble(t, Options{Scenario: sc}, func(w *world) {
				scale, waiting := w.ScaleIn, "Removing:Wait"
				if c.transition == scaleOut {
					scale, waiting = w.ScaleOut, "Pending:Wait"
				}
				act, err := scale("asg-1", 1)
				if err != nil || len(act.Tokens) != 2 {
					t.Fatalf("activity %+v, %v", act, err)
				}
				if got := w.states("asg-1"); got != waiting {
					t.Fatalf("state %s, want %s", got, waiting)
				}
				w.complete("ash-1", act.Tokens[0], c.first)
				if c.second != "-" && w.states("asg-1") != waiting {
					t.Errorf("state %s before the second answer", w.states("asg-1"))
				}
				switch c.second {
				case "-":
					w.fails(400, "LifecycleHookIdAndLifecycleActionToken.Invalid", essOld, "CompleteLifecycleAction", "LifecycleHookId", "ash-2", "LifecycleActionToken", act.Tokens[1], "LifecycleActionResult", "CONTINUE")
				case "":
					time.Sleep(defaultHookTimeout)
					synctest.Wait()
				default:
					w.complete("ash-2", act.Tokens[1], c.second)
				}
				if got := w.states("asg-1"); got != c.want {
					t.Errorf("state %q in the end, want %q", got, c.want)
				}
				a := w.action(act.Tokens[1])
				if a.EndedBy != c.secondEndedBy || (a.Status == "Timeout") != (c.second == "") {
					t.Errorf("second action %+v, want ended by %s", a, c.secondEndedBy)
				}
			})
		})
	}
}

func TestHookTimeoutIsExact(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneGroup(1, HookConfig{ID: "ash-1", Transition: scaleIn, HeartbeatTimeout: 30 * time.Second})}, func(w *world) {
		act, _ := w.ScaleIn("asg-1", 1)
		time.Sleep(30*time.Second - time.Millisecond)
		if a := w.action(act.Tokens[0]); a.Status != "Pending" {
			t.Errorf("action %+v before its time", a)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if a := w.action(act.Tokens[0]); a.Status != "Timeout" || !a.Completed.Equal(a.Deadline) {
			t.Errorf("action %+v, want Timeout at its deadline", a)
		}
		listed := items(t, w.call(essOld, "DescribeLifecycleActions", "ScalingActivityId", act.ID, "LifecycleActionStatus", "Timeout"), "LifecycleActions", "LifecycleAction")
		if len(listed) != 1 {
			t.Errorf("listed %v", listed)
		}
	})
}

func (w *world) beat(token string, seconds int) {
	w.t.Helper()
	w.call(essOld, "RecordLifecycleActionHeartbeat", "lifecycleHookId", "ash-1", "lifecycleActionToken", token, "heartbeatTimeout", fmt.Sprint(seconds))
}

func TestHeartbeatBudget(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneGroup(2, hookIn("ash-1", ""))}, func(w *world) {
		act, _ := w.ScaleIn("asg-1", 1)
		token := act.Tokens[0]
		for range 20 {
			w.beat(token, 60)
		}
		w.fails(400, "LifecycleAction.RecordTimesExceeded", essOld, "RecordLifecycleActionHeartbeat", "lifecycleHookId", "ash-1", "lifecycleActionToken", token, "heartbeatTimeout", "60")
		if a := w.action(token); a.HeartbeatsUsed != 20 || !a.Deadline.Equal(a.Started.Add(time.Minute)) {
			t.Errorf("action %+v, want 20 beats and the deadline a minute from now", a)
		}
		time.Sleep(time.Minute)

		act, _ = w.ScaleIn("asg-1", 1)
		token = act.Tokens[0]
		w.beat(token, 6*3600)
		time.Sleep(time.Second)
		w.fails(400, "LifecycleAction.TimeExceeded", essOld, "RecordLifecycleActionHeartbeat", "lifecycleHookId", "ash-1", "lifecycleActionToken", token, "heartbeatTimeout", "21600")
		w.beat(token, 6*3600-1)
		time.Sleep(6*time.Hour - time.Second)
		synctest.Wait()
		if a := w.action(token); a.Status != "Timeout" || a.HeartbeatsUsed != 2 || a.Completed.Sub(a.Started) != 6*time.Hour {
			t.Errorf("action %+v, want Timeout after 6 h and 2 beats", a)
		}
		for _, wrong := range []string{"29", "21601", "soon"} {
			w.fails(400, "InvalidParamter", essOld, "RecordLifecycleActionHeartbeat", "lifecycleHookId", "ash-1", "lifecycleActionToken", token, "heartbeatTimeout", wrong)
		}
		w.fails(400, "MissingLifecycleHookId", essOld, "RecordLifecycleActionHeartbeat", "lifecycleActionToken", token)
	})
}

func TestHeartbeatAddedToTheOldDeadline(t *testing.T) {
	t.Parallel()
	sc := oneGroup(1, hookIn("ash-1", ""))
	sc.HeartbeatFromNow = new(false)
	bubble(t, Options{Scenario: sc}, func(w *world) {
		act, _ := w.ScaleIn("asg-1", 1)
		w.beat(act.Tokens[0], 60)
		if a := w.action(act.Tokens[0]); a.Deadline.Sub(a.Started) != 11*time.Minute {
			t.Errorf("deadline after %v, want 11m", a.Deadline.Sub(a.Started))
		}
	})
}

func TestClientToken(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneGroup(1, hookIn("ash-1", ""))}, func(w *world) {
		act, _ := w.ScaleIn("asg-1", 1)
		with := func(result string) []string {
			return []string{"LifecycleHookId", "ash-1", "LifecycleActionToken", act.Tokens[0], "LifecycleActionResult", result, "ClientToken", "once"}
		}
		first := w.call(essOld, "CompleteLifecycleAction", with("CONTINUE")...)
		again := w.call(essOld, "CompleteLifecycleAction", with("CONTINUE")...)
		if first["RequestId"] != again["RequestId"] {
			t.Errorf("answers %v and %v differ", first, again)
		}
		w.fails(400, "IdempotentParameterMismatch", essOld, "CompleteLifecycleAction", with("ABANDON")...)
		w.fails(400, "InvalidParameter", essOld, "CompleteLifecycleAction", append(with("CONTINUE"), "ClientToken", strings.Repeat("x", 65))...)
		if n := len(w.types(ActionCompleted)); n != 1 {
			t.Errorf("completed %d times", n)
		}
	})
}

func TestCompleteRefusals(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneGroup(1, hookIn("ash-1", ""), hookIn("ash-2", ""))}, func(w *world) {
		act, _ := w.ScaleIn("asg-1", 1)
		const op = "CompleteLifecycleAction"
		w.fails(400, "LifecycleHookIdAndLifecycleActionToken.Invalid", essOld, op, "LifecycleHookId", "ash-2", "LifecycleActionToken", act.Tokens[0], "LifecycleActionResult", "CONTINUE")
		w.fails(400, "InvalidParamter", essOld, op, "LifecycleHookId", "ash-1", "LifecycleActionToken", act.Tokens[0], "LifecycleActionResult", "DONE")
		w.fails(400, "MissingLifecycleActionToken", essOld, op, "LifecycleHookId", "ash-1")
		w.fails(404, "InvalidRegionId.NotFound", essOld, op, "LifecycleHookId", "ash-1", "LifecycleActionToken", act.Tokens[0], "RegionId", "mars-1")
		if a := w.action(act.Tokens[0]); a.Status != "Pending" {
			t.Errorf("a refused call changed the action: %+v", a)
		}
		w.call(essOld, op, "LifecycleHookId", "ash-1", "LifecycleActionToken", act.Tokens[0]) // omitted: CONTINUE
		if a := w.action(act.Tokens[0]); a.Result != "CONTINUE" {
			t.Errorf("result %s, want CONTINUE", a.Result)
		}
	})
}

func TestRPCAuthentication(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneGroup(1), NoServers: true})
	const op = "DescribeScalingGroups"
	w.call(essOld, op)
	if r, err := w.rpc("GET", essOld, op); err != nil || r.status != 200 {
		t.Errorf("GET: %v, %v", r, err)
	}
	w.fails(404, "InvalidAccessKeyId.NotFound", essOld, op, "AccessKeyId", "stranger")
	w.fails(400, "InvalidTimeStamp.Expired", essOld, op, "Timestamp", time.Now().Add(-16*time.Minute).UTC().Format("2006-01-02T15:04:05Z"))
	w.fails(400, "InvalidTimeStamp.Expired", essOld, op, "Timestamp", time.Now().Add(16*time.Minute).UTC().Format("2006-01-02T15:04:05Z"))
	w.fails(400, "InvalidTimeStamp.Format", essOld, op, "Timestamp", "now")
	w.fails(400, "IncompleteSignature", essOld, op, "SignatureMethod", "HMAC-MD5")
	w.fails(400, "InvalidSecurityToken.MismatchWithAccessKey", essOld, op, "SecurityToken", "x")
	w.fails(404, "InvalidAction.NotFound", essOld, "DeleteEverything")
	w.fails(400, "InvalidVersion", "2000-01-01", op)
	nonce := []string{"SignatureNonce", "twice"}
	w.call(essOld, op, nonce...)
	w.fails(400, "SignatureNonceUsed", essOld, op, nonce...)
	wrong := *w
	wrong.secret = "wrong"
	wrong.fails(400, "SignatureDoesNotMatch", essOld, op)
	wrong.fails(400, "SignatureDoesNotMatch", essOld, op, "SignatureNonce", "unused")
	w.call(essOld, op, "SignatureNonce", "unused") // a bad signature does not use a nonce up

	form := w.rpcForm(essOld, op)
	signature, _ := signRPC(testSecret, "POST", form)
	form.Set("Signature", signature)
	form.Set("PageSize", "5") // tampered
	if r, err := w.sendRPC("POST", form); err != nil || r.status != 400 || !strings.Contains(r.body, "SignatureDoesNotMatch") {
		t.Errorf("tampered: %v, %v", r, err)
	}
	if r, err := w.rpc("POST", essOld, op, "Format", "XML"); err != nil || !strings.Contains(r.body, "<DescribeScalingGroupsResponse>") || !strings.Contains(r.body, "<ScalingGroup><ActiveCapacity>1</ActiveCapacity>") {
		t.Errorf("XML: %v, %v", r, err)
	}
	if r, err := wrong.rpc("POST", essOld, op, "Format", ""); err != nil || !strings.Contains(r.body, "<Error><Code>SignatureDoesNotMatch</Code><HostId>ess.aliyuncs.com</HostId>") {
		t.Errorf("XML error: %v, %v", r, err)
	}
	w.SetCredentials("STS.x", "s", "tok")
	temporary := *w
	temporary.id, temporary.secret = "STS.x", "s"
	temporary.fails(400, "MissingSecurityToken", essOld, op)
	temporary.token = "tok"
	temporary.call(essOld, op)
}

func TestNonceIsForgottenAfterItsWindow(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneQueue()}, func(w *world) {
		w.call(essOld, "DescribeScalingGroups", "SignatureNonce", "n")
		time.Sleep(15 * time.Minute)
		w.fails(400, "SignatureNonceUsed", essOld, "DescribeScalingGroups", "SignatureNonce", "n")
		time.Sleep(time.Second)
		w.call(essOld, "DescribeScalingGroups", "SignatureNonce", "n")
	})
}

func TestDescribeInBothVersions(t *testing.T) {
	t.Parallel()
	sc := oneGroup(25, hookIn("ash-1", "ROLLBACK"), HookConfig{ID: "ash-2", Transition: scaleOut})
	sc.ScalingGroups = append(sc.ScalingGroups, GroupConfig{ID: "asg-2", Instances: 1})
	bubble(t, Options{Scenario: sc}, func(w *world) {
		o := w.call(essOld, "DescribeScalingInstances", "ScalingGroupId", "asg-1", "PageSize", "10", "PageNumber", "3")
		last := items(t, o, "ScalingInstances", "ScalingInstance")
		if o["TotalCount"] != 25.0 || len(last) != 5 {
			t.Fatalf("third page: %v of %v", len(last), o["TotalCount"])
		}
		in := last[4].(map[string]any)
		if in["PrivateIpAddress"] != "127.1.0.25" || in["LifecycleState"] != "InService" || in["ScalingGroupId"] != "asg-1" {
			t.Errorf("instance %v", in)
		}
		flat := w.call(essNew, "DescribeScalingInstances", "InstanceIds.1", in["InstanceId"].(string))["ScalingInstances"].([]any)
		if len(flat) != 1 || flat[0].(map[string]any)["InstanceId"] != in["InstanceId"] {
			t.Errorf("2022 form: %v", flat)
		}
		tooMany := []string{}
		for i := range 21 {
			tooMany = append(tooMany, fmt.Sprintf("InstanceId.%d", i+1), fmt.Sprint("i-", i))
		}
		w.fails(400, "InvalidParameter", essOld, "DescribeScalingInstances", tooMany...)
		w.fails(400, "InvalidParameter", essOld, "DescribeScalingInstances", "PageSize", "51")
		w.fails(404, "InvalidScalingGroupId.NotFound", essOld, "DescribeScalingInstances", "ScalingGroupId", "asg-9")
		w.fails(400, "MissingRegionId", essOld, "DescribeScalingInstances", "RegionId", "")

		hooks := items(t, w.call(essOld, "DescribeLifecycleHooks", "ScalingGroupId", "asg-1", "LifecycleHookId.1", "ash-1"), "LifecycleHooks", "LifecycleHook")
		if h := hooks[0].(map[string]any); len(hooks) != 1 || h["HeartbeatTimeout"] != 600.0 || h["DefaultResult"] != "ROLLBACK" || h["NotificationArn"] != "acs:mns:cn-shenzhen:1234567890123456:queue/q" {
			t.Errorf("hooks %v", hooks)
		}
		groups := items(t, w.call(essOld, "DescribeScalingGroups", "ScalingGroupId.1", "asg-2"), "ScalingGroups", "ScalingGroup")
		if len(groups) != 1 {
			t.Errorf("groups %v", groups)
		}
		act, _ := w.ScaleIn("asg-1", 1)
		activities := items(t, w.call(essOld, "DescribeScalingActivities", "ScalingActivityId.1", act.ID), "ScalingActivities", "ScalingActivity")
		if a := activities[0].(map[string]any); a["StatusCode"] != "InProgress" {
			t.Errorf("activity %v", a)
		}
		actions := w.call(essNew, "DescribeLifecycleActions", "ScalingActivityId", act.ID)["LifecycleActions"].([]any)
		if ids := actions[0].(map[string]any)["InstanceIds"].([]any); len(ids) != 1 || ids[0] != act.Instances[0] {
			t.Errorf("actions %v", actions)
		}
		w.fails(400, "InvalidParameter", essOld, "DescribeLifecycleActions", "ScalingActivityId", act.ID, "LifecycleActionStatus", "Running")
		w.fails(400, "InvalidParameter", essOld, "DescribeLifecycleActions", "ScalingActivityId", act.ID, "MaxResults", "51")
		w.fails(400, "MissingScalingActivityId", essOld, "DescribeLifecycleActions")
	})
}

func TestDescribeLifecycleActionsPages(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneGroup(1, hookIn("ash-1", ""), hookIn("ash-2", ""), hookIn("ash-3", ""))}, func(w *world) {
		act, _ := w.ScaleIn("asg-1", 1)
		seen, next := []string{}, ""
		for range 3 {
			o := w.call(essOld, "DescribeLifecycleActions", "ScalingActivityId", act.ID, "MaxResults", "1", "NextToken", next)
			for _, a := range items(t, o, "LifecycleActions", "LifecycleAction") {
				seen = append(seen, a.(map[string]any)["LifecycleHookId"].(string))
			}
			next = o["NextToken"].(string)
		}
		if want := []string{"ash-1", "ash-2", "ash-3"}; !slices.Equal(seen, want) || next != "" {
			t.Errorf("saw %v, then %q", seen, next)
		}
		w.fails(400, "InvalidParameter", essOld, "DescribeLifecycleActions", "ScalingActivityId", act.ID, "NextToken", "rubbish")
	})
}

func TestTimings(t *testing.T) {
	t.Parallel()
	sc := oneGroup(1, hookIn("ash-1", ""), HookConfig{ID: "ash-2", Transition: scaleOut})
	sc.Timings = Timings{Boot: 40 * time.Second, Stop: 20 * time.Second, Listing: 2 * time.Second}
	bubble(t, Options{Scenario: sc}, func(w *world) {
		w.ScaleOut("asg-1", 1)
		if got := w.states("asg-1"); got != "InService Pending" {
			t.Errorf("while booting: %s", got)
		}
		time.Sleep(40 * time.Second)
		synctest.Wait()
		if got := w.states("asg-1"); got != "InService Pending:Wait" {
			t.Errorf("booted: %s", got)
		}
		act, _ := w.ScaleIn("asg-1", 1)
		if n := w.call(essOld, "DescribeLifecycleActions", "ScalingActivityId", act.ID)["TotalCount"]; n != 0.0 {
			t.Errorf("%v actions are listed at once", n)
		}
		time.Sleep(2 * time.Second)
		if n := w.call(essOld, "DescribeLifecycleActions", "ScalingActivityId", act.ID)["TotalCount"]; n != 1.0 {
			t.Errorf("%v actions are listed after the delay", n)
		}
		w.complete("ash-1", act.Tokens[0], "CONTINUE")
		if got := w.states("asg-1"); got != "Removing Pending:Wait" {
			t.Errorf("while stopping: %s", got)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if got := w.states("asg-1"); got != "Pending:Wait" {
			t.Errorf("in the end: %s", got)
		}
	})
}

func TestScaleRefusalsAndSplit(t *testing.T) {
	t.Parallel()
	sc := oneGroup(5, hookIn("ash-1", ""))
	sc.ScalingGroups[0].SplitActivity = true
	sc.ScalingGroups[0].Hooks[0].Encoding = "plain"
	sc.ScalingGroups = append(sc.ScalingGroups, GroupConfig{ID: "asg-bare", Instances: 2})
	bubble(t, Options{Scenario: sc}, func(w *world) {
		for _, c := range []struct {
			group string
			count int
			want  string
		}{{"asg-9", 1, "there are: asg-1, asg-bare"}, {"asg-1", 0, "1 or more"}, {"asg-1", 6, "5 instances in service"}} {
			if _, err := w.ScaleIn(c.group, c.count); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("ScaleIn(%s, %d): %v, want %q", c.group, c.count, err, c.want)
			}
		}
		act, err := w.ScaleIn("asg-1", 3)
		if err != nil || len(act.Activities) != 3 || len(act.Tokens) != 3 || len(act.Instances) != 3 {
			t.Fatalf("split: %+v, %v", act, err)
		}
		for _, m := range w.receiveBatch("q", 16) {
			var n notification
			if err := json.Unmarshal([]byte(m.MessageBody), &n); err != nil || len(n.Content.InstanceIDs) != 1 {
				t.Errorf("body %s: %v", m.MessageBody, err)
			}
		}
		if _, err := w.ScaleIn("asg-bare", 1); err != nil || w.states("asg-bare") != "InService" {
			t.Errorf("without a hook: %v, %s", err, w.states("asg-bare"))
		}
		// A deleted queue: nothing is sent, the wait happens all the same.
		w.must(204, "DELETE", "/queues/q", "")
		if act, err := w.ScaleIn("asg-1", 1); err != nil || w.action(act.Tokens[0]).Status != "Pending" {
			t.Errorf("with a deleted queue: %v", err)
		}
	})
}

func FuzzRPC(f *testing.F) {
	f.Add("Action=CompleteLifecycleAction&Version=2014-08-28", "LifecycleHookId=a&lifecycleActionToken=b")
	f.Add("Action=RunCommand&Version=2014-05-26&InstanceId.1=i", "CommandContent=%25&ContentEncoding=Base64")
	f.Add("Action=DescribeInstances&Version=2014-05-26&InstanceIds=[1]&NextToken=x", "")
	f.Add("Action=SetBackendServers&Version=2014-05-15&LoadBalancerId=lb-1", `BackendServers=[{"ServerId":"i-1","Weight":"x","Port":-1}]`)
	f.Add("Action=ModifyVServerGroupBackendServers&Version=2014-05-15&VServerGroupId=rsp-1", `OldBackendServers=[{"ServerId":"i-1","Port":"1"}]&NewBackendServers=[{}]`)
	f.Add("Action=RemoveServersFromServerGroup&Version=2022-04-30", "ServerGroupId=sgp-n&Servers.1.ServerId=i-1&Servers.1.ServerType=Ecs&Servers.2.Port=1&DryRun=true")
	f.Add("Action=ListServerGroupServers&Version=2020-06-16&NextToken=LTE%3D&MaxResults=1", "ServerIds.1=i")
	w := start(f, Options{Scenario: threeBalancers(1, true, hookIn("ash-1", "")), NoServers: true})
	f.Fuzz(func(t *testing.T, query, body string) {
		own, err := url.ParseQuery(query + "&" + body)
		if err != nil {
			t.Skip()
		}
		form := w.rpcForm(own.Get("Version"), own.Get("Action"))
		for name, v := range own {
			if !form.Has(name) && name != "" && name != "Signature" {
				form[name] = v[:1]
			}
		}
		signature, _ := signRPC(testSecret, "POST", form)
		form.Set("Signature", signature)
		r, err := w.sendRPC("POST", form)
		if err != nil || r.status != 200 && !strings.Contains(r.body, `"Code"`) || r.status >= 500 || strings.Contains(r.body, "SignatureDoesNotMatch") {
			t.Errorf("%v: status %d: %s (%v)", form, r.status, r.body, err)
		}
	})
}

func FuzzMNS(f *testing.F) {
	f.Add("POST", "q/messages", "<Message><MessageBody>x</MessageBody><Priority>1</Priority></Message>")
	f.Add("DELETE", "q/messages", "<ReceiptHandles><ReceiptHandle>1-x</ReceiptHandle></ReceiptHandles>")
	f.Add("PUT", "q?metaoverride=true", "<Queue><VisibilityTimeout>1</VisibilityTimeout></Queue>")
	f.Add("GET", "q/messages?numOfMessages=%31", "")
	w := start(f, Options{Scenario: oneQueue()})
	f.Fuzz(func(t *testing.T, method, target, body string) {
		if !slices.Contains([]string{"GET", "POST", "PUT", "DELETE"}, method) || strings.Contains(target, "waitseconds") {
			t.Skip()
		}
		if u, err := url.Parse(w.base + "/queues/" + target); err != nil || u.Host != w.base[len("http://"):] {
			t.Skip()
		} else {
			r, err := w.mns(method, u.RequestURI(), body)
			if err != nil || r.status >= 500 && !strings.Contains(r.body, "Interal error.") && !strings.Contains(r.body, "ErrorCode") || strings.Contains(r.body, "SignatureDoesNotMatch") {
				t.Errorf("%s %s: status %d: %s (%v)", method, target, r.status, r.body, err)
			}
		}
	})
}
