package simulator

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What runs on a new machine, and what the APIs say of it, comes after its hooks fired.
func TestLaunchTimings(t *testing.T) {
	t.Parallel()
	sc := oneGroup(0, HookConfig{ID: "ash-1", Transition: scaleOut})
	sc.Timings = Timings{Boot: 40 * time.Second, Address: 20 * time.Second, Agent: time.Minute}
	o := Options{Scenario: sc, Commands: func(string, string) CommandOutcome { return CommandOutcome{} }}
	bubble(t, o, func(w *world) {
		act, err := w.ScaleOut("asg-1", 1)
		if err != nil {
			t.Fatal(err)
		}
		id := act.Instances[0]
		run := []string{"Type", "RunShellScript", "CommandContent", "true", "InstanceId.1", id}
		look := func(address string, listed float64, agent string) {
			t.Helper()
			in := w.call(essOld, "DescribeScalingInstances", "InstanceId.1", id)["ScalingInstances"].(map[string]any)["ScalingInstance"].([]any)[0].(map[string]any)
			if (in["PrivateIpAddress"] != "") != (address != "") {
				t.Errorf("ESS says %q", in["PrivateIpAddress"])
			}
			if n := w.call(ecsVersion, "DescribeInstances", "InstanceIds", fmt.Sprintf("[%q]", id))["TotalCount"]; n != listed {
				t.Errorf("ECS lists %v", n)
			}
			set := w.call(ecsVersion, "DescribeCloudAssistantStatus", "InstanceId.1", id)["InstanceCloudAssistantStatusSet"]
			if !strings.Contains(fmt.Sprint(set), "CloudAssistantStatus:"+agent) {
				t.Errorf("agent %v, want %s", set, agent)
			}
		}
		time.Sleep(40 * time.Second)
		synctest.Wait()
		if got := w.states("asg-1"); got != "Pending:Wait" {
			t.Fatalf("booted: %s", got)
		}
		look("", 0, "false")
		w.fails(404, "InvalidInstance.NotFound", ecsVersion, "RunCommand", run...)
		time.Sleep(20 * time.Second)
		look("known", 1, "false")
		early := w.call(ecsVersion, "RunCommand", run...)["InvokeId"]
		time.Sleep(40 * time.Second)
		look("known", 1, "true")
		late := w.call(ecsVersion, "RunCommand", run...)["InvokeId"]
		time.Sleep(time.Second)
		synctest.Wait()
		for invocation, want := range map[any]string{early: "ErrorCode:ClientNotRunning", late: "InvocationStatus:Success"} {
			if got := fmt.Sprint(w.call(ecsVersion, "DescribeInvocationResults", "InvokeId", invocation.(string))); !strings.Contains(got, want) {
				t.Errorf("%s, want %s", got, want)
			}
		}
		w.complete("ash-1", w.State().Actions[0].Token, "CONTINUE")
		if got := w.states("asg-1"); got != "InService" {
			t.Errorf("in the end: %s", got)
		}
	})
}

// A machine that is ended from outside is gone, and what waits for it goes on waiting: the
// answer is for those that are left.
func TestTerminate(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneGroup(2, hookIn("ash-1", ""), HookConfig{ID: "ash-2", Transition: scaleOut})}, func(w *world) {
		act, _ := w.ScaleOut("asg-1", 2)
		for _, id := range []string{act.Instances[0], w.firstInstance().ID} {
			if err := w.Terminate(id); err != nil {
				t.Fatal(err)
			}
		}
		var bad *InputError
		if err := w.Terminate(act.Instances[0]); !errors.As(err, &bad) || !strings.Contains(err.Error(), act.Instances[0]) {
			t.Errorf("ended twice: %v", err)
		}
		if got := w.states("asg-1"); got != "InService Pending:Wait" || w.action(act.Tokens[0]).Status != "Pending" {
			t.Errorf("%s, action %+v", got, w.action(act.Tokens[0]))
		}
		w.complete("ash-2", act.Tokens[0], "CONTINUE")
		if got := w.states("asg-1"); got != "InService InService" {
			t.Errorf("in the end: %s", got)
		}
		if _, err := w.ScaleIn("asg-1", 3); err == nil {
			t.Error("the instance counts as one in service still")
		}
	})
}

// The balancer's check sees a process that runs, clients a service that does not work yet.
func TestWarmUp(t *testing.T) {
	t.Parallel()
	sc := fast(0, HookConfig{ID: "ash-1", Transition: scaleOut})
	sc.Timings.WarmUp = time.Hour
	w, c := start(t, Options{Scenario: sc}), user(t)
	act, err := w.ScaleOut("asg-1", 1)
	if err != nil {
		t.Fatal(err)
	}
	w.complete("ash-1", act.Tokens[0], "CONTINUE")
	until(t, "the balancer sends requests", func() bool { status, from := w.fetch(c, "/"); return status == 503 && from != "" })
	in := w.firstInstance()
	at := fmt.Sprintf("http://%s:%d", in.Address, in.Port)
	get := func(path string) int {
		res, err := c.Get(at + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	if live, ready := get("/healthz"), get("/actuator/health"); live != 200 || ready != 503 {
		t.Errorf("/healthz %d, /actuator/health %d", live, ready)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, at+"/actuator/health/up", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if ready, works := get("/actuator/health"), get("/"); ready != 200 || works != 200 {
		t.Errorf("warmed up: /actuator/health %d, / %d", ready, works)
	}
}

// By itself it works when its time has come.
func TestWarmUpEnds(t *testing.T) {
	t.Parallel()
	sc := fast(0)
	sc.Timings.WarmUp = 50 * time.Millisecond
	w, c := start(t, Options{Scenario: sc}), user(t)
	if _, err := w.ScaleOut("asg-1", 1); err != nil {
		t.Fatal(err)
	}
	until(t, "it serves", func() bool { status, _ := w.fetch(c, "/"); return status == 200 })
}
