package simulator

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// control makes a control call.
func (w *world) control(method, path, body string) reply {
	w.t.Helper()
	req, err := http.NewRequest(method, w.base+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := w.do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func TestControl(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneGroup(2, hookIn("ash-1", "")), NoServers: true})
	r := w.control("POST", "/simulator/scaling-groups/asg-1/scale-in", `{"count": 1}`)
	var act Activity
	if err := json.Unmarshal([]byte(r.body), &act); err != nil || r.status != 200 || len(act.Tokens) != 1 {
		t.Fatalf("scale-in: %v, %v", r, err)
	}
	if r := w.control("POST", "/simulator/scaling-groups/asg-1/scale-out", `{"count": 2}`); r.status != 200 {
		t.Errorf("scale-out: %v", r)
	}
	if r := w.control("POST", "/simulator/queues/q/messages", `{"body": "garbage"}`); r.status != 201 || !strings.Contains(r.body, "message_id") {
		t.Errorf("message: %v", r)
	}
	w.beat(act.Tokens[0], 600)
	var st State
	if err := json.Unmarshal([]byte(w.control("GET", "/simulator/state", "").body), &st); err != nil {
		t.Fatal(err)
	}
	a, _ := st.Action(act.Tokens[0])
	q, _ := st.Queue("q")
	if a.HeartbeatsUsed != 1 || a.Status != "Pending" || q.Active != 2 || st.APICalls["ess.RecordLifecycleActionHeartbeat"] != 1 || len(st.Groups[0].Instances) != 4 {
		t.Errorf("state %+v", st)
	}
	var events []Event
	if err := json.Unmarshal([]byte(w.control("GET", "/simulator/events", "").body), &events); err != nil || len(events) < 5 || events[0].Seq != 1 {
		t.Errorf("events %v, %v", events, err)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/simulator/scaling-groups/asg-9/scale-in", `{"count": 1}`, 404, "there are: asg-1"},
		{"POST", "/simulator/scaling-groups/asg-1/scale-in", `{"count": 99}`, 400, "in service"},
		{"POST", "/simulator/scaling-groups/asg-1/scale-in", `{"number": 1}`, 400, "count"},
		{"POST", "/simulator/scaling-groups/asg-1/scale-in", `{"count": 1} {}`, 400, "more than one"},
		{"POST", "/simulator/queues/none/messages", `{"body": "x"}`, 404, "there are: q"},
		{"POST", "/simulator/queues/q/messages", `{"body": ""}`, 400, "between 1 and 65536"},
		{"DELETE", "/simulator/state", "", 405, "takes GET"},
		{"GET", "/simulator/nothing", "", 404, "GET /simulator/state"},
		{"POST", "/simulator/faults", `{"service": "s3", "kind": "drop"}`, 400, "mns, ess, ecs"},
		{"POST", "/simulator/faults", `{"service": "mns", "kind": "flood"}`, 400, "drop_after_effect"},
		{"POST", "/simulator/faults", `{"service": "mns", "kind": "latency"}`, 400, "needs a latency"},
		{"POST", "/simulator/faults", `{"service": "mns", "kind": "latency", "latency": "soon"}`, 400, "invalid duration"},
		{"POST", "/simulator/faults", `{"service": "mns", "action": "Fly", "kind": "drop"}`, 400, `no action \"Fly\"`},
		{"POST", "/simulator/faults", `{"service": "mns", "kind": "drop", "count": 1, "rate": 0.5}`, 400, "not both"},
		{"POST", "/simulator/faults", `{"service": "ess", "kind": "duplicate"}`, 400, "mns only"},
		{"POST", "/simulator/instances/i-9/health", `{"healthy": true}`, 404, "no instance"},
		{"POST", "/simulator/instances/i-9/health", `{}`, 400, "healthy"},
		{"POST", "/simulator/instances/i-9/health", `{"ill": true}`, 400, "healthy"},
		{"GET", "/simulator/instances/i-9/health", "", 405, "takes POST"},
		{"POST", "/simulator/faults", `{"service": "mns", "kind": "drop", "colour": 1}`, 400, "colour"},
		{"POST", "/simulator/faults", strings.Repeat(" ", maxControlBody+1), 413, "too large"},
	} {
		if r := w.control(c.method, c.path, c.body); r.status != c.status || !strings.Contains(r.body, c.want) || decode(t, r.body)["error"] == "" {
			t.Errorf("%s %s %.60s: %d %s, want %d with %q", c.method, c.path, c.body, r.status, r.body, c.status, c.want)
		}
	}
	if r := w.control("POST", "/simulator/faults", `{"service": "mns", "action": "ReceiveMessage", "kind": "throttle", "rate": 1, "latency": "1ms"}`); r.status != 201 {
		t.Errorf("fault: %v", r)
	}
	w.refused(429, "TooManyRequests", "GET", "/queues/q/messages?numOfMessages=16", "")
	if f := w.State().Faults; len(f) != 1 || f[0].Latency != time.Millisecond {
		t.Errorf("faults %+v", f)
	}
	if r := w.control("DELETE", "/simulator/faults", ""); r.status != 204 || len(w.State().Faults) != 0 {
		t.Errorf("clear: %v", r)
	}
}

func (w *world) fault(f Fault) {
	w.t.Helper()
	if _, err := w.InjectFault(f); err != nil {
		w.t.Fatal(err)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneGroup(2, hookIn("ash-1", ""))}, func(w *world) {
		const messages, receive = "/queues/q/messages", "/queues/q/messages?waitseconds=0"
		w.fault(Fault{Service: "mns", Kind: Fault5xx, Count: 2})
		w.refused(500, "InternalError", "GET", receive, "")
		w.refused(500, "InternalError", "DELETE", messages, "")
		w.refused(404, "MessageNotExist", "GET", receive, "")
		w.fault(Fault{Service: "mns", Action: "ReceiveMessage", Kind: FaultThrottle, Latency: 5 * time.Second, Count: 1})
		w.fault(Fault{Service: "mns", Action: "ReceiveMessage", Kind: FaultDenied, Count: 1})
		from := time.Now()
		w.refused(429, "TooManyRequests", "GET", receive, "")
		if d := time.Since(from); d != 5*time.Second {
			t.Errorf("throttled after %v, want 5s", d)
		}
		w.refused(403, "AccessDenied", "GET", receive, "")

		w.fault(Fault{Service: "mns", Action: "SendMessage", Kind: FaultDrop, Count: 1})
		const body = "<Message><MessageBody>hello world</MessageBody></Message>"
		if r, err := w.mns("POST", messages, body); err == nil {
			t.Errorf("drop answered %v", r)
		}
		if q, _ := w.State().Queue("q"); q.Active != 0 {
			t.Errorf("drop had an effect: %+v", q)
		}
		w.fault(Fault{Service: "mns", Action: "SendMessage", Kind: FaultDropAfterEffect, Count: 1})
		if r, err := w.mns("POST", messages, body); err == nil {
			t.Errorf("drop after effect answered %v", r)
		}
		w.fault(Fault{Service: "mns", Action: "ReceiveMessage", Kind: FaultDuplicate, Count: 1})
		first, second := w.receiveOne("q", "0"), w.receiveOne("q", "0")
		if first.MessageId == second.MessageId || first.MessageBody != "hello world" || second.MessageBody != first.MessageBody || second.DequeueCount != 1 {
			t.Errorf("duplicates %+v and %+v", first, second)
		}
		w.fault(Fault{Service: "mns", Action: "ReceiveMessage", Kind: FaultCorrupt, Count: 1})
		time.Sleep(30 * time.Second)
		synctest.Wait()
		bad, good := w.receiveOne("q", "0"), w.receiveOne("q", "0")
		if bad.MessageBody == good.MessageBody || good.MessageBody != "hello world" || bad.MessageBodyMD5 != good.MessageBodyMD5 {
			t.Errorf("corrupt %+v, then %+v", bad, good)
		}

		// A hook's notification, twice.
		w.fault(Fault{Service: "mns", Action: "SendMessage", Kind: FaultDuplicate, Count: 1})
		act, _ := w.ScaleIn("asg-1", 1)
		got := w.receiveBatch("q", 16)
		if len(got) != 2 || got[0].MessageId == got[1].MessageId || w.wire(got[1].MessageBody).Content.Token != act.Tokens[0] {
			t.Errorf("notified %+v", got)
		}

		complete := []string{"LifecycleHookId", "ash-1", "LifecycleActionToken", act.Tokens[0], "LifecycleActionResult", "CONTINUE"}
		w.fault(Fault{Service: "ess", Action: "CompleteLifecycleAction", Kind: FaultThrottle, Count: 1})
		w.fails(400, "Throttling.User", essOld, "CompleteLifecycleAction", complete...)
		w.fault(Fault{Service: "ess", Kind: Fault5xx, Count: 1})
		w.fails(503, "ServiceUnavailable", essOld, "CompleteLifecycleAction", complete...)
		w.fault(Fault{Service: "ess", Kind: FaultDenied, Count: 1})
		w.fails(403, "Forbidden.RAM", essOld, "CompleteLifecycleAction", complete...)
		if a := w.action(act.Tokens[0]); a.Status != "Pending" {
			t.Errorf("a fault let the call through: %+v", a)
		}
		w.fault(Fault{Service: "ess", Kind: FaultDropAfterEffect, Count: 1})
		if r, err := w.rpc("POST", essOld, "CompleteLifecycleAction", complete...); err == nil {
			t.Errorf("drop after effect answered %v", r)
		}
		if a := w.action(act.Tokens[0]); a.Status != "Completed" {
			t.Errorf("drop after effect had none: %+v", a)
		}

		w.fault(Fault{Service: "mns", Kind: FaultHang})
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Hour)
		defer cancel()
		if _, err := w.mnsContext(ctx, "GET", receive, ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("hang: %v", err)
		}
		w.ClearFaults()
		w.must(200, "GET", receive, "")
	})
}

func TestFaultRate(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneQueue()}, func(w *world) {
		w.fault(Fault{Service: "mns", Kind: Fault5xx, Rate: 0.5})
		struck := 0
		for range 400 {
			if r, err := w.mns("GET", "/queues/q", ""); err != nil {
				t.Fatal(err)
			} else if r.status == 500 {
				struck++
			}
		}
		if struck < 120 || struck > 280 { // 8 standard deviations
			t.Errorf("%d of 400 calls were struck, want about half", struck)
		}
	})
}

func TestScenarioFile(t *testing.T) {
	t.Parallel()
	const good = `region: cn-hangzhou
queues:
  - {name: q, visibility_timeout: 60s, polling_wait: 5s, retention: 1h, max_message_size: 2048}
balancers:
  - id: lb
    listen: 127.0.0.1:0
    health_check: {path: /actuator/health, interval: 500ms, timeout: 1s, fall: 3, rise: 3}
    connection_drain_timeout: 30s
  - id: alb
    type: alb
    job_duration: 5s
    drain_in_job: true
    server_groups: [{id: sgp-1, connection_drain_timeout: 60s}]
    listeners: [{id: lsn-alb, port: 8080, server_group: sgp-1, listen: 127.0.0.1:0, protocol: http}]
  - id: lb-c
    type: clb
    server_groups: [{id: rsp-c}]
    listeners: [{port: 80, connection_drain_timeout: 30s}, {port: 81, server_group: rsp-c, backend_port: 8081}]
scaling_groups:
  - id: asg-1
    name: web
    instances: 3
    balancers: [lb]
    server_groups: [{id: sgp-1, ports: [80, 81]}, {id: lb-c, weight: 50, unattached: true}]
    zones: [a, b]
    split_activity: true
    hooks:
      - {id: ash-1, name: drain, transition: scale_in, heartbeat_timeout: 1h, default_result: ROLLBACK, queue: q, metadata: m, encoding: plain}
timings: {boot: 1s, stop: 2s, command: 1s, listing: 0s}
heartbeat_from_now: false
lax: false
`
	path := filepath.Join(t.TempDir(), "scenario.yaml")
	load := func(text string) error {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		sc, err := LoadScenario(path)
		if err == nil && (sc.Region != "cn-hangzhou" || sc.ScalingGroups[0].Hooks[0].Encoding != "plain" || *sc.HeartbeatFromNow) {
			t.Errorf("scenario %+v", sc)
		}
		return err
	}
	if err := load(good); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{"visibility_timeout: 60s", "visibility: 60s", `scenario.yaml:3: unknown key "visibility"; allowed are name, visibility_timeout, polling_wait`},
		{"region:", "regions:", `scenario.yaml:1: unknown key "regions"; allowed are provider, region, queues`},
		{"polling_wait: 5s", "polling_wait: 31s", "scenario.yaml:3: queues[0].polling_wait: must be 0s to 30s, got 31s"},
		{"balancers: [lb]", "balancers: [other]", `scenario.yaml:23: scaling_groups[0].balancers[0]: no balancer "other"; there are alb, lb, lb-c`},
		{"queue: q,", "queue: z,", `scenario.yaml:28: scaling_groups[0].hooks[0].queue: no queue "z"; there are q`},
		{"heartbeat_timeout: 1h", "heartbeat_timeout: 29s", "heartbeat_timeout: must be 30s to 6h0m0s, got 29s"},
		{"default_result: ROLLBACK", "default_result: STOP", "must be one of CONTINUE, ABANDON, ROLLBACK"},
		{"listen: 127.0.0.1:0", "listen: 0.0.0.0:80", "scenario.yaml:6: balancers[0].listen: must be a loopback address"},
		{"instances: 3", "instances: -3", "scenario.yaml:22: scaling_groups[0].instances"},
		{"instances: 3", "instances: many", "scenario.yaml:22: cannot unmarshal"},
		{"  - id: lb\n", "  - id: lb\n  - id: lb\n", "is there twice"},
		{"region: cn-hangzhou", "region: [", "scenario.yaml:"},
		{good, "", "is empty"},
		{"type: alb", "type: elb", `balancers[1].type: must be one of clb, alb, nlb, got "elb"`},
		{"sgp-1, connection", "lb, connection", `balancers[1].server_groups[0].id: "lb" is there twice`},
		{"{id: sgp-1, connection_drain_timeout: 60s}", "", "balancers[1].server_groups: alb needs one or more"},
		{"connection_drain_timeout: 60s", "connection_drain_timeout: 16m", "server_groups[0].connection_drain_timeout: must be 0s to 15m0s, got 16m0s"},
		{"protocol: http}", "protocol: tcp}", "balancers[1].listeners[0].protocol: must be one of http"},
		{"protocol: http}", "backend: 1}", `unknown key "backend"; allowed are id, port, protocol, server_group, backend_port`},
		{"server_group: sgp-1,", "server_group: sgp-2,", `no server group "sgp-2"; there are sgp-1`},
		{"port: 8080, s", "port: 80800, s", "listeners[0].port: must be 1 to 65535, got 80800"},
		{"job_duration: 5s", "job_duration: 2h", "balancers[1].job_duration: must be 0s to 1h0m0s"},
		{"    type: clb\n", "", "balancers[2].server_groups: a balancer without a type has none"},
		{"port: 80, connection_drain_timeout: 30s", "port: 80, connection_drain_timeout: 9s", "balancers[2].listeners[0].connection_drain_timeout: must be 10s to 15m0s, got 9s"},
		{"port: 80, connection_drain_timeout: 30s", "port: 80, protocol: http, connection_drain_timeout: 30s", "clb has it on tcp listeners only"},
		{"port: 81, s", "port: 80, s", "balancers[2].listeners[1].port: 80 is there twice"},
		{"port: 81, s", "port: 81, id: lsn-alb, s", `balancers[2].listeners[1].id: "lsn-alb" is there twice`},
		{"{id: rsp-c}", "{id: rsp-c, connection_drain_timeout: 30s}", "clb sets it on its listeners"},
		{"ports: [80, 81]", "ports: [80, 80]", "scaling_groups[0].server_groups[0].ports: 80 is there twice"},
		{"ports: [80, 81]", "ports: []", "scaling_groups[0].server_groups[0].ports: needs one or more"},
		{"id: lb-c, weight", "id: lb-c, ports: [1], weight", `the listeners of "lb-c" say the port`},
		{"weight: 50", "weight: 101", "server_groups[1].weight: must be 1 to 100, got 101"},
		{"{id: sgp-1, ports", "{id: sgp-9, ports", `no server group "sgp-9"; there are lb, lb-c, rsp-c, sgp-1`},
		{"id: lb-c, weight", "id: lb, weight", `server_groups[1].id: "lb" is there twice`},
		{"balancers: [lb]", "balancers: [alb]", `"alb" has no default server group`},
		{"zones: [a, b]", "zones: [a, a]", `zones[1]: "a" is there twice`},
	} {
		err := load(strings.Replace(good, c.old, c.new, 1))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.new, err, c.want)
		}
	}
	two := strings.NewReplacer("polling_wait: 5s", "polling_wait: 31s", "fall: 3", "fall: 99").Replace(good)
	if err := load(two); err == nil || strings.Count(err.Error(), "scenario.yaml:") != 2 {
		t.Errorf("two problems: %v", err)
	}
	if err := load(strings.NewReplacer("heartbeat_timeout: 1h", "heartbeat_timeout: 2s", "lax: false", "lax: true").Replace(good)); err != nil && strings.Contains(err.Error(), "heartbeat") {
		t.Errorf("lax: %v", err)
	}
	if _, err := LoadScenario(path + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := New(Options{AccessKeyID: "a", AccessKeySecret: "b", Scenario: Scenario{Region: "-"}}); err == nil {
		t.Error("New takes a broken scenario")
	}
	if _, err := New(Options{}); err == nil {
		t.Error("New takes no keys")
	}
}

// TestReadmeScenario: the example in the README is a scenario.
func TestReadmeScenario(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```yaml\nqueues:")
	text, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("README.md has no scenario that begins with queues")
	}
	sc, err := parseScenario("README.md", []byte("queues:"+text))
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, Options{Scenario: sc, NoServers: true})
	if got := len(w.State().Members(w.firstInstance().ID)); got != 5 {
		t.Errorf("%d memberships of an instance, want 5", got)
	}
}

func FuzzScenario(f *testing.F) {
	f.Add("queues: [{name: q}]\nscaling_groups: [{id: a, hooks: [{queue: q, transition: scale_in}]}]")
	f.Add("balancers: [{id: a, type: alb, server_groups: [{id: g}]}, {id: l, type: clb, listeners: [{port: 80}, {port: 81}]}]\nscaling_groups: [{id: s, balancers: [l], server_groups: [{id: g, ports: [80]}]}]")
	f.Add("region: [")
	f.Add("a: &a [*a]")
	f.Add("queues: [{name: q}]\npolicy: '{\"Version\":\"1\",\"Statement\":[{\"Effect\":\"Allow\",\"Action\":[\"ess:*\"],\"Resource\":\"*\"}]}'")
	f.Fuzz(func(t *testing.T, text string) {
		sc, err := parseScenario("f.yaml", []byte(text))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f.yaml:") {
				t.Errorf("no file in %v", err)
			}
		} else if found := sc.withDefaults().withDefaults().problems(); len(found) > 0 {
			t.Errorf("accepted with %v", found)
		}
		p, err := ParsePolicy([]byte(text))
		if err == nil && p.Allows("", "") && !strings.ContainsAny(text, `*\`) { // only what allows all allows an action without a name
			t.Errorf("a policy without a pattern allows no action: %s", text)
		}
	})
}

// FuzzControl: the calls that drive the simulator are not signed; none of them ends in a
// panic, and each refusal is JSON.
func FuzzControl(f *testing.F) {
	f.Add("POST", "scaling-groups/asg-1/scale-in", `{"count": 1}`)
	f.Add("POST", "queues/q/messages", `{"body": "x"}`)
	f.Add("POST", "faults", `{"service": "mns", "kind": "throttle", "count": 1, "latency": "1ns"}`)
	f.Add("PUT", "policy", `{"Version": "1", "Statement": []}`)
	f.Add("POST", "instances/i-1/health", `{"healthy": false}`)
	f.Add("DELETE", "faults", "")
	f.Add("GET", "state", "")
	f.Add("GET", "events/../x", "")
	f.Fuzz(func(t *testing.T, method, path, body string) {
		// One of its own each time: what piles up would make it slow.
		s, err := New(Options{AccessKeyID: "id", AccessKeySecret: testSecret, Scenario: oneGroup(3, hookIn("ash-1", "")), NoServers: true, NoEvents: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		r := httptest.NewRecorder()
		req, err := http.NewRequest(method, "http://sim.test/simulator/"+path, strings.NewReader(body))
		if err != nil || !strings.HasPrefix(req.URL.Path, "/simulator/") || strings.Contains(body, "hang") || strings.Contains(path, "scale-out") {
			t.Skip()
		}
		s.ServeHTTP(r, req)
		if r.Code >= 500 || r.Code != http.StatusNoContent && !json.Valid(r.Body.Bytes()) {
			t.Errorf("%s %s %s: %d %s", method, path, body, r.Code, r.Body)
		}
	})
}

// TestHealth: what usher health asks for is answered without a signature.
func TestHealth(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneGroup(2, hookIn("ash-1", "")), NoServers: true})
	if r := w.control("GET", "/healthz", ""); r.status != 200 || r.body != "ok\n" {
		t.Errorf("GET /healthz: %d %q", r.status, r.body)
	}
}
