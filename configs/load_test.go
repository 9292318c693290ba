package configs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.org/usher/messages"
	"example.org/usher/worker/placeholders"
)

func load(t *testing.T, env []string, files ...string) *Config {
	t.Helper()
	c, err := Load(folder(t, files...), env)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestExamplesLoad: the files we show are right, and show what they say they do.
func TestExamplesLoad(t *testing.T) {
	t.Parallel()
	names, err := fs.Glob(Examples, "examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, name := range names {
		data, err := Examples.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, filepath.Base(name), string(data))
	}
	c := load(t, nil, files...)
	var groups []string
	for _, g := range c.Groups {
		groups = append(groups, g.Name)
	}
	if !slices.Equal(groups, []string{"aws-classic-elb", "aws-spot-events", "aws-web", "minimal", "web-frontend", "web-shop", "with-application", "with-balancers", "with-composition", "with-firewall",
		"zero-drop-actuator", "zero-drop-balancer-api", "zero-drop-nothing", "zero-drop-probes-only"}) {
		t.Fatalf("groups %v", groups)
	}
	var selected []string
	for _, h := range c.Groups[5].Hooks {
		selected = append(selected, string(h.Transition)+" "+h.HookName+" "+string(h.OnFailure))
	}
	if want := []string{"scale_out  ABANDON", "scale_in drain ROLLBACK", "scale_in backup CONTINUE"}; !slices.Equal(selected, want) {
		t.Errorf("hooks %q, want %q", selected, want)
	}
	web := c.Groups[4].Hooks[0]
	if web.HookName != "drain-on-scale-in" || web.Deadline != 45*time.Minute || web.Heartbeat != (Heartbeat{Floor: 4 * time.Minute}) {
		t.Errorf("hook %+v", web)
	}
	var kinds []string
	for _, s := range web.Steps {
		kinds = append(kinds, s.Kind)
	}
	if want := []string{KindHTTP, KindHTTP, KindDeregister, KindWait, KindWaitConnections, KindCommand, KindCommand, KindExec}; !slices.Equal(kinds, want) {
		t.Errorf("steps %v, want %v", kinds, want)
	}
	first := Step{
		Kind: KindHTTP, Line: web.Steps[0].Line, Timeout: 10 * time.Second, Retries: 2, OnError: OnErrorFail,
		HTTP: &HTTPStep{
			Method: "PUT", URL: "http://{{.PrivateIP}}:8080/actuator/health/down",
			Headers: map[string]string{"X-Drained-By": "usher, for {{.ScalingGroup}}"}, Body: `{"status": "DOWN"}`,
			Expect: []int{200, 204}, ClearChecks: 1, OnRefused: OnRefusedFail, AllowHosts: []string{"10.0.0.0/8"},
		},
	}
	if !reflect.DeepEqual(web.Steps[0], first) {
		t.Errorf("step %+v %+v", web.Steps[0], web.Steps[0].HTTP)
	}
	connections := &WaitConnectionsStep{
		Ports: []int{80, 443}, Exclude: []netip.Prefix{netip.MustParsePrefix("10.0.0.252/31")}, Until: UntilQuiet,
		ClearChecks: 3, Every: time.Second, QuietFor: 3 * time.Second, LongestRequest: 10 * time.Second, Gap: 15 * time.Second, Background: 2,
		LocalAddress: "{{.PrivateIP}}",
	}
	if got := web.Steps[4].WaitConnections; !reflect.DeepEqual(got, connections) {
		t.Errorf("wait_connections %+v", got)
	}
	if got := web.Steps[5].Command.Script; got != "set -eu\n/opt/app/flush-logs.sh\nsystemctl stop app\n" {
		t.Errorf("script %q", got)
	}
}

// TestAWSExamples: the files for AWS show what they say they do, and share a queue.
func TestAWSExamples(t *testing.T) {
	t.Parallel()
	c, err := Load("examples", nil)
	if err != nil {
		t.Fatal(err)
	}
	shop, batch, web := c.Groups[0], c.Groups[1], c.Groups[2]
	want := Queue{Provider: "aws", Region: "eu-west-1", Name: "drain-q", Account: "111122223333", Endpoint: "https://sqs.eu-west-1.amazonaws.com"}
	if shop.Queue != want || batch.Queue != want || web.Queue != want {
		t.Errorf("queues %+v, %+v and %+v, want %+v", shop.Queue, batch.Queue, web.Queue, want)
	}
	if got := (Role{"arn:aws:iam::111122223333:role/usher-web", "usher-web", "web", time.Hour}); web.AssumeRole != got || got.Account() != "111122223333" {
		t.Errorf("role %+v of %s", web.AssumeRole, web.AssumeRole.Account())
	}
	for _, s := range groupSettings(aws) {
		if !strings.Contains(content(t, "examples/aws-web.yaml"), s.key[strings.LastIndex(s.key, ".")+1:]+":") {
			t.Errorf("aws-web.yaml does not show %s", s.key)
		}
	}
	d := shop.Hooks[0].Steps[0].Deregister
	if d.WeightZero != 0 || !slices.Equal(d.Balancers, []Balancer{{BalancerELB, "shop"}}) {
		t.Errorf("deregister %+v", d)
	}
	if r := shop.Hooks[1].Steps[0].Register; r.Weight != DefaultWeight || r.Ramp != 0 || r.Port != 0 {
		t.Errorf("register %+v", r)
	}
	if len(batch.Events) != 2 || !batch.UsesBalancers() {
		t.Fatalf("events %+v", batch.Events)
	}
	spot := batch.Events[0]
	if !slices.Equal(spot.On, []messages.Event{messages.SpotInterruption}) || spot.Deadline != 100*time.Second || spot.Transition != messages.ScaleIn ||
		spot.OnSuccess != "" || spot.Heartbeat != (Heartbeat{}) || len(batch.HeartbeatPlan(spot, MinHookTimeout)) > 0 {
		t.Errorf("event %+v", spot)
	}
	if got := spot.Steps[1].Deregister.Balancers; !slices.Equal(got, []Balancer{{Kind: BalancerELB}, {Kind: BalancerTargetGroup}}) {
		t.Errorf("auto is %+v", got)
	}
	if later := batch.Events[1]; len(later.On) != 2 || len(later.Always) != 1 {
		t.Errorf("event %+v", later)
	}
}

// TestMixedExample: one folder for both clouds; a queue's name tells it from others only in its
// account and region.
func TestMixedExample(t *testing.T) {
	t.Parallel()
	c, err := Load("examples/mixed", nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range c.Groups {
		got = append(got, strings.Join([]string{g.Name, g.Provider, g.Region, g.AssumeRole.Account(), g.Queue.Provider, g.Queue.Region, g.Queue.Account}, " "))
	}
	if want := []string{
		"web-ireland aws eu-west-1 111122223333 aws eu-west-1 111122223333",
		"web-shenzhen alibaba cn-shenzhen 1234567890123456 alibaba  ",
		"web-virginia aws us-east-1 444455556666 aws us-east-1 444455556666",
	}; !slices.Equal(got, want) {
		t.Errorf("groups %q, want %q", got, want)
	}
	if h := c.Groups[0].Hooks[0]; h.Heartbeat != (Heartbeat{}) {
		t.Errorf("AWS has %+v", h.Heartbeat)
	}
	if h := c.Groups[1].Hooks[0]; h.Heartbeat.Floor != 4*time.Minute {
		t.Errorf("Alibaba Cloud has %+v", h.Heartbeat)
	}
}

// TestNamesOfAWS: no config names a group or a hook whose messages would be refused.
func TestNamesOfAWS(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"web-asg", "web.asg", "eks/web_1/asg", "web asg", "web+asg", "web=asg", "web,asg", "web@asg", "web(1)", "$(id)", "web;id", "web/../asg",
		"-web", ".web", "/web", "web/", "web//asg", "web:asg", strings.Repeat("a", 255), strings.Repeat("a", 256),
	} {
		body, err := json.Marshal(map[string]string{
			"LifecycleActionToken": "c8beae68-cb77-4e60-986d-1e8bbf1a6b99", "AutoScalingGroupName": name, "LifecycleHookName": "drain",
			"EC2InstanceId": "i-0123456789abcdef0", "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING", "Time": "2026-10-05T15:10:09Z",
		})
		if err != nil {
			t.Fatal(err)
		}
		asHook := strings.NewReplacer(`"AutoScalingGroupName":`, `"LifecycleHookName":`, `"LifecycleHookName":`, `"AutoScalingGroupName":`).Replace(string(body))
		for config, body := range map[string]string{
			strings.Replace(goodAWS, "web-asg", strconv.Quote(name), 1):                                    string(body),
			strings.Replace(goodAWS, "    deadline", "    hook: "+strconv.Quote(name)+"\n    deadline", 1): asHook,
		} {
			_, refused := messages.Decode([]byte(body), messages.AWS)
			_, err := Load(folder(t, "web.yaml", config), nil)
			if (err == nil) != (refused == nil) {
				t.Errorf("%.40q: its config: %v; its messages: %v", name, err, refused)
			}
			if err != nil && !strings.Contains(err.Error(), "AWS allows more, but it goes into URLs, commands and environments as it is") {
				t.Errorf("%.40q: the reason is missing: %v", name, err)
			}
		}
	}
}

// TestAWSHeartbeats: each is worth the hook's timeout, up to 48 hours or 100 timeouts in all.
func TestAWSHeartbeats(t *testing.T) {
	t.Parallel()
	g := Group{Provider: ProviderAWS}
	for timeout, want := range map[time.Duration]struct {
		cap    time.Duration
		beats  int
		cutoff time.Duration
	}{
		30 * time.Second: {50 * time.Minute, 149, 49 * time.Minute},
		10 * time.Minute: {1000 * time.Minute, 107, awsMaxHidden},
		time.Hour:        {48 * time.Hour, 17, awsMaxHidden},
		2 * time.Hour:    {48 * time.Hour, 8, awsMaxHidden},
	} {
		h := Hook{Deadline: awsMaxHidden - time.Minute}
		budget, plan := g.Budget(h, timeout), g.HeartbeatPlan(h, timeout)
		for _, b := range plan {
			if b.Extension != timeout {
				t.Errorf("%v: a heartbeat of %v", timeout, b.Extension)
			}
		}
		if budget.MaxWait != want.cap || len(plan) != want.beats || budget.Cutoff(h.Deadline) != min(h.Deadline, want.cutoff) {
			t.Errorf("%v: cap %v, %d heartbeats, cut off after %v, want %+v", timeout, budget.MaxWait, len(plan), budget.Cutoff(h.Deadline), want)
		}
	}
}

// TestExampleShowsEveryDefault: the worker's example has each key there is, with the
// value that holds without it.
func TestExampleShowsEveryDefault(t *testing.T) {
	t.Parallel()
	data, err := Examples.ReadFile("examples/" + WorkerFile)
	if err != nil {
		t.Fatal(err)
	}
	shown := load(t, nil, WorkerFile, string(data), "web.yaml", goodGroup).Worker
	absent := load(t, nil, "web.yaml", goodGroup).Worker
	shown.Name, absent.Name = "", ""
	if shown != absent {
		t.Errorf("the example shows %+v, the defaults are %+v", shown, absent)
	}
	for _, s := range workerSettings() {
		if _, key, _ := strings.Cut("."+s.key, "."); !strings.Contains(string(data), key[strings.LastIndex(key, ".")+1:]+":") {
			t.Errorf("the example does not show %s", s.key)
		}
	}
}

// TestTheLongestLease: what is held until its deadline is renewed until then. The worker gives
// a message back when a renewal would lead to less than half a minute before the 12 hours.
func TestTheLongestLease(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ deadline, visibility, want string }{
		{"11h58m30s", "1m", ""},
		{"11h59m", "30s", ""},
		{"11h59m", "1m", "at most 30s with the deadline of 11h59m in web.yaml"},
		{"11h58m31s", "1m", "at most 59s with the deadline of 11h58m31s in web.yaml"},
		{"11h", "59m30s", ""},
		{"11h", "1h", "at most 59m30s with the deadline of 11h in web.yaml"},
	} {
		dir := folder(t, "web.yaml", strings.Replace(goodAWS, "30m", c.deadline, 1), "usher.yaml", "visibility_timeout: "+c.visibility+"\n")
		if _, err := Load(dir, nil); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %s: %v, want %q", c.deadline, c.visibility, err, c.want)
		}
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	c := load(t, []string{"PATH=/bin", "usher_name=x"}, "web-frontend.yml", strings.ReplaceAll(goodGroup, "steps: []", `steps:
      - http: {url: "http://{{.PrivateIP}}/"}
      - wait_connections: {ports: [80]}
      - wait_connections: {ports: [80], until: zero, exclude: [10.0.0.1, "2001:db8::/32"]}
      - command: {script: /opt/x.sh}
      - wait: {for: 10s}`))
	w := c.Worker
	host, _ := os.Hostname()
	if w.Name == "" || patternName.MatchString(host) && w.Name != host {
		t.Errorf("name %q, the host is %q", w.Name, host)
	}
	w.Name = ""
	want := Worker{
		MaxActions: 1000, MaxJobs: 100, MaxReceives: 5, Quarantine: Quarantine{To: "audit"}, VisibilityTimeout: time.Minute, ShutdownGrace: 25 * time.Second,
		Reconcile: Reconcile{Every: 5 * time.Minute},
		HTTP:      "127.0.0.1:9090", Log: Log{Level: "info", Format: "text"},
	}
	if w != want {
		t.Errorf("worker %+v, want %+v", w, want)
	}
	g := c.Groups[0]
	hook := g.Hooks[0]
	g.Hooks = nil
	if want := (Group{
		File: "web-frontend.yml", Name: "web-frontend", Provider: "alibaba", Region: "cn-shenzhen", ScalingGroup: "asg-wz9example0001",
		Queue:  Queue{Provider: "alibaba", Name: "ess-lifecycle", Endpoint: "https://1234567890123456.mns.cn-shenzhen.aliyuncs.com"},
		Verify: VerifyAlways,
	}); !reflect.DeepEqual(g, want) {
		t.Errorf("group %+v, want %+v", g, want)
	}
	steps := hook.Steps
	hook.Steps = nil
	if want := (Hook{
		Transition: messages.ScaleIn, Deadline: 30 * time.Minute, OnSuccess: messages.Continue, OnFailure: messages.Abandon,
		Heartbeat: Heartbeat{Floor: 4 * time.Minute},
	}); !reflect.DeepEqual(hook, want) {
		t.Errorf("hook %+v, want %+v", hook, want)
	}
	wantSteps := []Step{
		{Kind: KindHTTP, Line: 9, Timeout: 30 * time.Second, HTTP: &HTTPStep{
			Method: "GET", URL: "http://{{.PrivateIP}}/", Expect: []int{200}, ClearChecks: 1, OnRefused: OnRefusedFail}},
		{Kind: KindWaitConnections, Line: 10, Timeout: 10 * time.Minute, WaitConnections: &WaitConnectionsStep{
			Ports: []int{80}, Until: UntilQuiet, ClearChecks: 3, Every: time.Second, QuietFor: 3 * time.Second, LongestRequest: 10 * time.Second, Gap: 10 * time.Second, Background: 2}},
		{Kind: KindWaitConnections, Line: 11, Timeout: 10 * time.Minute, WaitConnections: &WaitConnectionsStep{
			Ports: []int{80}, Until: UntilZero, ClearChecks: 3, Every: time.Second, Gap: 10 * time.Second,
			Exclude: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("2001:db8::/32")}}},
		{Kind: KindCommand, Line: 12, Timeout: time.Minute, Command: &CommandStep{Script: "/opt/x.sh"}},
		{Kind: KindWait, Line: 13, Timeout: 15 * time.Second, Wait: &WaitStep{For: 10 * time.Second}},
	}
	for i := range wantSteps {
		wantSteps[i].OnError = OnErrorFail
		if !reflect.DeepEqual(steps[i], wantSteps[i]) {
			t.Errorf("step %d: %+v, want %+v", i, steps[i], wantSteps[i])
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	worker := func(c *Config) any { return c.Worker }
	tests := []struct {
		env  string
		got  func(c *Config) any
		want any
	}{
		{"USHER_NAME=w-2", func(c *Config) any { return c.Worker.Name }, "w-2"},
		{"USHER_MAX_ACTIONS=7", func(c *Config) any { return c.Worker.MaxActions }, 7},
		{"USHER_MAX_JOBS=10", func(c *Config) any { return c.Worker.MaxJobs }, 10},
		{"USHER_MAX_RECEIVES=9", func(c *Config) any { return c.Worker.MaxReceives }, 9},
		{"USHER_QUARANTINE_TO=dead_letter", func(c *Config) any { return c.Worker.Quarantine }, Quarantine{"dead_letter", ""}},
		{"USHER_QUARANTINE_TO=queue USHER_QUARANTINE_QUEUE=poison", func(c *Config) any { return c.Worker.Quarantine }, Quarantine{"queue", "poison"}},
		{"USHER_VISIBILITY_TIMEOUT=2m", func(c *Config) any { return c.Worker.VisibilityTimeout }, 2 * time.Minute},
		{"USHER_SHUTDOWN_GRACE=0s", func(c *Config) any { return c.Worker.ShutdownGrace }, time.Duration(0)},
		{"USHER_RECONCILE_EVERY=off", func(c *Config) any { return c.Worker.Reconcile.Every }, time.Duration(0)},
		{"USHER_RECONCILE_EVERY=1h", func(c *Config) any { return c.Worker.Reconcile.Every }, time.Hour},
		{"USHER_HTTP=off", func(c *Config) any { return c.Worker.HTTP }, ""},
		{"USHER_HTTP=", func(c *Config) any { return c.Worker.HTTP }, ""},
		{"USHER_HTTP=:80", func(c *Config) any { return c.Worker.HTTP }, ":80"},
		{"USHER_LOG_LEVEL=debug", func(c *Config) any { return c.Worker.Log }, Log{"debug", "json"}},
		{"USHER_LOG_FORMAT=text", func(c *Config) any { return c.Worker.Log }, Log{"warn", "text"}},
		{"USHER_AUDIT_FILE=/var/log/a=b", func(c *Config) any { return c.Worker.Audit.File }, "/var/log/a=b"},
		{"USHER_ENDPOINTS_STS=https://sts-vpc.cn-shenzhen.aliyuncs.com", func(c *Config) any { return c.Worker.Endpoints.STS }, "https://sts-vpc.cn-shenzhen.aliyuncs.com"},
		{"USHER_ENDPOINTS_METADATA=http://127.0.0.1:3", func(c *Config) any { return c.Worker.Endpoints.Metadata }, "http://127.0.0.1:3"},
		{"USHER_GROUP_WEB_FRONT_END_ENDPOINTS_STS=http://127.0.0.1:4", func(c *Config) any { return c.Groups[0].Endpoints.STS }, "http://127.0.0.1:4"},
		{"USHER_GROUP_WEB_FRONT_END_ASSUME_ROLE_ARN=acs:ram::1:role/a", func(c *Config) any { return []Role{c.Groups[0].AssumeRole, c.Groups[0].Queue.Role} },
			[]Role{{ARN: "acs:ram::1:role/a", Duration: time.Hour}, {ARN: "acs:ram::1:role/a", Duration: time.Hour}}},
		{"USHER_GROUP_WEB_FRONT_END_ASSUME_ROLE_ARN=acs:ram::1:role/a USHER_GROUP_WEB_FRONT_END_QUEUE_ASSUME_ROLE=none", func(c *Config) any { return c.Groups[0].Queue.Role }, Role{}},
		{"USHER_GROUP_WEB_FRONT_END_ASSUME_ROLE_ARN=acs:ram::1:role/a USHER_GROUP_WEB_FRONT_END_QUEUE_ASSUME_ROLE=acs:ram::2:role/q", func(c *Config) any { return c.Groups[0].Queue.Role },
			Role{ARN: "acs:ram::2:role/q", Duration: time.Hour}},
		{"USHER_GROUP_WEB_FRONT_END_ASSUME_ROLE_ARN=acs:ram::1:role/a USHER_GROUP_WEB_FRONT_END_ASSUME_ROLE_SESSION_NAME=s.1 USHER_GROUP_WEB_FRONT_END_ASSUME_ROLE_EXTERNAL_ID=x-1 USHER_GROUP_WEB_FRONT_END_ASSUME_ROLE_DURATION=15m",
			func(c *Config) any { return c.Groups[0].Queue.Role }, Role{"acs:ram::1:role/a", "s.1", "x-1", 15 * time.Minute}},
		{"USHER_GROUP_WEB_FRONT_END_REGION=cn-hangzhou", func(c *Config) any { return c.Groups[0].Region }, "cn-hangzhou"},
		{"USHER_GROUP_WEB_FRONT_END_SCALING_GROUP=asg-2", func(c *Config) any { return c.Groups[0].ScalingGroup }, messages.GroupID("asg-2")},
		{"USHER_GROUP_WEB_FRONT_END_PROVIDER=alibaba", func(c *Config) any { return c.Groups[0].Provider }, "alibaba"},
		{"USHER_GROUP_WEB_FRONT_END_QUEUE_NAME=q2", func(c *Config) any { return c.Groups[0].Queue.Name }, "q2"},
		{"USHER_GROUP_WEB_FRONT_END_QUEUE_ENDPOINT=http://127.0.0.1:8700/", func(c *Config) any { return c.Groups[0].Queue.Endpoint }, "http://127.0.0.1:8700"},
		{"USHER_GROUP_WEB_FRONT_END_ENDPOINTS_ESS=http://127.0.0.1:1", func(c *Config) any { return c.Groups[0].Endpoints.ESS }, "http://127.0.0.1:1"},
		{"USHER_GROUP_WEB_FRONT_END_ENDPOINTS_ECS=http://127.0.0.1:2", func(c *Config) any { return c.Groups[0].Endpoints.ECS }, "http://127.0.0.1:2"},
		{"USHER_GROUP_WEB_FRONT_END_ENDPOINTS_SLB=http://127.0.0.1:3", func(c *Config) any { return c.Groups[0].Endpoints.SLB }, "http://127.0.0.1:3"},
		{"USHER_GROUP_WEB_FRONT_END_ENDPOINTS_ALB=http://127.0.0.1:4", func(c *Config) any { return c.Groups[0].Endpoints.ALB }, "http://127.0.0.1:4"},
		{"USHER_GROUP_WEB_FRONT_END_ENDPOINTS_NLB=http://127.0.0.1:5", func(c *Config) any { return c.Groups[0].Endpoints.NLB }, "http://127.0.0.1:5"},
		{"USHER_GROUP_WEB_FRONT_END_VERIFY=never", func(c *Config) any { return c.Groups[0].Verify }, "never"},
		{"USHER_GROUP_WEB_FRONT_END_MAX_CONCURRENT=3", func(c *Config) any { return c.Groups[0].MaxConcurrent }, 3},
		{"USHER_GROUP_ZCLOUD_QUEUE_ACCOUNT=444455556666", func(c *Config) any { return c.Groups[1].Queue }, Queue{Provider: "aws", Region: "eu-west-1", Name: "drain-q", Account: "444455556666"}},
		{"USHER_GROUP_ZCLOUD_QUEUE_ENDPOINT=http://127.0.0.1:1/", func(c *Config) any { return c.Groups[1].Queue.Endpoint }, "http://127.0.0.1:1"},
		{"USHER_GROUP_ZCLOUD_ENDPOINTS_AUTOSCALING=http://127.0.0.1:1", func(c *Config) any { return c.Groups[1].Endpoints }, Endpoints{AutoScaling: "http://127.0.0.1:1"}},
		{"USHER_GROUP_ZCLOUD_ENDPOINTS_ELB=http://127.0.0.1:2", func(c *Config) any { return c.Groups[1].Endpoints }, Endpoints{ELB: "http://127.0.0.1:2"}},
		{"USHER_GROUP_ZCLOUD_ENDPOINTS_SSM=http://127.0.0.1:3", func(c *Config) any { return c.Groups[1].Endpoints }, Endpoints{SSM: "http://127.0.0.1:3"}},
		{"USHER_GROUP_ZCLOUD_ENDPOINTS_EC2=http://127.0.0.1:4", func(c *Config) any { return c.Groups[1].Endpoints }, Endpoints{EC2: "http://127.0.0.1:4"}},
		{"USHER_GROUP_ZCLOUD_ENDPOINTS_STS=http://127.0.0.1:5", func(c *Config) any { return c.Groups[1].Endpoints }, Endpoints{STS: "http://127.0.0.1:5"}},
		{"USHER_GROUP_ZCLOUD_REGION=us-gov-west-1", func(c *Config) any { return c.Groups[1].Queue.Region }, "us-gov-west-1"},
		{"USHER_GROUP_ZCLOUD_ASSUME_ROLE_ARN=arn:aws:iam::777788889999:role/ops/usher", func(c *Config) any { return []any{c.Groups[1].AssumeRole.Account(), c.Groups[1].Queue.Account} }, []any{"777788889999", "777788889999"}},
		{"USHER_GROUP_ZCLOUD_PROVIDER=alibaba USHER_GROUP_ZCLOUD_REGION=cn-shenzhen USHER_GROUP_ZCLOUD_SCALING_GROUP=asg-3 USHER_GROUP_ZCLOUD_QUEUE_ENDPOINT=http://127.0.0.1:8700",
			func(c *Config) any { return c.Groups[1].Queue }, Queue{Provider: "alibaba", Name: "drain-q", Endpoint: "http://127.0.0.1:8700"}},
		{"USHER_CONFIG=/etc/usher", worker, nil},
		{"USHER_SERVICE_HOST=10.0.0.1", worker, nil},
		{"USHER_PORT=tcp://10.0.0.1:80", worker, nil},
		{"USHER_GROUP_SERVICE_PORT_HTTP=80", worker, nil},
		{"USHER_METRICS_PORT_9090_TCP_ADDR=10.0.0.1", worker, nil},
	}
	files := []string{
		"web-front.end.yaml", goodGroup, "zcloud.yaml", goodAWS,
		WorkerFile, "name: w-1\nmax_jobs: 50\nlog: {level: warn, format: json}\nhttp: 127.0.0.1:1\naudit: {file: a.log}\n",
	}
	untouched := load(t, nil, files...).Worker
	seen := map[string]bool{}
	for _, tt := range tests {
		env := strings.Fields(tt.env)
		for _, entry := range env {
			name, _, _ := strings.Cut(entry, "=")
			seen[name] = true
		}
		t.Run(tt.env, func(t *testing.T) {
			t.Parallel()
			want := tt.want
			if want == nil {
				want = untouched
			}
			if got := tt.got(load(t, env, files...)); !reflect.DeepEqual(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
	for _, s := range workerSettings() {
		if name := "USHER_" + variable(s.key); !seen[name] {
			t.Errorf("%s is not in the table", name)
		}
		if linkVariable.MatchString("USHER_" + variable(s.key)) {
			t.Errorf("%s looks like a variable of Kubernetes", s.key)
		}
	}
	for _, key := range groupKeys() {
		name, other := "USHER_GROUP_WEB_FRONT_END_"+variable(key), "USHER_GROUP_ZCLOUD_"+variable(key)
		if !seen[name] && !seen[other] || linkVariable.MatchString(name) {
			t.Errorf("%s is not in the table, or looks like a variable of Kubernetes", name)
		}
	}
}

func TestBadEnvironment(t *testing.T) {
	t.Parallel()
	tests := []struct{ env, want string }{
		{"USHER_MAX_JOBS=many", `USHER_MAX_JOBS: want a whole number from 1 to 100000, got "many"`},
		{"USHER_MAX_JOBS=", `USHER_MAX_JOBS: want a whole number from 1 to 100000, got ""`},
		{"USHER_MAX_JOBS=1", `USHER_MAX_JOBS: at least 2, one for each scaling group, got 1`},
		{"USHER_LOG_LEVEL=trace", `USHER_LOG_LEVEL: got "trace" (allowed: debug, info, warn, error)`},
		{"USHER_\x1b[2J\r=x", `"USHER_\x1b[2J\r": unknown variable (allowed: USHER_CONFIG, `},
		{"USHER_AUDIT=x", "USHER_AUDIT: unknown variable (allowed: USHER_CONFIG, "},
		{"USHER_MAX_JOB=5", "USHER_MAX_JOB: unknown variable, did you mean USHER_MAX_JOBS? (allowed: USHER_CONFIG, USHER_AUDIT_FILE, "},
		{"USHER_GROUP_WEB_VERIFY=no", `USHER_GROUP_WEB_VERIFY: got "no" (allowed: always, redelivered, never)`},
		{"USHER_GROUP_WEB_REGION=", "USHER_GROUP_WEB_REGION: is required: a region such as cn-shenzhen"},
		{"USHER_GROUP_WEB_HOOKS=[]", "USHER_GROUP_WEB_HOOKS: unknown variable (allowed: USHER_GROUP_<FILE>_<KEY>, KEY one of PROVIDER, REGION, "},
		{"USHER_GROUP_WBE_REGION=cn-x", "USHER_GROUP_WBE_REGION: unknown variable, did you mean USHER_GROUP_WEB_REGION? (allowed: "},
		{"USHER_GROUP_WEB_SCALING_GROUP=asg-2", "web.yaml:3: scaling_group: asg-2 in cn-shenzhen is in api.yaml:3 already: "},
	}
	for _, tt := range tests {
		t.Run(tt.env, func(t *testing.T) {
			t.Parallel()
			other := strings.Replace(goodGroup, "asg-wz9example0001", "asg-2", 1)
			_, err := Load(folder(t, "web.yaml", goodGroup, "api.yaml", other), []string{"HOME=/", tt.env})
			problems, ok := errors.AsType[Errors](err)
			if !ok || len(problems) != 1 || !strings.HasPrefix(problems[0].String(), tt.want) {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
		})
	}
}

// TestEnvironmentMakesUpForTheFile: a value that only the environment gives is enough.
func TestEnvironmentMakesUpForTheFile(t *testing.T) {
	t.Parallel()
	env := []string{"USHER_GROUP_WEB_REGION=cn-beijing", "USHER_GROUP_WEB_QUEUE_NAME=q", "USHER_GROUP_WEB_QUEUE_ENDPOINT=https://q.example.org"}
	c := load(t, env, "web.yaml", "provider: alibaba\nscaling_group: asg-1\nhooks:\n- {transition: scale_out, deadline: 5m, steps: []}\n")
	if g := c.Groups[0]; g.Region != "cn-beijing" || g.Queue != (Queue{Provider: "alibaba", Name: "q", Endpoint: "https://q.example.org"}) || g.Hooks[0].Transition != messages.ScaleOut {
		t.Errorf("group %+v", g)
	}
}

func TestGroupsShareAQueue(t *testing.T) {
	t.Parallel()
	other := strings.NewReplacer("asg-wz9example0001", "asg-2", "aliyuncs.com", "ALIYUNCS.com/").Replace(goodGroup)
	c := load(t, nil, "a.yaml", goodGroup, "b.yaml", other)
	if c.Groups[0].Queue != c.Groups[1].Queue {
		t.Errorf("%v and %v differ", c.Groups[0].Queue, c.Groups[1].Queue)
	}
}

func TestSameGroupInTwoRegions(t *testing.T) {
	t.Parallel()
	load(t, nil, "a.yaml", goodGroup, "b.yaml", strings.Replace(goodGroup, "region: cn-shenzhen", "region: cn-beijing", 1))
}

func TestOtherFilesAreLeftAlone(t *testing.T) {
	t.Parallel()
	c := load(t, nil, "web.yaml", goodGroup, ".web.yaml", "x", "web.yaml~", "x", "README.md", "x", "web.yaml.bak", "x")
	if len(c.Groups) != 1 {
		t.Errorf("%d groups, want 1", len(c.Groups))
	}
}

func TestUnreadable(t *testing.T) {
	t.Parallel()
	if _, err := Load(filepath.Join(t.TempDir(), "absent"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
	dir := folder(t, "web.yaml", goodGroup, "big.yaml", strings.Repeat("#", maxFile+1))
	if err := os.Symlink("absent", filepath.Join(dir, "link.yaml")); err != nil {
		t.Fatal(err)
	}
	_, err := Load(dir, nil)
	want := "big.yaml:1: the file is larger than 1 MiB\nlink.yaml: cannot be read: no such file or directory"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

// hugeFile is enough to show what grows with the square of the size.
const hugeFile = maxFile / 4

// TestHugeFiles: large files of what could be slow to check are refused, and soon.
func TestHugeFiles(t *testing.T) {
	t.Parallel()
	fill := func(part string) string { return strings.Repeat(part, (hugeFile)/len(part)) }
	var headers, prefixes, keys strings.Builder
	for i := 0; headers.Len() < hugeFile; i++ {
		fmt.Fprintf(&headers, "X%d: a,", i)
	}
	for i := 0; prefixes.Len() < hugeFile; i++ {
		fmt.Fprintf(&prefixes, "10.%d.%d.%d,", i>>16&255, i>>8&255, i&255)
	}
	for i := 0; keys.Len() < hugeFile; i++ {
		fmt.Fprintf(&keys, "k%d: a\n", i)
	}
	step := func(s string) string { return strings.Replace(goodGroup, "[]", "[{"+s+"}]", 1) }
	for name, data := range map[string]string{
		"headers":   step(`http: {url: "http://a/", headers: {` + headers.String() + `}}`),
		"exclude":   step("wait_connections: {ports: [80], exclude: [" + prefixes.String() + "]}"),
		"ports":     step("wait_connections: {ports: [" + fill("80,") + "]}"),
		"steps":     strings.Replace(goodGroup, "[]", "["+fill("{},")+"]", 1),
		"hooks":     strings.Split(goodGroup, "hooks:")[0] + "hooks: [" + fill("{},") + "]\n",
		"keys":      keys.String(),
		"same key":  fill("region: a\n"),
		"anchors":   "hooks: [" + fill("&a a,") + "]\n",
		"documents": fill("---\n"),
		"nesting":   fill("["),
		"indents":   fill("- "),
		"template":  step(`http: {url: "http://a/", body: "` + fill("{{.}}") + `"}`),
		"text":      "region: " + fill("a") + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			_, err := Load(folder(t, "web.yaml", data), nil)
			problems, ok := errors.AsType[Errors](err)
			if !ok || len(problems) > maxProblems || len(err.Error()) > 1<<16 {
				t.Errorf("%d problems, %.200s", len(problems), err)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	action := messages.Action{Hook: "ash-1", HookName: "drain", Transition: messages.ScaleIn}
	tests := map[*Hook]bool{
		{Transition: messages.ScaleIn}:                    true,
		{Transition: messages.ScaleOut}:                   false,
		{Transition: messages.ScaleIn, HookID: "ash-1"}:   true,
		{Transition: messages.ScaleIn, HookID: "ash-2"}:   false,
		{Transition: messages.ScaleIn, HookName: "drain"}: true,
		{Transition: messages.ScaleIn, HookName: "other"}: false,
	}
	for hook, want := range tests {
		if got := hook.Matches(action); got != want {
			t.Errorf("%+v: %v, want %v", hook, got, want)
		}
	}
}

func TestHeartbeatPlan(t *testing.T) {
	t.Parallel()
	fixed := Hook{Deadline: time.Hour, Heartbeat: Heartbeat{Extension: 30 * time.Minute}}
	ess := Group{Provider: ProviderAlibaba}
	plan := ess.HeartbeatPlan(fixed, 15*time.Minute)
	if len(plan) != 3 || plan[0].At != 10*time.Minute || plan[0].Extension != 30*time.Minute {
		t.Errorf("plan %v", plan)
	}
	long := Hook{Deadline: 6 * time.Hour, Heartbeat: Heartbeat{Floor: LeastHeartbeatFloor}}
	if n := len(ess.HeartbeatPlan(long, 30*time.Second)); n == 0 || n > essHeartbeats {
		t.Errorf("%d heartbeats for 6h", n)
	}
}

// TestSmallestExtension: what the error recommends is let through, and a second less is not.
func TestSmallestExtension(t *testing.T) {
	t.Parallel()
	for deadline := 40 * time.Minute; deadline <= 6*time.Hour; deadline += 977 * time.Second {
		if smallest := smallestExtension(deadline); beats(deadline, smallest) > essHeartbeats || beats(deadline, smallest-time.Second) <= essHeartbeats {
			t.Errorf("%v: smallest %v costs %d, a second less %d", deadline, smallest, beats(deadline, smallest), beats(deadline, smallest-time.Second))
		}
	}
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	if got := slices.Sorted(maps.Keys(sample)); !slices.Equal(got, slices.Sorted(slices.Values(placeholders.Names))) {
		t.Errorf("samples for %v, fields %v", got, placeholders.Names)
	}
	if got, err := try("http://{{ .PrivateIP }}/{{.Region}}{{/* a comment */}}"); got != "http://10.0.0.1/cn-shenzhen" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for _, text := range []string{"", "plain", "a { b } c"} {
		if got, err := try(text); got != text || err != nil {
			t.Errorf("%q gives %q, %v", text, got, err)
		}
	}
}

// A takeover comes one lease late, and a heartbeat falls due with a third of the wait left.
func TestHeartbeatFloorFollowsTheLease(t *testing.T) {
	t.Parallel()
	for lease, want := range map[time.Duration]time.Duration{
		10 * time.Second: 2 * time.Minute,
		time.Minute:      4 * time.Minute,
		10 * time.Minute: 40 * time.Minute,
		12 * time.Hour:   6 * time.Hour,
	} {
		if got := heartbeatFloor(lease); got != want {
			t.Errorf("lease %v: floor %v, want %v", lease, got, want)
		}
	}
}
